//! `/v2/logging`: the log settings, shown and changed.

use std::sync::Arc;

use axum::{extract::State, response::Response};
use serde_json::{Value, json};

use super::{extract::SmallJsonBody, fault::json_error, lean, reply::document};
use crate::{
    error::ApiError,
    management::{LogChange, LogSettings, SettingSlot},
    state::ServerState,
};

pub(super) async fn show(State(state): State<Arc<ServerState>>) -> Response {
    encode(&state.logs.settings())
}

/// Changes all settings in the body, or none of them if one is wrong; Triton changes those before the wrong one.
pub(super) async fn change(
    State(state): State<Arc<ServerState>>,
    SmallJsonBody(body): SmallJsonBody,
) -> Result<Response, ApiError> {
    let body = lean::parse(&body, 1).map_err(|error| json_error(&error))?;
    let change = decode(&body)?;
    let settings = change.apply(&*state.logs, "--log_format")?;
    Ok(encode(&settings))
}

pub(super) fn decode(body: &Value) -> Result<LogChange, ApiError> {
    let Value::Object(members) = body else {
        return Err(ApiError::invalid(
            "the body of a log settings request must be a JSON object",
        ));
    };
    let mut change = LogChange::default();
    // Null counts as absent.
    for (name, value) in members.iter().filter(|(_, value)| !value.is_null()) {
        match change.slot(name)? {
            None => {}
            Some(SettingSlot::Flag(slot)) => {
                let flag = value.as_bool();
                *slot = Some(flag.ok_or_else(|| mismatch("non-boolean as boolean"))?);
            }
            Some(SettingSlot::Level(slot)) => {
                let level = value.as_u64();
                let level =
                    level.ok_or_else(|| mismatch("non-unsigned-integer as unsigned-integer"))?;
                // Higher than any level that exists.
                *slot = Some(u32::try_from(level).unwrap_or(u32::MAX));
            }
            Some(SettingSlot::Text(slot)) => {
                let text = value.as_str();
                *slot = Some(
                    text.ok_or_else(|| mismatch("non-string as string"))?
                        .to_owned(),
                );
            }
        }
    }
    Ok(change)
}

fn mismatch(what: &str) -> ApiError {
    ApiError::invalid(format!("attempt to access JSON {what}"))
}

/// Members in Triton's order.
fn encode(settings: &LogSettings) -> Response {
    document(&json!({
        "log_file": settings.file,
        "log_info": settings.info,
        "log_warning": settings.warning,
        "log_error": settings.error,
        "log_verbose_level": settings.verbose_level,
        "log_format": settings.format,
    }))
}
