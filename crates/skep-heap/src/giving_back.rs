//! Gives memory back in the background, when loading is quiet, at a limited rate.
//!
//! glibc's `malloc_trim` holds the lock of the process's one arena while it searches it, tens of milliseconds after a
//! large model was parsed; a thread that allocates meanwhile waits that long. So loads and unloads do not call it, but
//! *ask* for it ([`give_back_freed_memory`]). One thread serves all requests together: [`QUIET`] after the last one, at
//! the latest [`PATIENCE`] after the first, and at the earliest [`PAUSE`] after the last trim.
//!
//! The thread has normal priority: if it were preempted while it holds the arena's lock, all others would wait. It also
//! gives back large blocks that were not needed for a [`TICK`], and sleeps while none is kept.

use std::{
    io,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    blocks::{self, KEPT_WITH_TICKS, Which},
    system,
};

/// A load has several steps, each of which asks.
const QUIET: Duration = Duration::from_millis(100);
/// Even if models are loaded all the time, the heap holds no more than a second's loads.
const PATIENCE: Duration = Duration::from_secs(1);
/// The shortest time between two trims.
const PAUSE: Duration = Duration::from_secs(2);
/// The same while something waits for memory.
const URGENT_PAUSE: Duration = Duration::from_millis(250);
/// Blocks that were not needed for this long are given back.
const TICK: Duration = Duration::from_secs(1);

/// The pending requests to the thread.
#[derive(Debug)]
struct TrimRequest {
    /// Whether the thread runs.
    is_running: bool,
    /// The first and the last request since the last trim.
    since: Option<(Instant, Instant)>,
    /// Whether something waits for the memory of the first one.
    is_urgent: bool,
}

static ASKED: Mutex<TrimRequest> = Mutex::new(TrimRequest {
    is_running: false,
    since: None,
    is_urgent: false,
});
static CHANGED: Condvar = Condvar::new();

/// Whether the thread knows that blocks are kept. True without a thread.
static IS_AWAKE: AtomicBool = AtomicBool::new(true);

fn asked() -> MutexGuard<'static, TrimRequest> {
    // No code panics while it holds this lock.
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that gives memory back. Call it once, at the start of a long-running process. Without it,
/// [`give_back_freed_memory`] works on the calling thread.
///
/// # Errors
/// If the thread cannot be started.
pub fn give_back_in_background() -> io::Result<()> {
    let mut asked = asked();
    if asked.is_running {
        return Ok(());
    }
    thread::Builder::new()
        .name("giving-back".to_owned())
        .spawn(run)?;
    asked.is_running = true;
    blocks::keep_at_most(KEPT_WITH_TICKS);
    Ok(())
}

/// Returns freed memory to the system: small blocks at once, others soon, if [`give_back_in_background`] has started
/// the thread. Call it after a load and an unload.
///
/// A load parses the model into buffers and frees them, an unload frees weights, but glibc keeps both: for a
/// self-contained BERT the buffers alone are a third of the process. mimalloc keeps what ended threads held, such as
/// those of an unloaded model's instances.
pub fn give_back_freed_memory() {
    // Before this call, no other thread can use what an ended thread left. It blocks no other thread.
    system::collect_small();
    let mut asked = asked();
    if !asked.is_running {
        drop(asked);
        give_back_now();
        return;
    }
    let now = Instant::now();
    let first = asked.since.map_or(now, |(first, _)| first);
    asked.since = Some((first, now));
    drop(asked);
    CHANGED.notify_one();
}

/// Returns freed memory that the heap still keeps from an earlier call of [`give_back_freed_memory`], because something
/// waits for it. Does nothing if all was returned since.
pub fn hurry_giving_back() {
    let mut asked = asked();
    if asked.since.is_some() && !asked.is_urgent {
        asked.is_urgent = true;
        drop(asked);
        CHANGED.notify_one();
    }
}

/// Tells the thread that a block was kept.
pub(crate) fn something_is_kept() {
    if !IS_AWAKE.load(Ordering::Relaxed) && !IS_AWAKE.swap(true, Ordering::Relaxed) {
        // Under the lock, the thread either has yet to read the flag, or waits.
        drop(asked());
        CHANGED.notify_one();
    }
}

fn give_back_now() {
    blocks::tick(Which::All);
    system::collect_small();
    system::trim();
}

/// When a trim is due, given the first and the latest request and the last trim.
fn due((first, latest): (Instant, Instant), is_urgent: bool, done: Option<Instant>) -> Instant {
    if is_urgent {
        return done.map_or(first, |done| first.max(done + URGENT_PAUSE));
    }
    let quiet = (latest + QUIET).min(first + PATIENCE);
    done.map_or(quiet, |done| quiet.max(done + PAUSE))
}

fn run() {
    let mut done = None;
    let mut next_tick = Instant::now() + TICK;
    let mut is_kept = true;
    loop {
        let now = Instant::now();
        let mut state = asked();
        let trim = state.since.map(|since| due(since, state.is_urgent, done));
        let is_awake = is_kept || IS_AWAKE.load(Ordering::Relaxed);
        let next = [trim, is_awake.then_some(next_tick)];
        let next = next.into_iter().flatten().min();
        if next.is_none_or(|next| next > now) {
            let wait = next.map_or(Duration::MAX, |next| next.saturating_duration_since(now));
            drop(CHANGED.wait_timeout(state, wait));
            continue;
        }
        if trim.is_some_and(|trim| trim <= now) {
            (state.since, state.is_urgent) = (None, false);
            drop(state);
            give_back_now();
            done = Some(Instant::now());
        } else {
            drop(state);
        }
        if next_tick <= now {
            // Cleared first: a block that is freed from now on sets it again.
            IS_AWAKE.store(false, Ordering::Relaxed);
            is_kept = blocks::tick(Which::Idle) > 0;
            next_tick = Instant::now() + TICK;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trim_waits_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for (first, latest, done, expected) in [
            (0, 0, None, 100),
            (0, 500, None, 600),
            (0, 980, None, 1000),
            (0, 5000, None, 1000),
            // Not too soon after the last trim.
            (3000, 3000, Some(2500), 4500),
            (9000, 9000, Some(2500), 9100),
        ] {
            let due = due((at(first), at(latest)), false, done.map(at));
            assert_eq!(due, at(expected), "{first} {latest} {done:?}");
        }
        // Something waits for it.
        let urgent = |done: Option<u64>| due((at(3000), at(3500)), true, done.map(at));
        assert_eq!(urgent(None), at(3000));
        assert_eq!(urgent(Some(2900)), at(3150));
    }
}
