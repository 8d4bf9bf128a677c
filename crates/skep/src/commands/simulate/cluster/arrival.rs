//! When an application's requests come.

use std::{str::FromStr, time::Duration};

use skep_sim::{Arrivals, RecordedArrivals, Time, cluster::RatePattern};

use crate::commands::simulate::flags::Pattern;

/// A pattern of rates, or a recording.
#[derive(Debug, Clone)]
pub(super) struct ClusterArrival {
    /// As it was given.
    pub(super) name: String,
    kind: ArrivalKind,
}

#[derive(Debug, Clone)]
enum ArrivalKind {
    Rates(RatePattern),
    Recorded(RecordedArrivals),
}

const EXPECTED: &str = "expected stable, periodic, bursty, sporadic, rates:FILE:STEP_SECONDS, or a file of recorded requests";

impl ClusterArrival {
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        let name = text.to_owned();
        if let Ok(pattern) = RatePattern::from_str(text) {
            let kind = ArrivalKind::Rates(pattern);
            return Ok(Self { name, kind });
        }
        let pattern = Pattern::from_str(text).map_err(anyhow::Error::msg)?;
        match pattern.load()? {
            Arrivals::Recorded(recording) => Ok(Self {
                name,
                kind: ArrivalKind::Recorded(recording),
            }),
            _ => anyhow::bail!("arrival {text}: {EXPECTED}"),
        }
    }

    /// The moments of requests at this mean rate. A recording is stretched over the whole span.
    pub(super) fn moments(&self, rate: f64, span: Duration, seed: u64) -> Vec<Time> {
        match &self.kind {
            ArrivalKind::Rates(pattern) => pattern.arrivals(rate, span, seed),
            ArrivalKind::Recorded(recording) => recording.stretched(rate, span, seed),
        }
    }
}
