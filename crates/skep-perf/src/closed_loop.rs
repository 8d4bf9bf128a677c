//! A closed loop: so many requests outstanding, each answered one followed by the next.

use std::time::{Duration, Instant};

use skep_client::{Client, Error, InferRequest};

/// What a closed loop does.
#[derive(Debug, Clone, Copy)]
pub struct ClosedLoop {
    /// Requests outstanding.
    pub concurrency: usize,
    /// Connections that they are spread over, at least 1. HTTP/1.1 carries one request at a time: over HTTP there are
    /// as many connections as requests outstanding, whatever this says.
    pub connections: usize,
    /// How long requests are sent before counting begins.
    pub warm_up: Duration,
    /// How long is counted.
    pub duration: Duration,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Measurement {
    /// Requests answered within the window.
    pub requests: usize,
    /// The window.
    pub elapsed: Duration,
    /// Latencies of those requests, ascending.
    pub latencies: Vec<Duration>,
}

impl Measurement {
    /// Requests a second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that a share of the requests stayed within; zero without requests.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into the list"
    )]
    pub fn quantile(&self, share: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let index = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.latencies.get(index).copied().unwrap_or_default()
    }
}

/// Runs a closed loop of one request against a server.
///
/// # Errors
/// The first failed request ends the loop: a figure that hides failures would be a lie.
pub async fn closed_loop(
    url: &str,
    request: &InferRequest,
    plan: ClosedLoop,
) -> Result<Measurement, Error> {
    let begin = Instant::now() + plan.warm_up;
    let end = begin + plan.duration;
    let mut workers = tokio::task::JoinSet::new();
    let mut clients = Vec::new();
    for _ in 0..plan.connections.max(1) {
        clients.push(Client::connect(url).await?);
    }
    for client in clients.iter().cycle().take(plan.concurrency) {
        let client = client.clone();
        let request = request.clone();
        workers.spawn(async move {
            let mut latencies = Vec::new();
            loop {
                let sent = Instant::now();
                if sent >= end {
                    return Ok::<_, Error>(latencies);
                }
                client.infer(&request).await?;
                let answered = Instant::now();
                // By the answer: counting only what was also sent in the window would lose what was outstanding then.
                if (begin..=end).contains(&answered) {
                    latencies.push(answered - sent);
                }
            }
        });
    }
    let mut latencies = Vec::new();
    while let Some(worker) = workers.join_next().await {
        // A worker does nothing that panics; if it did, the panic goes on here.
        latencies
            .extend(worker.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?);
    }
    latencies.sort_unstable();
    Ok(Measurement {
        requests: latencies.len(),
        elapsed: plan.duration,
        latencies,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_and_rates() {
        let latencies: Vec<Duration> = (1..=101).map(Duration::from_millis).collect();
        let measured = Measurement {
            requests: 101,
            elapsed: Duration::from_secs(2),
            latencies,
        };
        assert_eq!(measured.quantile(0.5), Duration::from_millis(51));
        assert_eq!(measured.quantile(1.0), Duration::from_millis(101));
        assert!((measured.rate() - 50.5).abs() < 1e-9);
    }
}
