//! Load generation and measurement: what benchmarks and tools that measure a server are made of.
//!
//! [`closed_loop`] keeps a number of requests outstanding and counts what comes back, [`open_loop`] sends them at given
//! moments; [`ServerProcess`] runs a `skep serve` of its own to measure; [`profile`] measures a model by cores, instances
//! and batch; [`memory()`] says what a process holds, [`tree_memory`] what it and its children hold; [`median`] and
//! [`quantile`] sum up rounds.

mod closed_loop;
mod memory;
mod open_loop;
pub mod profile;
mod server;
mod tree;

pub use closed_loop::{ClosedLoop, Measurement, closed_loop};
pub use memory::{ProcessMemory, memory};
pub use open_loop::{Fate, OpenLoop, OpenLoopError, Sent, open_loop};
pub use server::{ServerError, ServerProcess, cpu_time};
pub use tree::{Memfd, MemoryMapping, TreeMemory, mappings, tree, tree_memory};

/// The median; the mean of the middle two for an even number. NaN for none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    }
}

/// The value that a share of the values stays within: the nearest one, not one between two. NaN for none.
#[must_use]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an index into the list"
)]
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let index = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
    sorted.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::{median, quantile};

    #[test]
    fn quantiles() {
        let values: Vec<f64> = (0..=20).rev().map(f64::from).collect();
        let of = |share| quantile(&values, share);
        assert_eq!([of(0.0), of(0.1), of(0.5), of(1.0)], [0.0, 2.0, 10.0, 20.0]);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
