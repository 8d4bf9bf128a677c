//! The version that a request goes to. If its model is not in memory, the request waits for it, as long as its `timeout`
//! says.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Deserialize;
use skep_runtime::LoadedVersion;

use super::{extract::ModelPath, infer::MAX_INLINE_JSON_BYTES};
use crate::{error::ApiError, inference, off_reactor::off_reactor, state::ServerState};

/// The version for an inference whose body begins with so many bytes of JSON.
///
/// JSON is decoded with the version's configuration. So its `timeout` is read ahead, and only if the model has to be
/// loaded.
pub(super) async fn acquire(
    state: &ServerState,
    path: &ModelPath,
    body: &Bytes,
    json_bytes: usize,
) -> Result<Arc<LoadedVersion>, ApiError> {
    let (runtime, version) = (&state.runtime, path.version.as_deref());
    // Before anything that takes residency's lock, which all models share.
    if let Ok(loaded) = runtime.resolve(&path.model, version) {
        return Ok(loaded);
    }
    let json = body.slice(..json_bytes.min(body.len()));
    let timeout = match runtime.loads_on_request(&path.model, version) {
        false => None,
        true if json.len() <= MAX_INLINE_JSON_BYTES => timeout(&json),
        true => off_reactor(move || timeout(&json)).await?,
    };
    Ok(runtime.acquire(&path.model, version, timeout).await?)
}

/// `timeout` among the parameters, or, for a generate request, among the members. JSON that is not as it should be has
/// none: its error comes later.
fn timeout(json: &[u8]) -> Option<Duration> {
    #[derive(Default, Deserialize)]
    struct Ahead {
        timeout: Option<u64>,
    }
    #[derive(Deserialize)]
    struct RequestAhead {
        #[serde(default)]
        parameters: Option<Ahead>,
        #[serde(default)]
        timeout: Option<u64>,
    }
    let ahead: RequestAhead = serde_json::from_slice(json).ok()?;
    let micros = ahead.parameters.unwrap_or_default().timeout;
    inference::timeout(micros.or(ahead.timeout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_read_ahead() {
        let second = Some(Duration::from_secs(1));
        for (json, expected) in [
            (r#"{"parameters":{"timeout":1000000},"inputs":[]}"#, second),
            (r#"{"text":"a","timeout":1000000}"#, second),
            (
                r#"{"timeout":5,"parameters":{"a":[1],"timeout":1000000}}"#,
                second,
            ),
            (r#"{"parameters":{"timeout":0}}"#, None),
            (r#"{"parameters":{}}"#, None),
            (r#"{"inputs":[]}"#, None),
            (r#"{"parameters":{"timeout":"1"}}"#, None),
            ("[", None),
        ] {
            assert_eq!(timeout(json.as_bytes()), expected, "{json}");
        }
    }
}
