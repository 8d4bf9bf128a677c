//! Trace settings, of the server and of models, as both protocols show and change them.
//!
//! Texts are Triton's.

use std::sync::Arc;

use skep_runtime::ErrorKind;
use skep_tracing::{SettingChange, TraceChange, TraceLevels, TraceMode, TraceOutput};

use crate::{error::ApiError, off_reactor::off_reactor, state::ServerState};

/// The model whose settings are meant, and the version that the call names; `None` for the server's settings.
pub(crate) type TraceTarget<'a> = Option<(&'a str, Option<&'a str>)>;

/// The settings as texts: a name, and one value or, of `trace_level`, several.
pub(crate) type ShownSettings = Vec<(&'static str, Vec<String>)>;

/// The setting that is a list.
pub(crate) const LEVEL: &str = "trace_level";

/// What a call says about a setting.
pub(crate) enum GivenSetting {
    /// The value is that of the server, or of the command line.
    Cleared,
    /// Texts; one, except for [`LEVEL`].
    Values(Vec<String>),
}

/// Adds what a call says about a setting to a change. Unknown names are ignored, as on Triton.
pub(crate) fn add(
    change: &mut TraceChange,
    state: &ServerState,
    name: &str,
    given: GivenSetting,
) -> Result<(), ApiError> {
    match name {
        "trace_file" => Err(ApiError::new(
            ErrorKind::Unsupported,
            "trace file location can not be updated through network protocol",
        )),
        LEVEL => {
            change.levels = setting(given, |values| levels(&values))?;
            Ok(())
        }
        "trace_rate" => {
            change.rate = setting(given, |values| unsigned(name, &one(name, values)?))?;
            Ok(())
        }
        "trace_count" => {
            change.count = setting(given, |values| count(name, &one(name, values)?))?;
            Ok(())
        }
        "log_frequency" => {
            change.log_frequency = setting(given, |values| unsigned(name, &one(name, values)?))?;
            let is_set = matches!(change.log_frequency, SettingChange::Set(_));
            if is_set && state.traces.mode() == TraceMode::OpenTelemetry {
                return Err(ApiError::invalid(
                    "'log_frequency' is a setting of mode triton, and the server's mode is opentelemetry",
                ));
            }
            Ok(())
        }
        "trace_mode" => match given {
            GivenSetting::Values(values) if values != [state.traces.mode().to_string()] => {
                Err(ApiError::new(
                    ErrorKind::Unsupported,
                    "trace mode can not be updated through network protocol",
                ))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn setting<T>(
    given: GivenSetting,
    read: impl FnOnce(Vec<String>) -> Result<T, ApiError>,
) -> Result<SettingChange<T>, ApiError> {
    match given {
        GivenSetting::Cleared => Ok(SettingChange::Clear),
        GivenSetting::Values(values) => read(values).map(SettingChange::Set),
    }
}

fn one(name: &str, values: Vec<String>) -> Result<String, ApiError> {
    <[String; 1]>::try_from(values)
        .map(|[value]| value)
        .map_err(|_| ApiError::invalid(format!("expect only 1 value for '{name}'")))
}

fn levels(names: &[String]) -> Result<TraceLevels, ApiError> {
    if names.len() > 1 && names.iter().any(|name| name == "OFF") {
        return Err(ApiError::invalid(
            "Expect only one trace level 'OFF' is specified",
        ));
    }
    names.iter().try_fold(TraceLevels::OFF, |levels, name| {
        levels.with(name).ok_or_else(|| {
            ApiError::invalid(format!(
                "unknown trace level '{name}', expected OFF, TIMESTAMPS or TENSORS"
            ))
        })
    })
}

fn unsigned(name: &str, text: &str) -> Result<u32, ApiError> {
    let number = integer(name, text)?;
    u32::try_from(number).map_err(|_| out_of_range(name, 0, u32::MAX.into(), text))
}

/// -1 is for no bound.
fn count(name: &str, text: &str) -> Result<Option<u32>, ApiError> {
    match integer(name, text)? {
        -1 => Ok(None),
        number => i32::try_from(number)
            .ok()
            .and_then(|number| u32::try_from(number).ok())
            .map(Some)
            .ok_or_else(|| out_of_range(name, -1, i32::MAX.into(), text)),
    }
}

fn integer(name: &str, text: &str) -> Result<i64, ApiError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        let text = format!("Unable to parse '{name}', got: {text}");
        return Err(ApiError::invalid(text));
    }
    // What does not parse now is out of any range.
    Ok(text.parse().unwrap_or(i64::MAX))
}

fn out_of_range(name: &str, least: i64, most: i64, text: &str) -> ApiError {
    ApiError::invalid(format!(
        "Unable to parse '{name}', value is out of range [ {least} , {most} ], got: {text}"
    ))
}

/// Makes sure that a model is known.
fn check(state: &ServerState, target: TraceTarget<'_>) -> Result<(), ApiError> {
    let Some((model, version)) = target else {
        return Ok(());
    };
    match state.runtime.resolve(model, version) {
        Ok(_) => Ok(()),
        Err(_) if state.runtime.loads_on_request(model, version) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The settings in Triton's order.
pub(crate) fn show(
    state: &ServerState,
    target: TraceTarget<'_>,
) -> Result<ShownSettings, ApiError> {
    check(state, target)?;
    let settings = state.traces.settings(target.map(|(model, _)| model));
    let names = settings.levels.names().into_iter();
    let count = settings.count.map_or(-1, i64::from);
    let mut shown = vec![
        (LEVEL, names.map(str::to_owned).collect()),
        ("trace_rate", vec![settings.rate.to_string()]),
        ("trace_count", vec![count.to_string()]),
    ];
    let mut put = |name, value: String| shown.push((name, vec![value]));
    match state.traces.output() {
        TraceOutput::File(path) => {
            let path = path.as_ref();
            put("log_frequency", settings.log_frequency.to_string());
            put(
                "trace_file",
                path.map_or_else(String::new, |path| path.display().to_string()),
            );
            put("trace_mode", state.traces.mode().to_string());
        }
        TraceOutput::Collector(collector) => {
            put("trace_mode", state.traces.mode().to_string());
            put("bsp_max_queue_size", collector.queue_size.to_string());
            let delay_ms = collector.schedule_delay.as_millis();
            put("bsp_schedule_delay", delay_ms.to_string());
            put(
                "bsp_max_export_batch_size",
                collector.batch_size.to_string(),
            );
            put("url", collector.url.to_string());
        }
    }
    Ok(shown)
}

/// Makes a change, and shows the settings then. Traces that ended before are in their file on return.
pub(crate) async fn change(
    state: &Arc<ServerState>,
    target: TraceTarget<'_>,
    change: TraceChange,
) -> Result<ShownSettings, ApiError> {
    check(state, target)?;
    let traces = Arc::clone(&state.traces);
    let model = target.map(|(model, _)| model.to_owned());
    let changed = off_reactor(move || traces.change(model.as_deref(), &change)).await?;
    changed.map_err(|reason| {
        ApiError::invalid(format!("Attempting to set invalid trace setting :{reason}"))
    })?;
    show(state, target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal<T: std::fmt::Debug>(outcome: Result<T, ApiError>) -> String {
        let status = tonic::Status::from(outcome.expect_err("refused"));
        status.message().to_owned()
    }

    #[test]
    fn numbers_are_refused_in_tritons_words() {
        assert_eq!(unsigned("trace_rate", "7").ok(), Some(7));
        assert_eq!(count("trace_count", "-1").ok(), Some(None));
        assert_eq!(count("trace_count", "5").ok(), Some(Some(5)));
        for (text, expected) in [
            ("x", "Unable to parse 'trace_rate', got: x"),
            ("", "Unable to parse 'trace_rate', got: "),
            (
                "-1",
                "Unable to parse 'trace_rate', value is out of range [ 0 , 4294967295 ], got: -1",
            ),
            (
                "99999999999999999999",
                "Unable to parse 'trace_rate', value is out of range [ 0 , 4294967295 ], got: 99999999999999999999",
            ),
        ] {
            assert_eq!(refusal(unsigned("trace_rate", text)), expected);
        }
        assert_eq!(
            refusal(count("trace_count", "-2")),
            "Unable to parse 'trace_count', value is out of range [ -1 , 2147483647 ], got: -2"
        );
        let two = vec!["1".to_owned(), "2".to_owned()];
        assert_eq!(
            refusal(one("trace_rate", two)),
            "expect only 1 value for 'trace_rate'"
        );
    }

    #[test]
    fn off_stands_alone() {
        let names = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(levels(&names(&["OFF"])).ok(), Some(TraceLevels::OFF));
        let both = levels(&names(&["TENSORS", "TIMESTAMPS"])).expect("known");
        assert_eq!(both.names(), ["TIMESTAMPS", "TENSORS"]);
        assert_eq!(
            refusal(levels(&names(&["OFF", "TIMESTAMPS"]))),
            "Expect only one trace level 'OFF' is specified"
        );
        assert!(refusal(levels(&names(&["ALL"]))).contains("unknown trace level 'ALL'"));
    }
}
