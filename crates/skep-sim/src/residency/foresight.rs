//! What a policy reaches that knows all future requests.

use std::collections::{BTreeMap, BTreeSet};

use skep_types::Time;

use crate::residency::{Fleet, ResidencyOutcome};

/// Plays the requests of a fleet with foresight: the models that would occupy the most bytes for the longest time until
/// their next request leave first (Belady's rule, with sizes). Loads take no time, and shared tensors count for each
/// model. With sizes the rule is no optimum, so that the optimum lies between this and [`bound`](super::bound).
#[must_use]
pub fn foresee(fleet: &Fleet, budget: u64) -> ResidencyOutcome {
    let next = next_requests(fleet);
    let mut outcome = ResidencyOutcome::default();
    // Resident models, each with its next request.
    let mut resident: BTreeMap<usize, Option<Time>> = BTreeMap::new();
    let mut used = 0;
    for (index, request) in fleet.requests.iter().enumerate() {
        outcome.requests += 1;
        let bytes = fleet.models[request.model].bytes;
        if let Some(expected) = resident.get_mut(&request.model) {
            outcome.hits += 1;
            *expected = next[index];
            continue;
        }
        if bytes > budget {
            outcome.refused += 1;
            continue;
        }
        outcome.waited += 1;
        outcome.loads += 1;
        outcome.bytes_loaded += bytes;
        resident.insert(request.model, next[index]);
        used += bytes;
        if used > budget {
            used -= make_room(fleet, &mut resident, request.at, used - budget);
        }
        outcome.most_used = outcome.most_used.max(used);
    }
    outcome
}

/// Lets models leave until so many bytes are free; the one that has just come may be among them, after its request.
fn make_room(
    fleet: &Fleet,
    resident: &mut BTreeMap<usize, Option<Time>>,
    now: Time,
    needed: u64,
) -> u64 {
    let mut by_area: BTreeSet<(u128, usize)> = resident
        .iter()
        .map(|(model, next)| {
            let nanos = next.map_or(u128::from(u64::MAX), |next| next.since(now).as_nanos());
            (nanos * u128::from(fleet.models[*model].bytes), *model)
        })
        .collect();
    let mut freed = 0;
    while freed < needed {
        let Some((_, model)) = by_area.pop_last() else {
            break;
        };
        resident.remove(&model);
        freed += fleet.models[model].bytes;
    }
    freed
}

/// Of each request, when the next one for its model comes.
fn next_requests(fleet: &Fleet) -> Vec<Option<Time>> {
    let mut coming = vec![None; fleet.models.len()];
    let mut next: Vec<Option<Time>> = fleet
        .requests
        .iter()
        .rev()
        .map(|request| coming[request.model].replace(request.at))
        .collect();
    next.reverse();
    next
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skep_placer::residency::ModelSize;

    use super::*;
    use crate::residency::{FleetModel, FleetRequest};

    #[test]
    fn what_comes_last_and_is_large_leaves_first() {
        let model = |bytes| FleetModel {
            size: ModelSize::private(bytes),
            bytes,
            load_time: Duration::ZERO,
        };
        let order = [0, 1, 2, 0, 2, 1, 3];
        let requests = order.iter().zip(0..).map(|(model, second)| FleetRequest {
            at: Time::ZERO + Duration::from_secs(second),
            model: *model,
        });
        let fleet = Fleet {
            models: vec![model(10), model(10), model(10), model(21)],
            requests: requests.collect(),
        };
        let outcome = foresee(&fleet, 20);
        // 2 needs room: 1 comes later than 0 and leaves.
        assert_eq!((outcome.hits, outcome.loads, outcome.refused), (2, 4, 1));
        assert_eq!((outcome.bytes_loaded, outcome.most_used), (40, 20));
    }
}
