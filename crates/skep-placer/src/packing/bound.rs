//! How many devices a packing takes at least.

use super::{Resources, largest};

/// No packing of all items takes fewer devices. Items that fit nowhere are left out.
#[must_use]
pub fn least_devices(items: &[Resources], devices: &[Resources]) -> usize {
    let items: Vec<Resources> = items
        .iter()
        .copied()
        .filter(|item| devices.iter().any(|device| item.fits(*device)))
        .collect();
    let largest = largest(devices);
    let dimension = |of: fn(Resources) -> u64| {
        let sizes: Vec<u64> = items.iter().map(|item| of(*item)).collect();
        let capacities: Vec<u64> = devices.iter().map(|device| of(*device)).collect();
        fractional(&sizes, capacities).max(large_items(&sizes, of(largest)))
    };
    dimension(|one| one.bytes)
        .max(dimension(|one| one.millicores))
        .max(apart(&items, largest))
}

/// The fewest devices that together have as much as all items, which may be cut.
fn fractional(sizes: &[u64], mut capacities: Vec<u64>) -> usize {
    capacities.sort_unstable_by(|a, b| b.cmp(a));
    let mut left: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    let mut count = 0;
    for capacity in capacities {
        if left == 0 {
            break;
        }
        left = left.saturating_sub(u128::from(capacity));
        count += 1;
    }
    count
}

/// Martello and Toth's bound L2 (*Knapsack Problems*, 1990, §8.3): items of more than half a device are alone with small
/// ones, and the smaller ones fill at most what those leave.
fn large_items(sizes: &[u64], capacity: u64) -> usize {
    if capacity == 0 {
        return 0;
    }
    let half = capacity / 2;
    let mut thresholds: Vec<u64> = sizes.iter().copied().filter(|size| *size <= half).collect();
    thresholds.push(0);
    thresholds.sort_unstable();
    thresholds.dedup();
    let capacity = u128::from(capacity);
    let bound = |threshold: u64| {
        let (mut alone, mut large, mut large_sum, mut small_sum) = (0_u128, 0_u128, 0_u128, 0_u128);
        for size in sizes.iter().copied() {
            let wide = u128::from(size);
            if wide > capacity - u128::from(threshold) {
                alone += 1;
            } else if 2 * wide > capacity {
                large += 1;
                large_sum += wide;
            } else if size >= threshold {
                small_sum += wide;
            }
        }
        let beside_large = large * capacity - large_sum;
        let further = small_sum.saturating_sub(beside_large).div_ceil(capacity);
        usize::try_from(alone + large + further).unwrap_or(usize::MAX)
    };
    thresholds.into_iter().map(bound).max().unwrap_or(0)
}

/// Items of which no two fit on one device, in both dimensions together: as many as taking the largest first finds.
fn apart(items: &[Resources], largest: Resources) -> usize {
    let mut sorted = items.to_vec();
    sorted.sort_by(|a, b| b.size(largest).total_cmp(&a.size(largest)));
    let mut chosen: Vec<Resources> = Vec::new();
    for item in sorted {
        if chosen.iter().all(|one| !one.plus(item).fits(largest)) {
            chosen.push(item);
        }
    }
    chosen.len()
}
