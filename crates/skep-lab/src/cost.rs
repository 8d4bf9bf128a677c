//! What calls of a device's memory functions cost: a model, every number of which is a parameter.

use std::{fmt, str::FromStr};

/// Costs in nanoseconds: estimates, to be calibrated before anybody relies on them.
///
/// Those of a CUDA device are from published measurements: `cudaMalloc` takes 1 us below 4 KiB and about
/// 50 us above (University of Virginia, "CUDA memory management overhead"), and the zeroing of new pages about 60 GB/s;
/// `cudaFree` 20 us and the wait for queued work; `cuMemMap` 10 to 60 us for 2 MiB (PyTorch's notes on expandable
/// segments). Those of a host are of the order of a system call and of a page fault of 0.25 us.
#[derive(Clone, Debug, PartialEq)]
pub struct CostModel {
    /// Taking a chunk below [`CostModel::small_bytes`].
    pub small_take_ns: f64,
    /// Taking a larger one, beside its bytes.
    pub take_ns: f64,
    /// What counts as small, in bytes.
    pub small_bytes: f64,
    /// For each byte of a chunk.
    pub byte_ns: f64,
    /// Giving a chunk back, beside the wait.
    pub give_back_ns: f64,
    /// The queued work that a device has when a chunk is given back or the program waits: at most this.
    pub queue_ns: f64,
    /// How much work each malloc queues on the device: an operator's run.
    pub work_ns: f64,
    /// Reserving addresses.
    pub reserve_ns: f64,
    /// Putting memory behind a page, or taking it back, each.
    pub page_ns: f64,
    /// A call that commits or takes back pages, beside its pages.
    pub commit_ns: f64,
}

impl Default for CostModel {
    fn default() -> Self {
        Self::host()
    }
}

impl CostModel {
    /// The memory of a host: `mmap` and `munmap` of a chunk, a page fault for each page of 4 KiB that is written, and
    /// `madvise`. Nothing is queued.
    #[must_use]
    pub const fn host() -> Self {
        Self {
            small_take_ns: 2_000.0,
            take_ns: 2_000.0,
            small_bytes: 4096.0,
            byte_ns: 0.06,
            give_back_ns: 5_000.0,
            queue_ns: 0.0,
            work_ns: 0.0,
            reserve_ns: 2_000.0,
            page_ns: 0.0,
            commit_ns: 1_000.0,
        }
    }

    /// A CUDA device.
    #[must_use]
    pub const fn cuda() -> Self {
        Self {
            small_take_ns: 1_000.0,
            take_ns: 50_000.0,
            small_bytes: 4096.0,
            byte_ns: 1.0 / 60.0,
            give_back_ns: 20_000.0,
            queue_ns: 1_000_000.0,
            work_ns: 10_000.0,
            reserve_ns: 20_000.0,
            page_ns: 30_000.0,
            commit_ns: 10_000.0,
        }
    }
}

/// Why a cost cannot be set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCost {
    /// Not `name=number`.
    #[error("cost `{given}`, expected `name=number`, with one of the names {known}")]
    Form {
        /// What was given.
        given: String,
        /// All names.
        known: String,
    },
    /// Not a number, or a negative one.
    #[error("cost `{name}` is `{value}`, expected a number from 0 on")]
    Value {
        /// The cost.
        name: String,
        /// What was given.
        value: String,
    },
}

impl CostModel {
    /// The names of all costs, and their values.
    #[must_use]
    pub fn entries(&self) -> [(&'static str, f64); 10] {
        [
            ("small_take_ns", self.small_take_ns),
            ("take_ns", self.take_ns),
            ("small_bytes", self.small_bytes),
            ("byte_ns", self.byte_ns),
            ("give_back_ns", self.give_back_ns),
            ("queue_ns", self.queue_ns),
            ("work_ns", self.work_ns),
            ("reserve_ns", self.reserve_ns),
            ("page_ns", self.page_ns),
            ("commit_ns", self.commit_ns),
        ]
    }

    fn entry(&mut self, name: &str) -> Option<&mut f64> {
        Some(match name {
            "small_take_ns" => &mut self.small_take_ns,
            "take_ns" => &mut self.take_ns,
            "small_bytes" => &mut self.small_bytes,
            "byte_ns" => &mut self.byte_ns,
            "give_back_ns" => &mut self.give_back_ns,
            "queue_ns" => &mut self.queue_ns,
            "work_ns" => &mut self.work_ns,
            "reserve_ns" => &mut self.reserve_ns,
            "page_ns" => &mut self.page_ns,
            "commit_ns" => &mut self.commit_ns,
            _ => return None,
        })
    }

    /// Sets a cost as in `take_ns=80000`.
    ///
    /// # Errors
    /// There is no such cost, or its value is no number from 0 on.
    pub fn set(&mut self, given: &str) -> Result<(), InvalidCost> {
        let known = self
            .entries()
            .map(|(name, _)| format!("`{name}`"))
            .join(", ");
        let form = || InvalidCost::Form {
            given: given.to_owned(),
            known: known.clone(),
        };
        let (name, value) = given.split_once('=').ok_or_else(form)?;
        let entry = self.entry(name.trim()).ok_or_else(form)?;
        let number = f64::from_str(value.trim()).ok();
        let number = number.filter(|number| number.is_finite() && *number >= 0.0);
        *entry = number.ok_or_else(|| InvalidCost::Value {
            name: name.trim().to_owned(),
            value: value.trim().to_owned(),
        })?;
        Ok(())
    }
}

impl fmt::Display for CostModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, value)) in self.entries().into_iter().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            write!(f, "{separator}{name}={}", (value * 1e6).round() / 1e6)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cost_can_be_set_by_its_name() {
        for (name, _) in CostModel::default().entries() {
            let mut model = CostModel::default();
            assert_eq!(model.set(&format!("{name}=12.5")), Ok(()));
            let changed = model
                .entries()
                .into_iter()
                .filter(|(_, value)| *value == 12.5);
            assert_eq!(changed.map(|(name, _)| name).collect::<Vec<_>>(), [name]);
        }
        for wrong in [
            "take_ns",
            "take=1",
            "take_ns=-1",
            "take_ns=NaN",
            "take_ns=inf",
        ] {
            assert!(CostModel::default().set(wrong).is_err(), "{wrong}");
        }
    }
}
