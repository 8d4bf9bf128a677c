//! The memory of one run of a model, and its bounds.
//!
//! Three bounds hold for a run's intermediate tensors and outputs together: the model's own (`max_run_memory`), the
//! available memory of the machine and its control groups, and the node's budget for requests. A small run touches none
//! of them: the first [`UNCOUNTED_BYTES`] are free, and only large runs read the files that tell the available memory.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{Charge, MemoryBudget};

/// A run may take this much without being counted: even one such run for each instance of a node is harmless.
const UNCOUNTED_BYTES: u64 = 1 << 20;

/// Memory is taken from the budget in steps of this size, so that most allocations of a run touch nothing shared.
const STEP_BYTES: u64 = 16 << 20;

/// Above this, each step of a run is checked against the machine's available memory.
const LARGE_BYTES: u64 = 64 << 20;

/// The part of the available memory that is kept free, in 1/16: a run writes its memory after it was counted, and
/// others allocate meanwhile.
const KEPT_16THS: u64 = 2;

/// The maximum age of a reading of the available memory.
const READING_AGE: Duration = Duration::from_millis(20);

/// The bounds on a model's runs.
#[derive(Debug, Clone, Default)]
pub struct RunBound {
    /// Bytes of intermediate tensors and outputs together; `None` without a limit of the model.
    pub limit_bytes: Option<u64>,
    /// The node's budget, if there is one.
    pub budget: Option<Arc<MemoryBudget>>,
}

/// The bound that refused a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// The model's `max_run_memory`, in bytes.
    Model(u64),
    /// The available memory of the machine or a control group, in bytes.
    Machine(u64),
    /// The rest of the node's memory for requests, in bytes.
    Node(u64),
    /// The instance's own allocator, which gave no more.
    Allocator,
}

/// A bound refused a run's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct RunRefused {
    /// What the run would have held, in bytes.
    pub bytes: u64,
    /// The bound.
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
            Limit::Allocator => write!(f, "and its allocator gives no more (`allocator`)"),
            Limit::Node(left) => write!(
                f,
                "and {left} are left of the memory for requests (`--max-request-memory`)"
            ),
        }
    }
}

impl RunBound {
    /// A charge for a run that holds `bytes` from its start and takes no more through it. A small one touches nothing
    /// shared.
    ///
    /// # Errors
    /// [`RunRefused`] if a bound is exceeded.
    pub fn admit(&self, bytes: u64) -> Result<RunCharge, RunRefused> {
        if bytes <= UNCOUNTED_BYTES && self.limit_bytes.is_none_or(|limit| bytes <= limit) {
            return Ok(RunCharge::default());
        }
        let mut charge = self.begin(0);
        charge.admit(bytes)?;
        Ok(charge)
    }

    /// Begins a run that already holds `beside` bytes, such as prepared outputs that are charged elsewhere.
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

/// The memory of one run. Dropping it gives everything back to the budget.
#[derive(Debug, Default)]
pub struct RunCharge {
    limit_bytes: Option<u64>,
    charge: Option<Charge>,
    beside: u64,
    /// What the run may hold without another check.
    admitted: u64,
}

impl RunCharge {
    /// Ends the run, gives back what it took, and begins another one with the same bounds that already holds `beside`
    /// bytes. Cheaper than [`RunBound::begin`]: nothing shared is touched.
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

    /// Checks whether the run may hold `bytes` in all, in addition to those that it began with.
    ///
    /// # Errors
    /// [`RunRefused`] by the first bound that is exceeded; what was admitted before stays admitted.
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
                // The whole step may not fit, but what is needed now may.
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

/// The machine's memory for runs, by a recent reading.
fn available() -> u64 {
    static READ_AT: AtomicU64 = AtomicU64::new(0);
    static READING: AtomicU64 = AtomicU64::new(0);
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    let age = u64::try_from(READING_AGE.as_nanos()).unwrap_or(u64::MAX);
    let elapsed = START.get_or_init(Instant::now).elapsed().as_nanos();
    // Never 0, which means that there is no reading yet.
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
        // A whole step no longer fits, but what is needed does.
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
    fn the_models_limit_includes_what_the_run_began_with() {
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
