//! What one run of a model may take, and what it has taken.
//!
//! Three bounds hold for a run's intermediate tensors and outputs together: the model's own (`max_run_memory`), what
//! the machine and its control groups still have, and the node's budget for requests. A run that allocates little meets
//! none of them: the first [`UNCOUNTED_BYTES`] cost nothing, and the files that say what the machine has are read by
//! large runs alone.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{Charge, MemoryBudget};

/// A run may take so much without being counted: as many such runs as a node has instances are no danger to it.
const UNCOUNTED_BYTES: u64 = 1 << 20;

/// Room is taken from the budget in such steps, so that most allocations of a run touch nothing shared.
const STEP_BYTES: u64 = 16 << 20;

/// Beyond so many bytes a run is held against what the machine still has, at each step.
const LARGE_BYTES: u64 = 64 << 20;

/// So much of what is available stays available, in 1/16: a run writes its memory after it was counted, and others
/// allocate meanwhile.
const KEPT_16THS: u64 = 2;

/// How old a reading of the machine's memory may be.
const READING_AGE: Duration = Duration::from_millis(20);

/// What runs of a model may take.
#[derive(Debug, Clone, Default)]
pub struct RunBound {
    /// Bytes of intermediate tensors and outputs together; `None` for what the machine has.
    pub limit_bytes: Option<u64>,
    /// The node's budget; `None` where nobody counts.
    pub budget: Option<Arc<MemoryBudget>>,
}

/// Which bound a run has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The model's `max_run_memory`, in bytes.
    Model(u64),
    /// What the machine or a control group still has, in bytes.
    Machine(u64),
    /// What is left of the node's memory for requests, in bytes.
    Node(u64),
}

/// A run may not take what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct RunRefused {
    /// What the run would have held then, in bytes.
    pub bytes: u64,
    /// Why not.
    pub limit: Limit,
}

impl fmt::Display for RunRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the run needs at least {} bytes for its intermediate tensors and outputs, ",
            self.bytes
        )?;
        match self.limit {
            Limit::Model(limit) => write!(f, "and may take {limit} (`max_run_memory`)"),
            Limit::Machine(left) => {
                write!(f, "and the machine or its control group has {left} left")
            }
            Limit::Node(left) => write!(
                f,
                "and {left} are left of the memory for requests (`--max-request-memory`)"
            ),
        }
    }
}

impl RunBound {
    /// What a run is charged that holds `bytes` from its beginning, and does not take more by this charge. Free for
    /// small ones: nothing shared is touched.
    ///
    /// # Errors
    /// [`RunRefused`] where it may not take so much.
    pub fn admit(&self, bytes: u64) -> Result<RunCharge, RunRefused> {
        if bytes <= UNCOUNTED_BYTES && self.limit_bytes.is_none_or(|limit| bytes <= limit) {
            return Ok(RunCharge::default());
        }
        let mut charge = self.begin(0);
        charge.admit(bytes)?;
        Ok(charge)
    }

    /// A run begins that holds `beside` bytes already, such as prepared outputs that somebody else has charged.
    #[must_use]
    pub fn begin(&self, beside: u64) -> RunCharge {
        let mut charge = RunCharge {
            limit_bytes: self.limit_bytes,
            charge: self.budget.as_ref().map(MemoryBudget::charge),
            ..RunCharge::default()
        };
        charge.renew(beside);
        charge
    }
}

/// What one run has taken; given back to the budget when it is dropped.
#[derive(Debug, Default)]
pub struct RunCharge {
    limit_bytes: Option<u64>,
    charge: Option<Charge>,
    beside: u64,
    /// The run may hold so much without being looked at again.
    admitted: u64,
}

impl RunCharge {
    /// The run is over, and what it took is given back; another one by the same bound begins, that holds `beside` bytes
    /// already. Cheaper than [`RunBound::begin`]: nothing shared is touched.
    pub fn renew(&mut self, beside: u64) {
        if let Some(charge) = &self.charge
            && charge.bytes() > 0
        {
            charge.clear();
        }
        self.beside = beside;
        let limit = self.limit_bytes.unwrap_or(u64::MAX);
        self.admitted = UNCOUNTED_BYTES.min(limit.saturating_sub(beside));
    }

    /// Whether the run may hold `bytes` in all, beside those that it began with.
    ///
    /// # Errors
    /// [`RunRefused`] by the first bound that they do not fit; what was admitted before stays so.
    pub fn admit(&mut self, bytes: u64) -> Result<(), RunRefused> {
        if bytes <= self.admitted {
            return Ok(());
        }
        self.admit_more(bytes)
    }

