//! First fit and best fit.

use std::cmp::Ordering;

use super::{Resources, largest};

/// Indexes of items by decreasing size; equal ones in their order.
pub(super) fn by_size(items: &[Resources], devices: &[Resources]) -> Vec<usize> {
    let largest = largest(devices);
    by(items, |item| item.size(largest))
}

/// Indexes of items by a decreasing key; equal ones in their order.
pub(super) fn by(items: &[Resources], key: impl Fn(Resources) -> f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by(|a, b| key(items[*b]).total_cmp(&key(items[*a])));
    order
}

/// Each item onto the first device that has room. Devices are opened by decreasing size.
pub(super) fn first_fit(
    items: &[Resources],
    devices: &[Resources],
    order: &[usize],
) -> Vec<Option<usize>> {
    let devices_by_size = by_size(devices, devices);
    let mut room = devices.to_vec();
    place(items, order, |item| {
        let mut places = devices_by_size.iter().copied();
        let found = places.find(|device| item.fits(room[*device]))?;
        room[found] = room[found].less(item);
        Some(found)
    })
}

/// Each item onto the device in use with the least room left after it; onto the largest unused one if none has room.
pub(super) fn best_fit(
    items: &[Resources],
    devices: &[Resources],
    order: &[usize],
) -> Vec<Option<usize>> {
    let devices_by_size = by_size(devices, devices);
    let mut room = devices.to_vec();
    let mut is_used = vec![false; devices.len()];
    place(items, order, |item| {
        let left = |device: usize| {
            let [bytes, cores] = room[device].less(item).shares_of(devices[device]);
            bytes + cores
        };
        let places = || devices_by_size.iter().copied();
        let used = places().filter(|device| is_used[*device] && item.fits(room[*device]));
        let tightest =
            used.min_by(|a, b| left(*a).partial_cmp(&left(*b)).unwrap_or(Ordering::Equal));
        let unused = || places().find(|device| !is_used[*device] && item.fits(room[*device]));
        let found = tightest.or_else(unused)?;
        is_used[found] = true;
        room[found] = room[found].less(item);
        Some(found)
    })
}

fn place(
    items: &[Resources],
    order: &[usize],
    mut find: impl FnMut(Resources) -> Option<usize>,
) -> Vec<Option<usize>> {
    let mut device_of = vec![None; items.len()];
    for index in order {
        device_of[*index] = find(items[*index]);
    }
    device_of
}
