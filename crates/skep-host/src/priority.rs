//! Work that others go before.

use std::{
    io,
    panic::resume_unwind,
    thread::{self, Builder},
};

use rustix::process::{getpriority_process, setpriority_process};

/// Runs `act` on a new thread of this niceness (up to 19, the lowest priority), and waits for it. It needs a thread
/// because a lowered priority cannot be raised again; threads that `act` starts inherit it. Where the system refuses, or
/// the calling thread is nicer already, its priority stays.
///
/// # Errors
/// If no thread can be started.
///
/// # Panics
/// If `act` panics.
pub fn with_niceness<T: Send>(
    name: &str,
    niceness: i32,
    act: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let lowered = || {
            // On Linux both are of the calling thread only.
            let now = getpriority_process(None).unwrap_or(0);
            let _ = setpriority_process(None, niceness.max(now));
            act()
        };
        let thread = Builder::new().name(name.to_owned());
        let outcome = thread.spawn_scoped(scope, lowered)?.join();
        Ok(outcome.unwrap_or_else(|panic| resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_applies_to_one_thread_and_is_never_raised() {
        let own = || getpriority_process(None).expect("a priority");
        let before = own();
        let nested = with_niceness("nice", 12, || {
            let less = with_niceness("nicer", 7, own).expect("a thread");
            (own(), less)
        });
        assert_eq!(nested.expect("a thread"), (12, 12));
        assert_eq!(own(), before);
    }
}
