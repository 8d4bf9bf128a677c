//! The end of a server: signals, and a watch that ends the process in time whatever hangs.
//!
//! ```text
//! first signal   -> the watch counts from here; the server stops by itself, as a rule long before
//! second signal  -> the watch ends the process at once; the same one within [`SAME_SIGNAL`] counts as the first
//! time over      -> the watch ends the process
//! ```
//!
//! Neither of the two threads does anything that can wait for others. A backend may be stuck in a load or a run, all
//! threads of the reactor may be blocked in writing a log without a reader, exit handlers of a library may wait for
//! its threads: the process ends. What it says last is written by a third thread, which the watch gives [`LAST_WORDS`].

use std::{
    io,
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use skep_runtime::Runtime;
use tokio::sync::oneshot;

use super::reload::Reload;
use crate::signals::{SignalMeaning, Signals};

/// How long the last log line and the removal of temporary files may take: the log may be a pipe that is full.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The first signal again, so soon after it, is one signal sent twice: `timeout` signals its child, and then the group
/// that the child is in.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// The least time for a stop, where none was given: what ends by itself should.
const LEAST: Duration = Duration::from_millis(500);

/// How much of the time the server leaves for saying what it gave up: a tenth, but no more than this.
const RESERVE: Duration = Duration::from_secs(1);

/// The time that the server itself has, of all that a stop may take.
pub(super) fn servers_share(exit_timeout: Duration) -> Duration {
    exit_timeout - (exit_timeout / 10).min(RESERVE)
}

/// What the watch is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopEvent {
    /// A stop began without a signal.
    Count,
    /// A signal of this name came: the first one begins a stop.
    Signal(&'static str),
}

/// Tells the watch that a stop began.
#[derive(Debug, Clone)]
pub(super) struct StopWatch(mpsc::SyncSender<StopEvent>);

impl StopWatch {
    /// Counts from now, unless a signal came before.
    pub(super) fn stop_begins(&self) {
        self.tell(StopEvent::Count);
    }

    fn tell(&self, event: StopEvent) {
        // Two events are all that the watch waits for.
        let _ = self.0.try_send(event);
    }
}

/// Listens to signals from now on. The first signal that asks for a stop begins one, which is then watched: its name
/// comes through the channel.
pub(super) fn watch(
    runtime: &Arc<Runtime>,
    exit_timeout: Duration,
    reload: Reload,
) -> io::Result<(StopWatch, oneshot::Receiver<&'static str>)> {
    let (events, told) = mpsc::sync_channel(2);
    let watch = StopWatch(events);
    let watched = Arc::clone(runtime);
    thread::Builder::new()
        .name("exit-watch".to_owned())
        .spawn(move || count(&watched, exit_timeout, &told))?;
    let (first, received) = oneshot::channel();
    let (ready, is_ready) = mpsc::sync_channel(1);
    let telling = watch.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || listen(&telling, &reload, first, &ready))?;
    is_ready
        .recv()
        .unwrap_or_else(|_| Err(io::Error::other("the thread for signals ended")))?;
    Ok((watch, received))
}

/// Passes signals on. A reactor of its own: the server's may be what does not answer any more.
fn listen(
    watch: &StopWatch,
    reload: &Reload,
    first: oneshot::Sender<&'static str>,
    ready: &mpsc::SyncSender<io::Result<()>>,
) {
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build();
    let outcome = reactor.and_then(|reactor| {
        let signals = reactor.block_on(async { Signals::new() })?;
        Ok((reactor, signals))
    });
    let (reactor, mut signals) = match outcome {
        Ok(listening) => listening,
        Err(error) => {
            drop(ready.send(Err(error)));
            return;
        }
    };
    drop(ready.send(Ok(())));
    reactor.block_on(async {
        let mut first = Some(first);
        loop {
            let (name, asked) = signals.next().await;
            match asked {
                SignalMeaning::Stop => {}
                SignalMeaning::Reload => {
                    reload.begin(name);
                    continue;
                }
                SignalMeaning::Nothing => {
                    ignored(name);
                    continue;
                }
            }
            watch.tell(StopEvent::Signal(name));
            if let Some(first) = first.take() {
                let _ = first.send(name);
            }
        }
    });
}

