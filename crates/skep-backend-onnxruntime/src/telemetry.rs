//! The library's telemetry, which is off unless somebody asks for it.
//!
//! From version 1.31 on the library keeps a device id and a database of events under the user's cache directory, and sends
//! them to its maker. It reads `ORT_DISABLE_TELEMETRY` when it is opened; its C API can switch events off only after that, when the
//! files exist. So the variable is set first, and the API's switch is used as well.

use std::env;

/// The library's own variable. It takes `1`, `true`, `yes` and `on` for off, and any other value, the empty one too, for on.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Switches the library's telemetry off for this process and its children, unless the variable is `0` or `false`, which ask
/// for it. Call it first in `main`, while the process has one thread.
///
/// Returns whether telemetry is off, or was asked for. It is neither without `/proc`; then only the API's switch works, which
/// comes after the library has made its files.
pub fn switch_off_telemetry() -> bool {
    is_asked_for() || skep_host::set_variable_before_threads(VARIABLE, "1")
}

/// Whether the user asked for telemetry.
pub(crate) fn is_asked_for() -> bool {
    env::var(VARIABLE).is_ok_and(|value| matches!(value.as_str(), "0" | "false"))
}
