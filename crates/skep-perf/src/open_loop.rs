//! An open loop: requests are sent at their moments, whatever became of the others.

use std::{
    io,
    num::NonZeroU64,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use skep_client::{Client, Error, InferRequest, StatusMeaning};
use tokio::{sync::mpsc, task::JoinSet};

/// Moments that have come while the sender was busy; beyond that they wait with the thread that counts them.
const BACKLOG: usize = 1024;

/// How an open loop sends.
#[derive(Debug, Clone, Copy)]
pub struct OpenLoop {
    /// Connections that the requests are spread over, at least 1.
    pub connections: usize,
    /// How long after the last moment answers are waited for.
    pub patience: Duration,
}

/// A request of an open loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// How long after its moment the sender came to it.
    pub late: Duration,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a request that was sent at its moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Answered, this long after its moment.
    Answered(Duration),
    /// The server said that it cannot serve it now.
    Refused,
    /// There was no answer when patience ended.
    Unanswered,
}

/// Why an open loop ended early.
#[derive(Debug, thiserror::Error)]
pub enum OpenLoopError {
    /// The thread that counts the moments cannot be started.
    #[error("cannot start the sender's thread: {0}")]
    Thread(io::Error),
    /// No connection, or a request failed otherwise than for want of time: a figure that hides failures would be a lie.
    #[error(transparent)]
    Client(#[from] Error),
}

/// Sends a request at each of these moments after the start, which ascend, and says what became of each. A moment at
/// which the sender itself is late counts all the same: latencies are from the moment.
///
/// # Errors
/// [`OpenLoopError`].
pub async fn open_loop(
    url: &str,
    request: &InferRequest,
    plan: OpenLoop,
    moments: &[Duration],
) -> Result<Vec<Sent>, OpenLoopError> {
    let mut clients = Vec::new();
    for _ in 0..plan.connections.max(1) {
        clients.push(Client::connect(url).await?);
    }
    let request = Arc::new(request.clone());
    let mut requests = JoinSet::new();
    let start = Instant::now();
    let mut metronome = metronome(start, moments).map_err(OpenLoopError::Thread)?;
    while let Some(index) = metronome.recv().await {
        let due = start + moments[index];
        let client = clients[index % clients.len()].clone();
        let request = Arc::clone(&request);
        requests.spawn(async move {
            let late = due.elapsed();
            let fate = match client.infer(&request).await {
                Ok(_) => Fate::Answered(due.elapsed()),
                Err(Error::Status { code, .. }) if code.meaning() == StatusMeaning::Unavailable => {
                    Fate::Refused
                }
                Err(error) => return Err(error),
            };
            Ok((index, Sent { late, fate }))
        });
    }
    let unanswered = Sent {
        late: Duration::ZERO,
        fate: Fate::Unanswered,
    };
    let mut sent = vec![unanswered; moments.len()];
    let end = tokio::time::Instant::now() + plan.patience;
    // Dropping what is left ends its calls.
    while let Ok(Some(done)) = tokio::time::timeout_at(end, requests.join_next()).await {
        // A request does nothing that panics; if it did, the panic goes on here.
        let (index, one) =
            done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
        sent[index] = one;
    }
    Ok(sent)
}

/// Says at each moment that it has come; what is said is the moment's index. From a thread of its own that sleeps: the
/// reactor's own timers count milliseconds, and one that spins would take a core from the server.
fn metronome(start: Instant, moments: &[Duration]) -> io::Result<mpsc::Receiver<usize>> {
    let (come, due) = mpsc::channel(BACKLOG);
    let moments = moments.to_vec();
    thread::Builder::new()
        .name("metronome".to_owned())
        .spawn(move || {
            // Linux adds up to 50 us to a sleep otherwise. Where it cannot be set, the sender is that much later.
            rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).unwrap_or_default();
            for (index, moment) in moments.into_iter().enumerate() {
                if let Some(left) = (start + moment).checked_duration_since(Instant::now()) {
                    thread::sleep(left);
                }
                if come.blocking_send(index).is_err() {
                    // All senders are gone.
                    return;
                }
            }
        })?;
    Ok(due)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_metronome_is_never_early_and_leaves_none_out() {
        let start = Instant::now();
        let moments = [0, 0, 500, 500, 2_000].map(Duration::from_micros);
        let mut due = metronome(start, &moments).expect("a thread");
        for (expected, moment) in moments.iter().enumerate() {
            assert_eq!(due.recv().await, Some(expected));
            assert!(start.elapsed() >= *moment);
        }
        assert_eq!(due.recv().await, None);
    }
}
