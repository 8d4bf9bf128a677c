//! The library's telemetry, which is off unless somebody asks for it.
//!
//! From version 1.31 on the library keeps a device id and a database of events under the user's cache directory, and sends
//! them to its maker. It reads `ORT_DISABLE_TELEMETRY` when it is opened; its C API can switch events off only after that, when the
//! files exist. So the variable is set first, and the API's switch is used as well.

use std::env;

/// The library's own variable: any value but `0` or `false` switches its telemetry off.
const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";

/// Switches the library's telemetry off for this process and its children. Call it first in `main`, while the process has
/// one thread. A variable that is set already is left alone: `0` asks for telemetry.
///
/// Returns whether the variable is set now. It is not without `/proc`; then only the API's switch works, which comes after
/// the library has made its files.
pub fn switch_off_telemetry() -> bool {
    env::var_os(VARIABLE).is_some() || skep_host::set_variable_before_threads(VARIABLE, "1")
}

/// Whether the user asked for telemetry.
pub(crate) fn is_asked_for() -> bool {
    env::var(VARIABLE).is_ok_and(|value| matches!(value.as_str(), "0" | "false"))
}
