//! Instances of a model that come to devices which have others already.
//!
//! Best fit, one instance after the other: onto the device in use with the least room left after it, onto the largest
//! unused one if none of them has room. Instances that are there stay where they are.
//!
//! The first instance of a model on a device takes the model's bytes, further ones what an instance adds. Memory is a limit.
//! Cores are not, since instances rarely compute all at once: where no device has as many cores left, those with enough
//! memory take the instance, the one whose cores are promised the least often first.

use std::cmp::Ordering;

use super::Resources;

/// A device, and what its instances take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OccupiedDevice {
    /// What it has.
    pub all: Resources,
    /// What instances take of it. Cores may be more than it has.
    pub taken: Resources,
    /// Whether the model that arrives has an instance on it.
    pub has_model: bool,
}

/// Instances of one model that arrive together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// How many there are.
    pub instances: usize,
    /// Bytes of the first instance on a device: the model's weights and what an instance adds.
    pub first_bytes: u64,
    /// Bytes that a further one adds.
    pub further_bytes: u64,
    /// Thousandths of a core that each keeps busy.
    pub millicores: u64,
}

/// Why an instance has no device: what each of them lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoDevice {
    /// The instances before it that would have one.
    pub placed: usize,
    /// By device.
    pub devices: Vec<DeviceShortage>,
}

/// The memory of a device that an instance does not fit on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceShortage {
    /// Bytes that the instance needs there.
    pub needed: u64,
    /// Bytes that are free.
    pub free: u64,
}

impl DeviceShortage {
    /// Bytes that are missing.
    #[must_use]
    pub const fn short(&self) -> u64 {
        self.needed.saturating_sub(self.free)
    }
}

/// The device of each instance, by its index.
///
/// # Errors
/// If one of them has none: all of them stay away.
pub fn arrive(arrival: &Arrival, devices: &[OccupiedDevice]) -> Result<Vec<usize>, NoDevice> {
    let mut devices = devices.to_vec();
    let mut device_of = Vec::with_capacity(arrival.instances);
    for _ in 0..arrival.instances {
        let Some(chosen) = choose(arrival, &devices) else {
            let shortage = |device: &OccupiedDevice| DeviceShortage {
                needed: arrival.on(device).bytes,
                free: device.room().bytes,
            };
            return Err(NoDevice {
                placed: device_of.len(),
                devices: devices.iter().map(shortage).collect(),
            });
        };
        let device = &mut devices[chosen];
        device.taken = device.taken.plus(arrival.on(device));
        device.has_model = true;
        device_of.push(chosen);
    }
    Ok(device_of)
}

fn choose(arrival: &Arrival, devices: &[OccupiedDevice]) -> Option<usize> {
    let fit = |with_cores: bool| {
        devices.iter().enumerate().filter(move |(_, device)| {
            let (item, room) = (arrival.on(device), device.room());
            match with_cores {
                true => item.fits(room),
                false => item.bytes <= room.bytes,
            }
        })
    };
    let left = |device: &OccupiedDevice| {
        let room = device.room();
        room.left_after(arrival.on(device), device.all)
    };
    let used = fit(true).filter(|(_, device)| device.is_used());
    let tightest = used.min_by(|(_, a), (_, b)| left(a).total_cmp(&left(b)));
    let unused = fit(true).filter(|(_, device)| !device.is_used());
    // Of equal ones the first.
    let largest = unused.min_by(|(_, a), (_, b)| larger(a.all, b.all));
    let promised = |device: &OccupiedDevice| {
        let taken = device.taken.plus(arrival.on(device));
        taken.millicores as f64 / device.all.millicores.max(1) as f64
    };
    let overcommitted = || fit(false).min_by(|(_, a), (_, b)| promised(a).total_cmp(&promised(b)));
    let chosen = tightest.or(largest).or_else(overcommitted);
    chosen.map(|(index, _)| index)
}

/// The order by decreasing size.
fn larger(a: Resources, b: Resources) -> Ordering {
    (b.millicores, b.bytes).cmp(&(a.millicores, a.bytes))
}

impl Arrival {
    /// What the next instance takes of this device.
    const fn on(&self, device: &OccupiedDevice) -> Resources {
        Resources {
            bytes: match device.has_model {
                true => self.further_bytes,
                false => self.first_bytes,
            },
            millicores: self.millicores,
        }
    }
}

impl OccupiedDevice {
    /// What is left.
    #[must_use]
    pub const fn room(&self) -> Resources {
        self.all.less(self.taken)
    }

    const fn is_used(&self) -> bool {
        self.taken.bytes > 0 || self.taken.millicores > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(bytes: u64, cores: u64) -> OccupiedDevice {
        OccupiedDevice {
            all: Resources {
                bytes,
                millicores: cores * 1000,
            },
            taken: Resources::default(),
            has_model: false,
        }
    }

    fn taken(mut device: OccupiedDevice, bytes: u64, millicores: u64) -> OccupiedDevice {
        device.taken = Resources { bytes, millicores };
        device
    }

    fn model(instances: usize, cores: u64) -> Arrival {
        Arrival {
            instances,
            first_bytes: 50,
            further_bytes: 5,
            millicores: cores * 1000,
        }
    }

    #[test]
    fn instances_fill_devices_one_after_the_other() {
        let devices = [device(100, 2), device(100, 4)];
        // The larger one is opened first, and holds four.
        assert_eq!(arrive(&model(6, 1), &devices), Ok(vec![1, 1, 1, 1, 0, 0]));
        assert_eq!(arrive(&model(0, 1), &devices), Ok(vec![]));
    }

    #[test]
    fn the_fullest_device_in_use_comes_first() {
        let devices = [
            device(100, 4),
            taken(device(100, 4), 10, 1000),
            taken(device(100, 4), 40, 2000),
        ];
        // 2 has room for two more, then 1.
        assert_eq!(arrive(&model(3, 1), &devices), Ok(vec![2, 2, 1]));
        // Not even its first instance fits in 40 of 100 bytes.
        let devices = [taken(device(100, 4), 60, 1000), device(100, 1)];
        assert_eq!(arrive(&model(1, 1), &devices), Ok(vec![1]));
    }

    #[test]
    fn cores_are_promised_more_than_once_before_an_instance_is_refused() {
        let devices = [
            taken(device(100, 2), 1, 3000),
            taken(device(100, 4), 1, 4000),
        ];
        // 4 of 2 and 5 of 4, then 6 of 4, 7 of 4 and so on.
        assert_eq!(arrive(&model(3, 1), &devices), Ok(vec![1, 1, 1]));
        // More than any device has.
        assert_eq!(arrive(&model(1, 8), &[device(100, 2)]), Ok(vec![0]));
    }

    #[test]
    fn what_is_missing_is_told_by_device() {
        let devices = [taken(device(100, 2), 70, 0), taken(device(60, 1), 8, 0)];
        let one = |needed, free| DeviceShortage { needed, free };
        let large = Arrival {
            first_bytes: 53,
            ..model(2, 1)
        };
        let refused = arrive(&large, &devices).expect_err("too large");
        assert_eq!(refused.placed, 0);
        assert_eq!(refused.devices, [one(53, 30), one(53, 52)]);
        assert_eq!(refused.devices[1].short(), 1);
        // The first fits, and leaves no room for the second.
        let refused = arrive(&model(2, 1), &devices).expect_err("too many");
        assert_eq!((refused.placed, refused.devices[1]), (1, one(5, 2)));
    }
}
