//! `LogSettings`: decodes messages into changes, and encodes settings into messages.

use std::collections::BTreeMap;

use skep_proto::inference::{
    LogSettingsRequest, LogSettingsResponse, log_settings_request,
    log_settings_response::{self, SettingValue},
};

use crate::{
    error::ApiError,
    management::{LogChange, LogSettings, SettingSlot},
};

pub(super) fn decode(message: LogSettingsRequest) -> Result<LogChange, ApiError> {
    use log_settings_request::setting_value::ParameterChoice as Choice;
    let mut change = LogChange::default();
    for (name, value) in message.settings {
        let expected = |what| ApiError::invalid(format!("expect {what} for '{name}'"));
        match (change.slot(&name)?, value.parameter_choice) {
            (None, _) => {}
            (Some(SettingSlot::Flag(slot)), Some(Choice::BoolParam(flag))) => *slot = Some(flag),
            (Some(SettingSlot::Level(slot)), Some(Choice::Uint32Param(level))) => {
                *slot = Some(level)
            }
            (Some(SettingSlot::Text(slot)), Some(Choice::StringParam(text))) => *slot = Some(text),
            (Some(SettingSlot::Flag(_)), _) => return Err(expected("boolean")),
            (Some(SettingSlot::Level(_)), _) => return Err(expected("int32")),
            (Some(SettingSlot::Text(_)), _) => return Err(expected("string")),
        }
    }
    Ok(change)
}

pub(super) fn encode(settings: LogSettings) -> LogSettingsResponse {
    use log_settings_response::setting_value::ParameterChoice as Choice;
    let settings = BTreeMap::from([
        ("log_file", Choice::StringParam(settings.file)),
        ("log_info", Choice::BoolParam(settings.info)),
        ("log_warning", Choice::BoolParam(settings.warning)),
        ("log_error", Choice::BoolParam(settings.error)),
        (
            "log_verbose_level",
            Choice::Uint32Param(settings.verbose_level),
        ),
        ("log_format", Choice::StringParam(settings.format)),
    ]);
    let value = |choice| SettingValue {
        parameter_choice: Some(choice),
    };
    LogSettingsResponse {
        settings: settings
            .into_iter()
            .map(|(name, choice)| (name.to_owned(), value(choice)))
            .collect(),
    }
}