    #[cold]
    fn admit_more(&mut self, bytes: u64) -> Result<(), RunRefused> {
        let total = bytes.saturating_add(self.beside);
        let refused = |limit| RunRefused {
            bytes: total,
            limit,
        };
        if let Some(limit) = self.limit_bytes.filter(|limit| total > *limit) {
            return Err(refused(Limit::Model(limit)));
        }
        let more = bytes - self.admitted;
        let mut step = more.max(STEP_BYTES);
        if let Some(limit) = self.limit_bytes {
            step = step.min(
                limit
                    .saturating_sub(self.beside)
                    .saturating_sub(self.admitted),
            );
        }
        if total > LARGE_BYTES {
            let left = available();
            if more > left {
                return Err(refused(Limit::Machine(left)));
            }
            step = step.min(left);
        }
        if let Some(charge) = &self.charge {
            let add = |bytes: u64| charge.add(usize::try_from(bytes).unwrap_or(usize::MAX));
            if let Err(over) = add(step) {
                // Perhaps not the whole step, but what is needed now.
                step = more;
                add(step).map_err(|_| {
                    refused(Limit::Node(over.limit.saturating_sub(over.used) as u64))
                })?;
            }
        }
        self.admitted += step;
        Ok(())
    }
}

/// What the machine has for runs, as read a moment ago.
fn available() -> u64 {
    static READ_AT: AtomicU64 = AtomicU64::new(0);
    static READING: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let age = u64::try_from(READING_AGE.as_nanos()).unwrap_or(u64::MAX);
    let elapsed = START.get_or_init(Instant::now).elapsed().as_nanos();
    // Never 0, which says that nothing was read yet.
    let now = u64::try_from(elapsed)
        .unwrap_or(u64::MAX)
        .saturating_add(age);
    let read_at = READ_AT.load(Ordering::Acquire);
    if read_at == 0 || now.saturating_sub(read_at) > age {
        let available = skep_host::memory().available;
        let left = available - available / 16 * KEPT_16THS;
        READING.store(left, Ordering::Relaxed);
        READ_AT.store(now, Ordering::Release);
    }
    READING.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn small_runs_are_not_counted_and_larger_ones_in_steps() {
        let budget = MemoryBudget::new(40 << 20);
        let bound = RunBound {
            limit_bytes: None,
            budget: Some(Arc::clone(&budget)),
        };
        let mut run = bound.begin(0);
        assert_eq!((run.admit(MIB), budget.used()), (Ok(()), 0));
        assert_eq!((run.admit(2 * MIB), budget.used()), (Ok(()), 16 << 20));
        assert_eq!((run.admit(17 * MIB), budget.used()), (Ok(()), 16 << 20));
        assert_eq!((run.admit(20 * MIB), budget.used()), (Ok(()), 32 << 20));
        // A whole step does not fit any more, what is needed does.
        assert_eq!((run.admit(40 * MIB), budget.used()), (Ok(()), 39 << 20));
        let refused = run.admit(43 * MIB).expect_err("over the budget");
        assert_eq!(refused.limit, Limit::Node(MIB));
        assert!(refused.to_string().contains("--max-request-memory"));
        run.renew(0);
        assert_eq!(budget.used(), 0, "another one begins");
        assert_eq!((run.admit(2 * MIB), budget.used()), (Ok(()), 16 << 20));
        drop(run);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_models_limit_counts_what_was_there_before() {
        let bound = RunBound {
            limit_bytes: Some(4 * MIB),
            budget: None,
        };
        let mut run = bound.begin(3 * MIB);
        assert_eq!(run.admit(MIB), Ok(()));
        let refused = RunRefused {
            bytes: 4 * MIB + 1,
            limit: Limit::Model(4 * MIB),
        };
        assert_eq!(run.admit(MIB + 1), Err(refused));
        assert!(bound.begin(5 * MIB).admit(1).is_err());
        let small = RunBound {
            limit_bytes: Some(10),
            budget: None,
        };
        assert_eq!(small.begin(0).admit(10), Ok(()));
        assert!(
            small.begin(0).admit(11).is_err(),
            "below what is not counted"
        );
    }

    #[test]
    fn more_than_the_machine_has_is_refused() {
        let mut run = RunBound::default().begin(0);
        let refused = run.admit(u64::MAX).expect_err("no machine has that");
        assert!(matches!(refused.limit, Limit::Machine(_)), "{refused}");
        assert_eq!(run.admit(2 * MIB), Ok(()));
    }
}
