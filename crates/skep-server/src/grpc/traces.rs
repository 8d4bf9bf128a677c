//! `TraceSetting`: decodes messages into changes, and encodes settings into messages.

use std::collections::BTreeMap;

use skep_proto::inference::{
    TraceSettingResponse, trace_setting_request::SettingValue, trace_setting_response,
};
use skep_tracing::TraceChange;

use crate::{
    error::ApiError,
    management::traces::{self, GivenSetting, ShownSettings},
    state::ServerState,
};

/// The change that a message asks for; `None` if it only asks for the settings.
pub(super) fn decode(
    state: &ServerState,
    settings: BTreeMap<String, SettingValue>,
) -> Result<Option<TraceChange>, ApiError> {
    if settings.is_empty() {
        return Ok(None);
    }
    let mut change = TraceChange::default();
    for (name, SettingValue { value }) in settings {
        let given = match value.is_empty() {
            true => GivenSetting::Cleared,
            false => GivenSetting::Values(value),
        };
        traces::add(&mut change, state, &name, given)?;
    }
    Ok(Some(change))
}

pub(super) fn encode(shown: ShownSettings) -> TraceSettingResponse {
    let value = |value| trace_setting_response::SettingValue { value };
    TraceSettingResponse {
        settings: shown
            .into_iter()
            .map(|(name, values)| (name.to_owned(), value(values)))
            .collect(),
    }
}
