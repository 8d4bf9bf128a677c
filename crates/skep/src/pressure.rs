//! What a process that keeps weights gives up where memory is short: what is kept only in case it is wanted again.

use std::io::{self, Write};

use skep_host::PressureWatch;
use skep_store::{Reliever, Store};

use crate::units::human;

/// Looks after a server until this is dropped. Kept sessions go first: they hold weights.
pub(crate) fn watch_server(store: Store) -> Option<PressureWatch> {
    start(move || {
        let sessions = skep_backend_onnxruntime::give_up_kept_sessions();
        let bytes = store.relieve();
        if sessions > 0 || bytes > 0 {
            tracing::warn!("memory is short: {}", gave_up(sessions, bytes));
        }
    })
}

/// Looks after a node's store until this is dropped.
pub(crate) fn watch_store(reliever: Reliever) -> Option<PressureWatch> {
    start(move || {
        let bytes = reliever.relieve();
        if bytes > 0 {
            // Whoever read that may be gone.
            let _ = writeln!(io::stdout(), "memory is short: {}", gave_up(0, bytes));
        }
    })
}

fn start(relieve: impl FnMut() + Send + 'static) -> Option<PressureWatch> {
    let started = PressureWatch::start(relieve);
    started
        .inspect_err(|error| tracing::warn!("pressure on memory is not watched: {error}"))
        .ok()
}

fn gave_up(sessions: usize, bytes: u64) -> String {
    let weights = format!("{} of idle weights", human(bytes));
    match sessions {
        0 => format!("{weights} were given up"),
        _ => format!("{weights} and {sessions} idle sessions were given up"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_said() {
        assert_eq!(
            gave_up(0, 5 << 20),
            "5.00 MiB of idle weights were given up"
        );
        assert_eq!(
            gave_up(2, 0),
            "0 B of idle weights and 2 idle sessions were given up"
        );
    }
}