/// Logs that a signal was ignored, on a thread of its own, since the log may have no reader.
fn ignored(name: &'static str) {
    let say = move || {
        tracing::info!("ignored {name}; SIGTERM stops the server");
    };
    // Without a thread the line is lost, which does no harm.
    drop(thread::Builder::new().name("signal".to_owned()).spawn(say));
}

/// Waits for a stop, and then for its end: the time, or a signal.
fn count(runtime: &Arc<Runtime>, exit_timeout: Duration, events: &mpsc::Receiver<StopEvent>) {
    let Ok(event) = events.recv() else {
        return;
    };
    let began = Instant::now();
    // None if the stop began without a signal: one that is sent then is meant.
    let first_signal = match event {
        StopEvent::Signal(name) => Some((name, began)),
        StopEvent::Count => None,
    };
    // A deadline that cannot be represented means no deadline.
    let deadline = began.checked_add(exit_timeout.max(LEAST));
    loop {
        let left = deadline.map_or(Duration::MAX, |end| {
            end.saturating_duration_since(Instant::now())
        });
        match events.recv_timeout(left) {
            Ok(StopEvent::Count) => {}
            Ok(StopEvent::Signal(name)) if is_same(first_signal, (name, Instant::now())) => {}
            Ok(StopEvent::Signal(name)) => end(runtime, move |_| {
                tracing::error!("received {name} again, stopping at once");
            }),
            Err(RecvTimeoutError::Timeout) => end(runtime, move |runtime| {
                let (versions, calls) = runtime.left_at_stop();
                tracing::error!(
                    "stopped at the end of the {} s that a stop may take, with {versions} model versions and {calls} loads or unloads still running",
                    exit_timeout.as_secs()
                );
            }),
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Whether a signal that comes now is the first one, sent twice.
fn is_same(first: Option<(&str, Instant)>, (name, now): (&str, Instant)) -> bool {
    first
        .is_some_and(|(first, at)| first == name && now.saturating_duration_since(at) < SAME_SIGNAL)
}

/// Ends the process, which says something last if it can.
fn end(runtime: &Arc<Runtime>, last_words: impl FnOnce(&Runtime) + Send + 'static) -> ! {
    let (said, done) = mpsc::sync_channel(1);
    let runtime = Arc::clone(runtime);
    let speaking = thread::Builder::new().spawn(move || {
        runtime.remove_temporary_files();
        last_words(&runtime);
        let _ = said.send(());
    });
    if speaking.is_ok() {
        let _ = done.recv_timeout(LAST_WORDS);
    }
    skep_host::end_process(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_sent_twice_at_once_is_one() {
        let first = Instant::now();
        for (millis, expected) in [
            (0, true),
            (1, true),
            (249, true),
            (250, false),
            (5000, false),
        ] {
            let now = first + Duration::from_millis(millis);
            let is_same = is_same(Some(("SIGTERM", first)), ("SIGTERM", now));
            assert_eq!(is_same, expected, "{millis} ms");
        }
        let second = ("SIGINT", first);
        assert!(!is_same(Some(("SIGTERM", first)), second), "another one");
        assert!(!is_same(None, second), "a stop that began without a signal");
    }

    #[test]
    fn the_server_keeps_some_of_the_time_back() {
        for (millis, expected) in [(0, 0), (1000, 900), (30_000, 29_000)] {
            let share = servers_share(Duration::from_millis(millis));
            assert_eq!(share, Duration::from_millis(expected), "{millis} ms");
        }
        // Too far to be a point in time, and still a duration.
        assert!(servers_share(Duration::from_secs(u64::MAX)) > Duration::from_secs(1 << 60));
    }
}
