//! Figures about the memory of runs.

/// The intermediate tensors of an instance's runs: bytes of the last run, and counts over all runs.
/// Failed runs are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RunMemory {
    /// What the plan of the last run needs; 0 if it had no plan yet.
    pub planned_bytes: u64,
    /// The most that was in use at once.
    pub used_bytes: u64,
    /// What the plan saves compared with a separate buffer for each tensor.
    pub saved_bytes: u64,
    /// Runs that went as planned.
    pub planned_runs: u64,
    /// Runs that were recorded for planning: the first of each shape class.
    pub recorded_runs: u64,
    /// Runs that deviated from their plan: their remaining tensors came from the heap.
    pub deviated_runs: u64,
    /// Runs without a plan that were not recorded either.
    pub unplanned_runs: u64,
}
