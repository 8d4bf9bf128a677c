//! What a process gives up where memory is short: what is kept only in case it is wanted again, and, where next to
//! nothing is left, a run that goes on and on.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use skep_host::{Memory, PressureWatch};
use skep_store::{Reliever, Store};

use crate::units::human;

/// What is kept goes step by step, a step in so long at most.
const STEP: Duration = Duration::from_secs(1);

/// When the last step was.
#[derive(Default)]
struct Steps(Option<Instant>);

impl Steps {
    /// Whether it is time for the next one, which begins then.
    fn is_next(&mut self) -> bool {
        let is_next = self.0.is_none_or(|last| last.elapsed() >= STEP);
        if is_next {
            self.0 = Some(Instant::now());
        }
        is_next
    }
}

/// Looks after a server until this is dropped. Kept sessions go first: they hold weights.
pub(crate) fn watch_server(store: Option<Store>) -> Option<PressureWatch> {
    let mut steps = Steps::default();
    start(move |left| {
        if steps.is_next() {
            let sessions = skep_backend_onnxruntime::give_up_kept_sessions();
            let bytes = store.as_ref().map_or(0, Store::relieve);
            if sessions > 0 || bytes > 0 {
                tracing::warn!("memory is short: {}", gave_up(sessions, bytes));
                return;
            }
        }
        if left.is_all_but_gone()
            && let Some(ran) = skep_runtime::end_longest_run()
        {
            tracing::warn!(
                "memory is nearly exhausted ({} left): ended the longest execution after {} ms",
                human(left.available),
                ran.as_millis()
            );
        }
    })
}

/// Looks after a node's store until this is dropped.
pub(crate) fn watch_store(reliever: Reliever) -> Option<PressureWatch> {
    let mut steps = Steps::default();
    start(move |_| {
        if !steps.is_next() {
            return;
        }
        let bytes = reliever.relieve();
        if bytes > 0 {
            // The reader may be gone.
            let _ = writeln!(io::stdout(), "memory is short: {}", gave_up(0, bytes));
        }
    })
}

fn start(relieve: impl FnMut(Memory) + Send + 'static) -> Option<PressureWatch> {
    let started = PressureWatch::start(relieve);
    started
        .inspect_err(|error| tracing::warn!("cannot watch memory pressure: {error}"))
        .ok()
}

fn gave_up(sessions: usize, bytes: u64) -> String {
    let weights = format!("{} of idle weights", human(bytes));
    match sessions {
        0 => format!("dropped {weights}"),
        _ => format!("dropped {weights} and {sessions} idle sessions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_said() {
        assert_eq!(gave_up(0, 5 << 20), "dropped 5.00 MiB of idle weights");
        assert_eq!(
            gave_up(2, 0),
            "dropped 0 B of idle weights and 2 idle sessions"
        );
    }
}
