//! Squishy packing: what a model takes of a device depends on the batch that it gets, and that on how often its turn comes
//! (Nexus, SOSP'19, §6.1, algorithm 1).
//!
//! ```text
//! |-- duty cycle ----------------|-- duty cycle ----------------|
//! | A, batch 4 | B, batch 2 |    | A, batch 4 | B, batch 2 |    |
//! ```
//!
//! A request waits for a cycle at most, and then for its batch: both together keep the objective. A model whose rate fills
//! devices gets those alone; what is left of its rate shares a device with others, if their turns fit into the shorter of
//! both cycles.

use std::time::Duration;

/// A model with its rate and objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Session<'a> {
    /// Requests a second.
    pub rate: f64,
    /// The time in which a request has to be answered.
    pub objective: Duration,
    /// Sizes of batches and what they take, both increasing.
    pub latencies: &'a [(u32, Duration)],
    /// Memory on each device where it runs.
    pub bytes: u64,
}

/// A turn in each cycle of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turn {
    /// The session, by its index.
    pub session: usize,
    /// Requests in a batch.
    pub batch: u32,
    /// What the batch takes.
    pub latency: Duration,
    /// Requests a second of this session that the device serves.
    pub rate: f64,
}

/// What a device does over and over.
#[derive(Debug, Clone, PartialEq)]
pub struct DutyCycle {
    /// How long it takes.
    pub cycle: Duration,
    /// What is in it.
    pub turns: Vec<Turn>,
    /// Memory.
    pub bytes: u64,
}

impl DutyCycle {
    /// The share of the time in which it runs something.
    #[must_use]
    pub fn occupancy(&self) -> f64 {
        let busy: Duration = self.turns.iter().map(|turn| turn.latency).sum();
        busy.as_secs_f64() / self.cycle.as_secs_f64()
    }
}

/// Why a session cannot be packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SquishyError {
    /// Its rate is negative, infinite or not a number.
    Rate {
        /// The session, by its index.
        session: usize,
    },
    /// Waiting for a cycle and running takes longer than its objective, whatever the batch.
    Objective {
        /// The session, by its index.
        session: usize,
        /// The shortest objective that it could have; `None` without any latency.
        shortest: Option<Duration>,
    },
    /// It needs more memory than a device has.
    Memory {
        /// The session, by its index.
        session: usize,
    },
}

/// Packs sessions onto equal devices with so much memory, and returns what each device does.
///
/// # Errors
/// See [`SquishyError`].
pub fn pack(sessions: &[Session<'_>], device_bytes: u64) -> Result<Vec<DutyCycle>, SquishyError> {
    let mut devices = Vec::new();
    let mut residues = Vec::new();
    for (index, session) in sessions.iter().enumerate() {
        if !session.rate.is_finite() || session.rate < 0.0 {
            return Err(SquishyError::Rate { session: index });
        }
        if session.bytes > device_bytes {
            return Err(SquishyError::Memory { session: index });
        }
        let Some(saturating) = session.saturating_batch() else {
            let shortest = session.latencies.first().map(|(_, latency)| *latency * 2);
            return Err(SquishyError::Objective {
                session: index,
                shortest,
            });
        };
        let (batch, latency) = saturating;
        let full = f64::from(batch) / latency.as_secs_f64();
        let mut left = session.rate;
        while left >= full {
            devices.push(session.alone(index, latency, batch, latency, full));
            left -= full;
        }
        // A rate below one request in eleven days counts as zero.
        if left > 1e-6 {
            residues.push(session.residue(index, left, saturating));
        }
    }
    residues.sort_by(|a: &DutyCycle, b| b.occupancy().total_cmp(&a.occupancy()));
    let full = devices.len();
    for residue in residues {
        let merged = devices[full..]
            .iter()
            .enumerate()
            .filter_map(|(place, device)| {
                let merged = merge(sessions, device, &residue, device_bytes)?;
                Some((place, merged))
            });
        // The fullest one, as in best fit; of equal ones, the first.
        let best = merged.reduce(
            |best, other| match other.1.occupancy() > best.1.occupancy() {
                true => other,
                false => best,
            },
        );
        match best {
            Some((place, merged)) => devices[full + place] = merged,
            None => devices.push(residue),
        }
    }
    Ok(devices)
}

impl Session<'_> {
    /// The largest batch for which a request may wait for one batch and be in the next.
    fn saturating_batch(&self) -> Option<(u32, Duration)> {
        let batches = self.latencies.iter().rev().copied();
        let mut sound = batches.filter(|(batch, latency)| *batch > 0 && !latency.is_zero());
        sound.find(|(_, latency)| *latency * 2 <= self.objective)
    }

    /// The smallest measured batch that holds so many requests, and what it takes.
    fn batch_for(&self, requests: f64) -> Option<(u32, Duration)> {
        // Rounding is no reason for a larger batch.
        let holds = |batch: u32| f64::from(batch) >= requests - 1e-6;
        let mut batches = self.latencies.iter().copied();
        batches.find(|(batch, _)| *batch > 0 && holds(*batch))
    }

    fn alone(
        &self,
        session: usize,
        cycle: Duration,
        batch: u32,
        latency: Duration,
        rate: f64,
    ) -> DutyCycle {
        let turn = Turn {
            session,
            batch,
            latency,
            rate,
        };
        DutyCycle {
            cycle,
            turns: vec![turn],
            bytes: self.bytes,
        }
    }

    /// The batch and cycle that occupy a device the least with a rate below that of the saturating batch.
    fn residue(&self, session: usize, rate: f64, saturating: (u32, Duration)) -> DutyCycle {
        let batches = self.latencies.iter().copied();
        let cycles = batches.filter_map(|(batch, latency)| {
            let longest = self.objective.checked_sub(latency)?;
            let fills = f64::from(batch) / rate;
            let cycle = longest.as_secs_f64().min(fills);
            let is_possible = batch > 0 && !latency.is_zero() && cycle >= latency.as_secs_f64();
            is_possible.then(|| (Duration::from_secs_f64(cycle), batch, latency))
        });
        let occupancy = |one: &(Duration, u32, Duration)| one.2.as_secs_f64() / one.0.as_secs_f64();
        let least = cycles.min_by(|a, b| occupancy(a).total_cmp(&occupancy(b)));
        let (batch, latency) = saturating;
        let (cycle, batch, latency) = least.unwrap_or((latency, batch, latency));
        self.alone(session, cycle, batch, latency, rate)
    }
}

/// Both on one device, with the shorter of both cycles; `None` if there is not enough time or memory.
fn merge(
    sessions: &[Session<'_>],
    one: &DutyCycle,
    other: &DutyCycle,
    device_bytes: u64,
) -> Option<DutyCycle> {
    let cycle = one.cycle.min(other.cycle);
    let bytes = one.bytes.checked_add(other.bytes)?;
    let mut turns = Vec::with_capacity(one.turns.len() + other.turns.len());
    for turn in one.turns.iter().chain(&other.turns) {
        let session = &sessions[turn.session];
        let (batch, latency) = session.batch_for(turn.rate * cycle.as_secs_f64())?;
        // Both are shorter than before, unless measured latencies do not increase with the batch.
        if cycle + latency > session.objective {
            return None;
        }
        turns.push(Turn {
            batch,
            latency,
            ..*turn
        });
    }
    let busy: Duration = turns.iter().map(|turn| turn.latency).sum();
    (busy <= cycle && bytes <= device_bytes).then_some(DutyCycle {
        cycle,
        turns,
        bytes,
    })
}
