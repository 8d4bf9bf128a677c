//! A bound on memory that many requests share.
//!
//! A node has one [`MemoryBudget`]. Every request owns a [`Charge`] against it: memory is added when its size is known,
//! before it is allocated. All of it is given back when the last holder of the charge is gone (the request, its
//! tensors, its run, its answer until that is written).

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A bound on bytes, and how many are in use.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: usize,
    used: AtomicUsize,
}

/// A budget, or the system, does not have the memory that was asked for.
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
    /// The system does not have `bytes` bytes of memory, whatever the budget.
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
    /// An unused budget of `limit` bytes.
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

    /// Bytes in use.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// An empty charge.
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

    /// The step in which charges take from the budget: larger than a byte if the budget has room for many.
    const fn step(&self) -> usize {
        if self.limit >= LARGE_BUDGET {
            STEP_BYTES
        } else {
            1
        }
    }
}

/// A small request and its answer: with this step they touch the budget only twice.
const STEP_BYTES: usize = 4096;
const LARGE_BUDGET: usize = 256 * STEP_BYTES;

/// Subtracts at most `bytes`. Returns how many.
fn take_from(counter: &AtomicUsize, bytes: usize) -> usize {
    let rest = |held: usize| Some(held.saturating_sub(bytes));
    let held = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
    held.unwrap_or(0).min(bytes)
}

/// The memory of one request. Dropping it gives everything back to the budget.
#[derive(Debug)]
pub struct Charge {
    /// `None`: unbounded.
    budget: Option<Arc<MemoryBudget>>,
    bytes: AtomicUsize,
    /// What it has taken from the budget: `bytes`, rounded up to a step.
    held: AtomicUsize,
    /// Another charge that this one keeps alive, for memory shared with other requests.
    shared: OnceLock<Arc<Charge>>,
}

impl Charge {
    /// A charge without a budget, which only counts.
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
    /// [`OverBudget`] if they do not fit; nothing is taken then.
    pub fn add(&self, bytes: usize) -> Result<(), OverBudget> {
        if let Some(budget) = &self.budget {
            let held = self.held.load(Ordering::Relaxed);
            let after = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
            if let Some(more) = after.checked_sub(held).filter(|more| *more > 0) {
                // All cores contend for the budget, while mostly one thread uses a charge.
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

    /// Gives back whole steps that are not used.
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

    /// Checks whether `bytes` could fit with nothing else in use.
    ///
    /// # Errors
    /// [`OverBudget`] if they exceed the whole budget.
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

    /// Gives back `bytes`, at most what it holds.
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

    /// Moves `bytes`, at most what it holds, into a new charge.
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

    /// Takes over everything that `other`, a charge against the same budget, holds.
    pub fn absorb(&self, other: &Self) {
        let bytes = other.bytes.swap(0, Ordering::Relaxed);
        let held = other.held.swap(0, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(held, Ordering::Relaxed);
    }

    /// Keeps `shared` alive until this charge is dropped, for memory that several requests use. Only the first call has
    /// an effect.
    pub fn keep(&self, shared: Arc<Self>) {
        self.shared.get_or_init(|| shared);
    }

    /// An empty charge against the same budget.
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
    fn bytes_taken_are_given_back() {
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
    fn bytes_move_between_charges_without_touching_the_budget() {
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
        // The last bytes can be taken without a whole step.
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
