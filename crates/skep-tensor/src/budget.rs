//! Memory that many share within one bound.
//!
//! A [`MemoryBudget`] is the bound, one a node. Every request owns a [`Charge`] against it: what the request holds is
//! added when its size is known, before it is allocated, and all of it is given back when the last holder of the charge
//! is gone (the request, its tensors, its run, its answer until that is written).

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A bound on bytes, and how many of them are taken.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
}

/// More was asked for than is left of a budget, or than the system has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBudget {
    /// What was asked for.
    pub bytes: usize,
    /// What was in use.
    pub used: usize,
    /// The bound.
    pub limit: usize,
}

impl OverBudget {
    /// The system has no memory of so many bytes, whatever is left of a budget.
    #[must_use]
    pub const fn of_system(bytes: usize) -> Self {
        Self {
            bytes,
            used: 0,
            limit: usize::MAX,
        }
    }
}

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, used, limit } = self;
        match *limit {
            usize::MAX => write!(f, "the system has no memory for {bytes} bytes more"),
            _ => write!(
                f,
                "{bytes} bytes more do not fit: the bound is {limit} bytes, of which {used} are in use"
            ),
        }
    }
}

impl std::error::Error for OverBudget {}

impl MemoryBudget {
    /// A budget of `limit` bytes, none of them taken.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
        })
    }

    /// The bound, in bytes.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes that are taken now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A charge that holds nothing yet.
    #[must_use]
    pub fn charge(self: &Arc<Self>) -> Charge {
        Charge {
            budget: Some(Arc::clone(self)),
            bytes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            shared: OnceLock::new(),
        }
    }

    fn take(&self, bytes: usize) -> Result<(), OverBudget> {
        let fits = |used: usize| used.checked_add(bytes).filter(|after| *after <= self.limit);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits);
        let over = |used| OverBudget {
            bytes,
            used,
            limit: self.limit,
        };
        taken.map(drop).map_err(over)
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What charges take at once of a budget that has room for many such.
    const fn step(&self) -> usize {
        if self.limit >= LARGE_BUDGET {
            STEP_BYTES
        } else {
            1
        }
    }
}

/// A small request and its answer: they touch the budget twice.
const STEP_BYTES: usize = 4096;
const LARGE_BUDGET: usize = 256 * STEP_BYTES;

/// Takes at most `bytes` away; how many there were.
fn take_from(counter: &AtomicUsize, bytes: usize) -> usize {
    let rest = |held: usize| Some(held.saturating_sub(bytes));
    let held = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    held.unwrap_or(0).min(bytes)
}

/// What one request holds of a budget; given back when it is dropped.
#[derive(Debug)]
pub struct Charge {
    /// `None`: unbounded.
    budget: Option<Arc<MemoryBudget>>,
    bytes: AtomicUsize,
    /// What it has taken of the budget: `bytes`, and room for the next ones.
    held: AtomicUsize,
    /// A charge that is shared with others, for memory that is.
    shared: OnceLock<Arc<Charge>>,
}

impl Charge {
    /// A charge that only counts: for callers without a budget.
    #[must_use]
    pub const fn unbounded() -> Self {
        Self {
            budget: None,
            bytes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            shared: OnceLock::new(),
        }
    }

