//! Notices that the daemon is gone, and hands what this process holds to the next one.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, Weak},
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{DaemonClient, hold::HeldTensors, link::DaemonLink};

/// The pause after the first failed attempt to reach a daemon; it doubles up to the longest. Both are well within the
/// time that a new daemon waits for tensors to be handed back.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// A thread that watches the connections of leases. The first lease starts it.
#[derive(Debug)]
pub(super) struct LeaseKeeper {
    client: Weak<DaemonClient>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    holds: Vec<Weak<HeldTensors>>,
    /// Wakes the thread, which ends when this is dropped.
    wake: Option<UnixStream>,
}

impl LeaseKeeper {
    pub(super) fn new(client: Weak<DaemonClient>) -> Self {
        Self {
            client,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        skep_host::lock(&self.state)
    }

    /// Watches a lease's connection from now on. Without a thread for it, the lease stays valid when the daemon dies,
    /// but the next daemon never learns of it.
    pub(super) fn keep(&self, hold: &Arc<HeldTensors>) {
        let mut state = self.state();
        state.holds.retain(|hold| hold.strong_count() > 0);
        state.holds.push(Arc::downgrade(hold));
        if state.wake.is_none() {
            state.wake = self.start();
        }
        if let Some(mut wake) = state.wake.as_ref() {
            // A full socket wakes the thread as well.
            let _ = wake.write(&[0]);
        }
    }

    fn start(&self) -> Option<UnixStream> {
        let (wake, woken) = UnixStream::pair().ok()?;
        wake.set_nonblocking(true).ok()?;
        woken.set_nonblocking(true).ok()?;
        let client = self.client.clone();
        thread::Builder::new()
            .name("store keeper".to_owned())
            .spawn(move || watch(&client, &woken))
            .ok()?;
        Some(wake)
    }

    fn holds(&self) -> Vec<Arc<HeldTensors>> {
        self.state()
            .holds
            .iter()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

fn watch(client: &Weak<DaemonClient>, woken: &UnixStream) {
    let mut wait = None;
    loop {
        let Some(client) = client.upgrade() else {
            return;
        };
        let (links, any_lost) = connections(&client);
        drop(client);
        wait = match (any_lost, wait) {
            (false, _) => None,
            (true, None) => Some(FIRST_WAIT),
            (true, Some(wait)) => Some(LONGEST_WAIT.min(2 * wait)),
        };
        if !wait_for_news(&links, woken, wait) {
            return;
        }
    }
}

/// Connects again where a connection was lost. Returns the live ones, and whether any is still lost.
fn connections(client: &DaemonClient) -> (Vec<Arc<DaemonLink>>, bool) {
    let mut links = Vec::new();
    let mut any_lost = false;
    for hold in client.keeper.holds() {
        let link = hold.link();
        if !link.is_lost() {
            links.push(link);
        } else if let Ok(link) = hold.reconnect() {
            links.push(link);
        } else {
            any_lost = true;
        }
    }
    (links, any_lost)
}

/// Waits until a connection ends or a lease is new. False if the client is gone.
fn wait_for_news(
    links: &[Arc<DaemonLink>],
    mut woken: &UnixStream,
    wait: Option<Duration>,
) -> bool {
    let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
    let mut watched: Vec<PollFd<'_>> = links
        .iter()
        .map(|link| PollFd::new(link.stream(), PollFlags::IN | PollFlags::RDHUP))
        .collect();
    watched.push(PollFd::new(woken, PollFlags::IN));
    if poll(&mut watched, timeout.as_ref()).is_err() {
        // Interrupted.
        return true;
    }
    for (link, watched) in links.iter().zip(&watched) {
        // Nothing is sent on a lease's connection, so any event is its end.
        if !watched.revents().is_empty() {
            link.lose();
        }
    }
    let mut bytes = [0; 64];
    !matches!(woken.read(&mut bytes), Ok(0))
}
