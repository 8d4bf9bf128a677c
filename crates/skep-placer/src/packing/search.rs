//! Packings with fewer devices than those of the heuristics.
//!
//! For equal devices: is there a packing on one device less? Devices are filled one after the other. Each gets the largest
//! item that is left, and a set of others to which no further one could be added: any packing can be made into one of
//! these, by moving items forward (bin completion; Korf, AAAI 2002). What devices leave empty adds up, and a branch ends
//! when it is more than all of them may leave. Sets of items that did not fit are remembered.

use std::collections::HashMap;

use super::{Resources, bound::least_devices, fit, largest, used};

/// Items are bits of a set.
const MOST_ITEMS: usize = 64;

/// Steps of all searches of a packing together: some seconds.
const MAX_STEPS: u64 = 50_000_000;

/// Sets that are remembered at most: 24 bytes each.
const MAX_REMEMBERED: usize = 1 << 20;

/// The best packing found, and how few devices any takes, if that is known better than by the bound.
pub(super) fn search(
    items: &[Resources],
    devices: &[Resources],
) -> (Vec<Option<usize>>, Option<usize>) {
    let mut best = heuristics(items, devices);
    let least = least_devices(items, devices);
    let Some(&device) = devices.first() else {
        return (best, None);
    };
    let is_alike = devices.iter().all(|other| *other == device);
    let fit = items.iter().all(|item| item.fits(device));
    if !is_alike || !fit || items.is_empty() || items.len() > MOST_ITEMS {
        return (best, None);
    }
    let is_whole = best.iter().all(Option::is_some);
    // One more than there are, if not all items have a device.
    let mut count = if is_whole {
        used(&best)
    } else {
        devices.len() + 1
    };
    let mut completion = Completion::new(items, device);
    while count > least {
        match completion.within(count - 1) {
            Found::Packing(device_of) => best = device_of.into_iter().map(Some).collect(),
            Found::Nothing => return (best, Some(count)),
            Found::TooLong => return (best, None),
        }
        count = used(&best);
    }
    (best, None)
}

/// The best of best fit in several orders: most items placed, then fewest devices.
fn heuristics(items: &[Resources], devices: &[Resources]) -> Vec<Option<usize>> {
    let largest = largest(devices);
    let key = |of: fn([f64; 2]) -> f64| fit::by(items, |item| of(item.shares_of(largest)));
    let orders = [
        fit::by_size(items, devices),
        key(|[bytes, cores]| bytes + cores),
        key(|[bytes, cores]| bytes * cores),
        key(|[bytes, _]| bytes),
        key(|[_, cores]| cores),
    ];
    let packings = orders.iter().flat_map(|order| {
        [
            fit::best_fit(items, devices, order),
            fit::first_fit(items, devices, order),
        ]
    });
    let rank = |packing: &Vec<Option<usize>>| {
        let unplaced = packing.iter().filter(|place| place.is_none()).count();
        (unplaced, used(packing))
    };
    packings.min_by_key(rank).unwrap_or_default()
}

enum Found {
    Packing(Vec<usize>),
    Nothing,
    TooLong,
}

/// The search on equal devices.
struct Completion {
    /// By decreasing size.
    items: Vec<Resources>,
    /// The places of those items in the order given.
    order: Vec<usize>,
    device: Resources,
    steps_left: u64,
    /// Sets that do not fit on so many devices.
    failed: HashMap<u64, usize>,
    device_of: Vec<usize>,
}

impl Completion {
    fn new(items: &[Resources], device: Resources) -> Self {
        let order = fit::by_size(items, &[device]);
        Self {
            items: order.iter().map(|index| items[*index]).collect(),
            order,
            device,
            steps_left: MAX_STEPS,
            failed: HashMap::new(),
            device_of: vec![0; items.len()],
        }
    }

    fn within(&mut self, devices: usize) -> Found {
        let all = match self.items.len() {
            MOST_ITEMS => u64::MAX,
            count => (1 << count) - 1,
        };
        let total = self.items.iter().fold([0_u128; 2], |sum, item| {
            [
                sum[0] + u128::from(item.bytes),
                sum[1] + u128::from(item.millicores),
            ]
        });
        let capacity = [self.device.bytes, self.device.millicores].map(u128::from);
        let mut spare = [0_u128; 2];
        for dimension in 0..2 {
            match (devices as u128 * capacity[dimension]).checked_sub(total[dimension]) {
                Some(left) => spare[dimension] = left,
                None => return Found::Nothing,
            }
        }
        match self.fill(all, devices, spare) {
            Some(true) => {
                let mut device_of = vec![0; self.items.len()];
                for (place, index) in self.order.iter().enumerate() {
                    device_of[*index] = self.device_of[place];
                }
                Found::Packing(device_of)
            }
            Some(false) => Found::Nothing,
            None => Found::TooLong,
        }
    }

    /// Packs the items of a set onto so many devices, which may leave so much empty; `None` if that takes too long.
    fn fill(&mut self, left: u64, devices: usize, spare: [u128; 2]) -> Option<bool> {
        if left == 0 {
            return Some(true);
        }
        if devices == 0
            || self
                .failed
                .get(&left)
                .is_some_and(|failed| devices <= *failed)
        {
            return Some(false);
        }
        let first = left.trailing_zeros() as usize;
        let begun = Begun {
            left,
            devices,
            spare,
            chosen: 1 << first,
            room: self.device.less(self.items[first]),
        };
        if self.complete(begun, first + 1)? {
            return Some(true);
        }
        if self.failed.len() < MAX_REMEMBERED {
            self.failed.insert(left, devices);
        }
        Some(false)
    }

    /// Adds further items, from `next` on, to those chosen for a device, and packs the rest onto the other devices.
    fn complete(&mut self, begun: Begun, next: usize) -> Option<bool> {
        self.steps_left = self.steps_left.checked_sub(1)?;
        let mut skipped: Option<Resources> = None;
        for place in next..self.items.len() {
            let item = self.items[place];
            let is_left = begun.left & (1 << place) != 0;
            // Without one there is no use in an equal one.
            if !is_left || !item.fits(begun.room) || skipped == Some(item) {
                continue;
            }
            let with_it = Begun {
                chosen: begun.chosen | 1 << place,
                room: begun.room.less(item),
                ..begun
            };
            if self.complete(with_it, place + 1)? {
                return Some(true);
            }
            skipped = Some(item);
        }
        let rest = begun.left & !begun.chosen;
        let could_add = places(rest).any(|place| self.items[place].fits(begun.room));
        if could_add {
            return Some(false);
        }
        let empty = [begun.room.bytes, begun.room.millicores].map(u128::from);
        let [bytes, cores] =
            [0, 1].map(|dimension| begun.spare[dimension].checked_sub(empty[dimension]));
        let (Some(bytes), Some(cores)) = (bytes, cores) else {
            return Some(false);
        };
        if !self.fill(rest, begun.devices - 1, [bytes, cores])? {
            return Some(false);
        }
        for place in places(begun.chosen) {
            self.device_of[place] = begun.devices - 1;
        }
        Some(true)
    }
}

/// A device that is being filled.
#[derive(Debug, Clone, Copy)]
struct Begun {
    /// Items that this device and the others have to take.
    left: u64,
    /// How many devices there are for them, with this one.
    devices: usize,
    /// What those devices may leave empty.
    spare: [u128; 2],
    /// The items on this device.
    chosen: u64,
    /// What is left of it.
    room: Resources,
}

/// The members of a set.
fn places(set: u64) -> impl Iterator<Item = usize> {
    (0..MOST_ITEMS).filter(move |place| set & (1 << place) != 0)
}
