//! Packing instances onto as few devices as possible, by memory and compute.
//!
//! ```text
//! fit.rs      first fit and best fit, in the order given or by decreasing size
//! bound.rs    how many devices it takes at least
//! search.rs   looks for packings on fewer devices than the heuristics need, and can prove that none exists
//! squishy.rs  models whose size depends on the batch and the duty cycle that they get
//! arrival.rs  instances that come to devices which have others already
//! ```
//!
//! A device has two dimensions, so that this is vector bin packing: [`Resources`] fit if both do. The size of an instance
//! is the larger of its shares of the largest device.

mod arrival;
mod bound;
mod fit;
mod search;
pub mod squishy;
#[cfg(test)]
mod tests;

pub use self::{
    arrival::{Arrival, DeviceShortage, NoDevice, OccupiedDevice, arrive},
    bound::least_devices,
};

/// What an instance takes of a device, or what a device has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Resources {
    /// Memory.
    pub bytes: u64,
    /// Thousandths of a core.
    pub millicores: u64,
}

impl Resources {
    /// Whether there is as much of both.
    #[must_use]
    pub const fn fits(self, room: Self) -> bool {
        self.bytes <= room.bytes && self.millicores <= room.millicores
    }

    /// Both, up to the largest number there is.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            millicores: self.millicores.saturating_add(other.millicores),
        }
    }

    /// What is left of both, down to nothing.
    #[must_use]
    pub const fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            millicores: self.millicores.saturating_sub(other.millicores),
        }
    }

    /// How full a device with this room is once there is so much less of it: the smaller, the fuller.
    fn left_after(self, item: Self, all: Self) -> f64 {
        let [bytes, cores] = self.less(item).shares_of(all);
        bytes + cores
    }

    /// Both as shares of these.
    fn shares_of(self, all: Self) -> [f64; 2] {
        let share = |part: u64, all: u64| match (part, all) {
            (0, _) => 0.0,
            (_, 0) => f64::INFINITY,
            _ => part as f64 / all as f64,
        };
        [
            share(self.bytes, all.bytes),
            share(self.millicores, all.millicores),
        ]
    }

    /// The larger of both shares of these.
    fn size(self, all: Self) -> f64 {
        let [bytes, cores] = self.shares_of(all);
        bytes.max(cores)
    }
}

/// How instances are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PackingRule {
    /// Each, by decreasing size, onto the first device that has room.
    FirstFitDecreasing,
    /// Each, in the order given, onto the device with the least room left after it.
    BestFit,
    /// The same, by decreasing size.
    BestFitDecreasing,
    /// The best of several orders of best fit; then a search for fewer devices, if there are up to 64 instances and the
    /// devices are equal. It ends after many steps.
    Search,
}

/// Where instances are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// The device of each instance; `None` where none has room.
    pub device_of: Vec<Option<usize>>,
    /// No packing of all instances takes fewer devices.
    pub least_devices: usize,
}

impl Packing {
    /// How many devices have an instance.
    #[must_use]
    pub fn devices_used(&self) -> usize {
        used(&self.device_of)
    }

    /// How many instances have no device.
    #[must_use]
    pub fn unplaced(&self) -> usize {
        self.device_of
            .iter()
            .filter(|place| place.is_none())
            .count()
    }
}

/// Packs instances onto devices.
#[must_use]
pub fn pack(items: &[Resources], devices: &[Resources], rule: PackingRule) -> Packing {
    let (device_of, proven) = match rule {
        PackingRule::FirstFitDecreasing => {
            let order = fit::by_size(items, devices);
            (fit::first_fit(items, devices, &order), None)
        }
        PackingRule::BestFit => {
            let order: Vec<usize> = (0..items.len()).collect();
            (fit::best_fit(items, devices, &order), None)
        }
        PackingRule::BestFitDecreasing => {
            let order = fit::by_size(items, devices);
            (fit::best_fit(items, devices, &order), None)
        }
        PackingRule::Search => search::search(items, devices),
    };
    let least = least_devices(items, devices);
    Packing {
        device_of,
        least_devices: proven.map_or(least, |proven| least.max(proven)),
    }
}

/// How many devices have an instance.
fn used(device_of: &[Option<usize>]) -> usize {
    let mut devices: Vec<usize> = device_of.iter().copied().flatten().collect();
    devices.sort_unstable();
    devices.dedup();
    devices.len()
}

/// The largest of all devices in each dimension.
#[must_use]
pub fn largest(devices: &[Resources]) -> Resources {
    let all = devices.iter();
    all.fold(Resources::default(), |largest, device| Resources {
        bytes: largest.bytes.max(device.bytes),
        millicores: largest.millicores.max(device.millicores),
    })
}
