//! The library's telemetry, which is off unless the user asks for it.
//!
//! From version 1.31 on, the library keeps a device id and a database of events under the user's cache directory, and
//! sends them to its vendor. It reads `ORT_DISABLE_TELEMETRY` when it is opened. Its C API can switch events off only
//! later, when the files exist. So Skep sets the variable first, and uses the API's switch as well.

use std::env;

/// The library's own variable. `1`, `true`, `yes` and `on` switch telemetry off; any other value, even an empty one,
/// leaves it on.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Switches the library's telemetry off for this process and its children, unless the user set the variable to `0` or
/// `false`. Call it first in `main`, while the process has one thread.
///
/// Returns whether telemetry is off, or the user asked for it. Without `/proc` neither is certain: then only the
/// API's switch works, after the library has made its files.
pub fn switch_off_telemetry() -> bool {
    is_asked_for() || skep_host::set_variable_before_threads(VARIABLE, "1")
}

/// Whether the user asked for telemetry.
pub(crate) fn is_asked_for() -> bool {
    env::var(VARIABLE).is_ok_and(|value| matches!(value.as_str(), "0" | "false"))
}
