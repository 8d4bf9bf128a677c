//! `docs/model-parameters.md`, written from the table of keys.

use std::fmt::Write as _;

use super::table::{PARAMETERS, ParameterEffect};

/// `docs/model-parameters.md`, written from [`PARAMETERS`].
#[must_use]
pub fn parameters_markdown() -> String {
    let mut page = String::from(
        "# Keys of `parameters`\n\n\
         <!-- Written from the table in crates/skep-config/src/parameters/table.rs: change that, then run\n\
         SKEP_UPDATE_DOCS=1 cargo test -p skep-config. -->\n\n\
         Every value is a string:\n\n\
         ```text\n\
         parameters { key: \"max_queue_size\" value { string_value: \"100\" } }\n\
         ```\n\n\
         A value that its key does not allow fails the load. A key that is nearly one of these (`slo_latency`,\n\
         `SLO_LATENCY_MS`, `max_latency_ms`) gets a warning that names the right one. Any other key is yours: Skep keeps\n\
         it and does nothing else with it. A key written as a field of `config.pbtxt` is an unknown field; the error shows\n\
         the form above.\n\n\
         | key | value | default | meaning | effect |\n|---|---|---|---|---|\n",
    );
    for spec in PARAMETERS {
        let default = if spec.default.is_empty() {
            "none".to_owned()
        } else {
            format!("`{}`", spec.default)
        };
        let effect = match spec.effect {
            ParameterEffect::Honoured => "honoured".to_owned(),
            ParameterEffect::HonouredBy(backends) => {
                format!("honoured by `{}`", backends.join("`, `"))
            }
            ParameterEffect::None(why) => format!("accepted, no effect: {why}"),
            ParameterEffect::Unsupported => "refused: not supported yet".to_owned(),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            page,
            "| `{}` | {} | {default} | {} | {effect} |",
            spec.key,
            spec.value.describe(),
            spec.meaning
        );
    }
    page
}
