//! Instances on devices.

use std::collections::{BTreeMap, BTreeSet};

use skep_placer::{
    packing::{PackingRule, Resources, least_devices, pack},
    placement::{NodeView, PlacementPolicy, PlacementTerms, place as place_one},
    residency::TensorKey,
};

use super::SelectedModel;

/// An instance: one server's worth of a model, with the cores of its configuration.
#[derive(Debug)]
pub(super) struct PlacedInstance {
    pub(super) model: usize,
    /// The configuration, by its index in the profile.
    pub(super) configuration: usize,
    /// What it takes of a device that has none of its tensors.
    pub(super) alone: Resources,
    pub(super) device: Option<usize>,
}

#[derive(Debug)]
pub(super) struct PlacedInstances {
    pub(super) instances: Vec<PlacedInstance>,
    /// What is taken of each device, each tensor once.
    pub(super) taken: Vec<Resources>,
    /// The bytes that those devices would hold if nothing were shared.
    pub(super) unshared: u64,
    /// No placement takes fewer devices.
    pub(super) least_devices: usize,
}

/// Places instances by a rule of packing, or by theta.
pub(super) fn place(
    models: &[SelectedModel<'_>],
    devices: &[Resources],
    rule: Option<PackingRule>,
) -> PlacedInstances {
    let tensors: Vec<Vec<(TensorKey, u64)>> = models.iter().map(tensors).collect();
    let mut instances = Vec::new();
    for (number, model) in models.iter().enumerate() {
        for (configuration, count) in &model.selection.instances {
            let one = model.configurations[*configuration];
            let alone = Resources {
                bytes: one.private_bytes + bytes(&tensors[number]),
                millicores: u64::from(one.cpus) * 1000,
            };
            instances.extend((0..*count).map(|_| PlacedInstance {
                model: number,
                configuration: *configuration,
                alone,
                device: None,
            }));
        }
    }
    let items: Vec<Resources> = instances.iter().map(|one| one.alone).collect();
    let device_of = match rule {
        None => by_theta(&tensors, &instances, devices),
        Some(rule) => pack(&items, devices, rule).device_of,
    };
    for (instance, device) in instances.iter_mut().zip(device_of) {
        instance.device = device;
    }
    let mut taken = vec![Resources::default(); devices.len()];
    let mut stored = vec![BTreeSet::new(); devices.len()];
    let mut unshared = 0_u64;
    for instance in &instances {
        let Some(device) = instance.device else {
            continue;
        };
        unshared = unshared.saturating_add(instance.alone.bytes);
        let new = tensors[instance.model].iter();
        let new: Vec<_> = new
            .filter(|tensor| stored[device].insert(**tensor))
            .collect();
        let private = instance.alone.bytes - bytes(&tensors[instance.model]);
        let added = new
            .iter()
            .fold(private, |sum, (_, bytes)| sum.saturating_add(*bytes));
        taken[device] = taken[device].plus(Resources {
            bytes: added,
            millicores: instance.alone.millicores,
        });
    }
    PlacedInstances {
        least_devices: bound(&instances, &tensors, devices),
        instances,
        taken,
        unshared,
    }
}

/// Each tensor of the model once.
fn tensors(model: &SelectedModel<'_>) -> Vec<(TensorKey, u64)> {
    let rows = model.profile.tensors.iter();
    let keys: BTreeMap<TensorKey, u64> = rows
        .map(|row| (tensor_key(&row.digest), row.bytes))
        .collect();
    keys.into_iter().collect()
}

/// The digest of a checked profile.
pub(crate) fn tensor_key(digest: &str) -> TensorKey {
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(digest.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).unwrap_or_default();
    }
    TensorKey(key)
}

fn bytes(tensors: &[(TensorKey, u64)]) -> u64 {
    tensors
        .iter()
        .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
}

/// The largest first, onto devices in use where most of the tensors are, then onto the next unused one.
fn by_theta(
    tensors: &[Vec<(TensorKey, u64)>],
    instances: &[PlacedInstance],
    devices: &[Resources],
) -> Vec<Option<usize>> {
    let mut free = devices.to_vec();
    let mut stored = vec![BTreeSet::new(); devices.len()];
    let mut is_used = vec![false; devices.len()];
    let mut order: Vec<usize> = (0..instances.len()).collect();
    let size = |index: &usize| {
        let alone = instances[*index].alone;
        (alone.bytes, alone.millicores)
    };
    order.sort_by_key(|index| std::cmp::Reverse(size(index)));
    let mut by_size: Vec<usize> = (0..devices.len()).collect();
    by_size.sort_by_key(|device| {
        std::cmp::Reverse((devices[*device].bytes, devices[*device].millicores))
    });
    let mut device_of = vec![None; instances.len()];
    for index in order {
        let instance = &instances[index];
        let own = &tensors[instance.model];
        let terms = PlacementTerms {
            needs: Resources {
                bytes: instance.alone.bytes - bytes(own),
                millicores: instance.alone.millicores,
            },
            tensors: own,
            instances: 1,
            // On the devices of one node nothing is gained by spreading.
            spread: f64::INFINITY,
        };
        let view = |device: usize| NodeView {
            server_bytes: 0,
            free: free[device],
            stored: &stored[device],
            // Of equal thetas the fullest device, as in best fit.
            load: free[device].bytes as f64 / devices[device].bytes.max(1) as f64,
            instances: 0,
        };
        let used: Vec<usize> = (0..devices.len())
            .filter(|device| is_used[*device])
            .collect();
        let views: Vec<NodeView<'_>> = used.iter().map(|device| view(*device)).collect();
        let found = place_one(&views, &terms, PlacementPolicy::Theta).map(|place| used[place]);
        let found = found.or_else(|| {
            let unused = by_size.iter().copied().filter(|device| !is_used[*device]);
            let mut room = unused.filter(|device| {
                place_one(&[view(*device)], &terms, PlacementPolicy::Theta).is_some()
            });
            room.next()
        });
        let Some(device) = found else { continue };
        let missing = view(device).missing(own);
        is_used[device] = true;
        free[device] = free[device].less(Resources {
            bytes: terms.needs.bytes + missing,
            millicores: terms.needs.millicores,
        });
        stored[device].extend(own.iter().map(|(tensor, _)| *tensor));
        device_of[index] = Some(device);
    }
    device_of
}

/// No placement takes fewer devices: private bytes and cores, and each tensor once, as if it could be cut.
fn bound(
    instances: &[PlacedInstance],
    tensors: &[Vec<(TensorKey, u64)>],
    devices: &[Resources],
) -> usize {
    let mut items: Vec<Resources> = instances
        .iter()
        .map(|instance| Resources {
            bytes: instance.alone.bytes - bytes(&tensors[instance.model]),
            millicores: instance.alone.millicores,
        })
        .collect();
    let used: BTreeSet<usize> = instances.iter().map(|instance| instance.model).collect();
    let once: BTreeMap<TensorKey, u64> = used
        .iter()
        .flat_map(|model| tensors[*model].iter().copied())
        .collect();
    items.extend(once.into_values().map(|bytes| Resources {
        bytes,
        millicores: 0,
    }));
    least_devices(&items, devices)
}
