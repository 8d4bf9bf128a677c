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
    place(items, devices, order, |open, _, _| open.next())
}

/// Each item onto the device in use with the least room left after it; onto the largest unused one if none has room.
pub(super) fn best_fit(
    items: &[Resources],
    devices: &[Resources],
    order: &[usize],
) -> Vec<Option<usize>> {
    place(items, devices, order, |open, item, state| {
        let left = |device: usize| state.room[device].left_after(item, devices[device]);
        let (used, unused): (Vec<usize>, Vec<usize>) =
            open.partition(|device| state.is_used[*device]);
        let tightest = used
            .into_iter()
            .min_by(|a, b| left(*a).partial_cmp(&left(*b)).unwrap_or(Ordering::Equal));
        tightest.or_else(|| unused.first().copied())
    })
}

/// What is left of devices.
struct FitState {
    room: Vec<Resources>,
    is_used: Vec<bool>,
}

/// Puts each item, in this order, onto the device that `choose` takes of those that have room for it, which come by
/// decreasing size.
fn place(
    items: &[Resources],
    devices: &[Resources],
    order: &[usize],
    choose: impl Fn(&mut dyn Iterator<Item = usize>, Resources, &FitState) -> Option<usize>,
) -> Vec<Option<usize>> {
    let by_size = by_size(devices, devices);
    let mut state = FitState {
        room: devices.to_vec(),
        is_used: vec![false; devices.len()],
    };
    let mut device_of = vec![None; items.len()];
    for index in order {
        let item = items[*index];
        let mut open = by_size
            .iter()
            .copied()
            .filter(|device| item.fits(state.room[*device]));
        let Some(device) = choose(&mut open, item, &state) else {
            continue;
        };
        state.is_used[device] = true;
        state.room[device] = state.room[device].less(item);
        device_of[*index] = Some(device);
    }
    device_of
}
