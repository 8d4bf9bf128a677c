//! When memory is given back: in the background, when it is quiet, at a limited rate.
//!
//! glibc's `malloc_trim` holds the lock of the process's one arena while it looks through it, tens of milliseconds
//! after a large model was parsed; a thread that allocates meanwhile waits that long. So nobody calls it on the way:
//! loads and unloads *ask* for it ([`give_back_freed_memory`]), and one thread does it for all who asked, [`QUIET`]
//! after the last of them, [`PATIENCE`] after the first at the latest, and [`PAUSE`] after the last time at the
//! earliest.
//!
//! The thread has the priority of any other: one that is preempted while it holds the arena's lock would keep
//! everybody. Between, it gives back large blocks that nobody needed for a [`TICK`]; while none is kept it sleeps.

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

/// A model is loaded in steps, each of which asks.
const QUIET: Duration = Duration::from_millis(100);
/// Who keeps loading models has the memory of a second's loads in the heap.
const PATIENCE: Duration = Duration::from_secs(1);
/// Trims at most as often as this.
const PAUSE: Duration = Duration::from_secs(2);
/// Blocks that nobody needed for so long are given back.
const TICK: Duration = Duration::from_secs(1);

/// What the thread is asked for.
#[derive(Debug)]
struct TrimRequest {
    /// Whether the thread runs.
    is_running: bool,
    /// The first and the last time since it was done.
    since: Option<(Instant, Instant)>,
}

static ASKED: Mutex<TrimRequest> = Mutex::new(TrimRequest {
    is_running: false,
    since: None,
});
static CHANGED: Condvar = Condvar::new();

/// Whether the thread knows that blocks are kept, or there is none to know it.
static IS_AWAKE: AtomicBool = AtomicBool::new(true);

fn asked() -> MutexGuard<'static, TrimRequest> {
    // Nothing panics while it holds this lock.
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the thread that gives memory back; to be called once, at the start of a process that serves long. Without it
/// [`give_back_freed_memory`] works where it is called.
///
/// # Errors
/// When no thread can be started.
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

/// Gives memory that was freed back to the system: small blocks at once, the others soon, where
/// [`give_back_in_background`] has started a thread for it.
///
/// Loading a model parses it into buffers that are freed afterwards, and unloading frees its weights, but glibc keeps
/// both for what may come: for a self-contained BERT the buffers alone are a third of the process. mimalloc keeps what
/// threads held that have ended, as those of an unloaded model's instances. To be called after a load and an unload.
pub fn give_back_freed_memory() {
    // What a thread that ended left can be reused by nobody else until then; no other thread is kept by this.
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

/// Called when a block is freed.
pub(crate) fn something_is_kept() {
    if !IS_AWAKE.load(Ordering::Relaxed) && !IS_AWAKE.swap(true, Ordering::Relaxed) {
        // Under the lock: the thread is either before its look at the flag or waits.
        drop(asked());
        CHANGED.notify_one();
    }
}

fn give_back_now() {
    blocks::tick(Which::All);
    system::collect_small();
    system::trim();
}

/// When what was asked for is due.
fn due((first, latest): (Instant, Instant), done: Option<Instant>) -> Instant {
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
        let trim = state.since.map(|since| due(since, done));
        let is_awake = is_kept || IS_AWAKE.load(Ordering::Relaxed);
        let next = [trim, is_awake.then_some(next_tick)];
        let next = next.into_iter().flatten().min();
        if next.is_none_or(|next| next > now) {
            let wait = next.map_or(Duration::MAX, |next| next.saturating_duration_since(now));
            drop(CHANGED.wait_timeout(state, wait));
            continue;
        }
        if trim.is_some_and(|trim| trim <= now) {
            state.since = None;
            drop(state);
            give_back_now();
            done = Some(Instant::now());
        } else {
            drop(state);
        }
        if next_tick <= now {
            // Before the look: what is freed from now on sets it again.
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
    fn what_was_asked_for_waits_for_quiet_but_not_for_ever() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        for (first, latest, done, expected) in [
            (0, 0, None, 100),
            (0, 500, None, 600),
            (0, 980, None, 1000),
            (0, 5000, None, 1000),
            // Not so soon after the last time.
            (3000, 3000, Some(2500), 4500),
            (9000, 9000, Some(2500), 9100),
        ] {
            let due = due((at(first), at(latest)), done.map(at));
            assert_eq!(due, at(expected), "{first} {latest} {done:?}");
        }
    }
}
