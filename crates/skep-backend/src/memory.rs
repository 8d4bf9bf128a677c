//! What runs take.

/// The intermediate tensors of an instance's runs: bytes of the last run, and how all runs went.
/// Runs that fail have no part in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunMemory {
    /// What the plan of the last run needs; 0 where it had none yet.
    pub planned_bytes: u64,
    /// The most that was in use at once.
    pub used_bytes: u64,
    /// What the plan needs less than a buffer for each of its tensors would.
    pub saved_bytes: u64,
    /// Runs that went as planned.
    pub planned_runs: u64,
    /// Runs that were recorded to be planned: the first of their shapes.
    pub recorded_runs: u64,
    /// Runs with a plan that they left: their other tensors came from the heap.
    pub deviated_runs: u64,
    /// Runs without a plan, and without the intention to make one.
    pub unplanned_runs: u64,
}
