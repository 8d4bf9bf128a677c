//! Load generation and measurement.
//!
//! [`closed_loop`] keeps a number of requests outstanding and counts what comes back, [`open_loop`] sends them at given
//! moments; [`Server`] runs a `skep serve` of
//! its own to measure; [`memory`] says what a process holds; [`median`] sums up rounds. The benchmarks in `examples/` are made of these; `cargo xtask bench`
//! runs them.

mod closed_loop;
mod memory;
mod open_loop;
mod server;

pub use closed_loop::{ClosedLoop, Measurement, closed_loop};
pub use memory::{Memory, memory};
pub use open_loop::{Fate, OpenLoop, OpenLoopError, Sent, open_loop};
pub use server::{Server, ServerError, cpu_time};

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

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < f64::EPSILON);
        assert!(median(&[]).is_nan());
    }
}