    /// Bytes that it holds.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Takes `bytes` more.
    ///
    /// # Errors
    /// [`OverBudget`] when they do not fit; nothing is taken then.
    pub fn add(&self, bytes: usize) -> Result<(), OverBudget> {
        if let Some(budget) = &self.budget {
            let held = self.held.load(Ordering::Relaxed);
            let after = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
            if let Some(more) = after.checked_sub(held).filter(|more| *more > 0) {
                // All cores contend for the budget; a charge is mostly used by one thread.
                let step = more.checked_next_multiple_of(budget.step()).unwrap_or(more);
                let taken = match budget.take(step) {
                    Ok(()) => step,
                    Err(_) => budget.take(more).map(|()| more)?,
                };
                self.held.fetch_add(taken, Ordering::Relaxed);
            }
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back room that is more than a step.
    fn settle(&self) {
        let Some(budget) = &self.budget else { return };
        let held = self.held.load(Ordering::Relaxed);
        let room = held.saturating_sub(self.bytes.load(Ordering::Relaxed));
        let given = room - room % budget.step();
        if given > 0 {
            self.held.fetch_sub(given, Ordering::Relaxed);
            budget.give_back(given);
        }
    }

    /// Whether `bytes` could ever fit, with nothing else in use.
    ///
    /// # Errors
    /// [`OverBudget`] when they are more than the whole bound.
    pub fn could_hold(&self, bytes: usize) -> Result<(), OverBudget> {
        match &self.budget {
            Some(budget) if bytes > budget.limit => Err(OverBudget {
                bytes,
                used: budget.used(),
                limit: budget.limit,
            }),
            _ => Ok(()),
        }
    }

    /// Gives `bytes` of it back before its end; at most what it holds.
    pub fn give_back(&self, bytes: usize) {
        take_from(&self.bytes, bytes);
        self.settle();
    }

    /// Gives everything back.
    pub fn clear(&self) {
        self.bytes.store(0, Ordering::Relaxed);
        let held = self.held.swap(0, Ordering::Relaxed);
        if let Some(budget) = &self.budget
            && held > 0
        {
            budget.give_back(held);
        }
    }

    /// Gives back what it holds beyond `bytes`.
    pub fn shrink_to(&self, bytes: usize) {
        self.bytes.fetch_min(bytes, Ordering::Relaxed);
        self.settle();
    }

    /// Moves `bytes` of it, at most what it holds, into a charge of their own.
    #[must_use]
    pub fn split(&self, bytes: usize) -> Self {
        let moved = take_from(&self.bytes, bytes);
        let held = take_from(&self.held, moved);
        Self {
            budget: self.budget.clone(),
            bytes: AtomicUsize::new(moved),
            held: AtomicUsize::new(held),
            shared: OnceLock::new(),
        }
    }

    /// Takes over all that `other`, a charge against the same budget, holds.
    pub fn absorb(&self, other: &Self) {
        let bytes = other.bytes.swap(0, Ordering::Relaxed);
        let held = other.held.swap(0, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(held, Ordering::Relaxed);
    }

    /// Keeps a charge that others keep too, for memory that all of them point into, until this one is dropped. Only the
    /// first one that is given is kept.
    pub fn keep(&self, shared: Arc<Self>) {
        self.shared.get_or_init(|| shared);
    }

    /// A charge against the same budget that holds nothing yet.
    #[must_use]
    pub fn sibling(&self) -> Self {
        Self {
            budget: self.budget.clone(),
            bytes: AtomicUsize::new(0),
            held: AtomicUsize::new(0),
            shared: OnceLock::new(),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back() {
        let budget = MemoryBudget::new(10);
        let (first, second) = (budget.charge(), budget.charge());
        assert_eq!(first.add(6), Ok(()));
        let over = OverBudget {
            bytes: 5,
            used: 6,
            limit: 10,
        };
        assert_eq!(second.add(5), Err(over));
        assert!(second.add(usize::MAX).is_err(), "no overflow");
        assert_eq!(second.add(4), Ok(()));
        first.give_back(2);
        assert_eq!((first.bytes(), budget.used()), (4, 8));
        first.give_back(100);
        assert_eq!(
            (first.bytes(), budget.used()),
            (0, 4),
            "no more than it holds"
        );
        assert_eq!(first.sibling().add(6), Ok(()));
        drop(first);
        assert_eq!(second.add(6), Ok(()));
        second.clear();
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_is_held_moves_without_being_taken_again() {
        let budget = MemoryBudget::new(10);
        let first = budget.charge();
        assert_eq!(first.add(10), Ok(()));
        let second = first.split(4);
        assert_eq!((first.bytes(), second.bytes(), budget.used()), (6, 4, 10));
        let third = first.split(100);
        assert_eq!((first.bytes(), third.bytes()), (0, 6));
        second.absorb(&third);
        drop(third);
        assert_eq!((second.bytes(), budget.used()), (10, 10));
        second.shrink_to(3);
        second.shrink_to(5);
        assert_eq!((second.bytes(), budget.used()), (3, 3));
        drop(second);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_large_budget_is_taken_in_steps() {
        let budget = MemoryBudget::new(LARGE_BUDGET);
        let charge = budget.charge();
        for _ in 0..10 {
            assert_eq!(charge.add(100), Ok(()));
        }
        assert_eq!((charge.bytes(), budget.used()), (1000, STEP_BYTES));
        assert_eq!(charge.add(STEP_BYTES), Ok(()));
        let other = charge.split(5000);
        assert_eq!((charge.bytes(), other.bytes()), (96, 5000));
        assert_eq!(budget.used(), 2 * STEP_BYTES);
        drop(other);
        charge.give_back(96);
        assert_eq!((charge.bytes(), budget.used()), (0, 2 * STEP_BYTES - 5000));
        // The last bytes are had without a whole step.
        let rest = LARGE_BUDGET - budget.used();
        let last = budget.charge();
        assert_eq!(last.add(rest - 1), Ok(()));
        assert_eq!(last.add(1), Ok(()));
        assert!(last.add(1).is_err());
        drop((charge, last));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_charge_without_a_budget_counts() {
        let charge = Charge::unbounded();
        assert_eq!(charge.add(usize::MAX / 2), Ok(()));
        assert_eq!(charge.bytes(), usize::MAX / 2);
    }
}
