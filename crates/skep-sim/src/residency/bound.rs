//! What no eviction policy can exceed.

use crate::residency::Fleet;

/// The most requests that can find their model resident, whatever leaves when.
///
/// A request is a hit only if its model stayed from the request before to this one, and occupied its bytes for that
/// time. All these areas together cannot exceed the budget times the whole time; the most hits are those with the
/// smallest areas. Shared tensors count as nothing, so that the bound holds for families too, but is loose for them.
///
/// Source: Berger, Beckmann and Harchol-Balter, "Practical bounds on optimal caching with variable object sizes",
/// SIGMETRICS 2018, PFOO-U.
#[must_use]
pub fn bound(fleet: &Fleet, budget: u64) -> usize {
    let mut last = vec![None; fleet.models.len()];
    let mut areas: Vec<u128> = Vec::new();
    for request in &fleet.requests {
        if let Some(before) = last[request.model].replace(request.at) {
            let bytes = fleet.models[request.model].size.private_bytes;
            if bytes <= budget {
                let nanos = request.at.since(before).as_nanos();
                areas.push(nanos * u128::from(bytes));
            }
        }
    }
    areas.sort_unstable();
    let (Some(first), Some(end)) = (fleet.requests.first(), fleet.requests.last()) else {
        return 0;
    };
    let mut room = end.at.since(first.at).as_nanos() * u128::from(budget);
    let fits = |area: &u128| match room.checked_sub(*area) {
        Some(left) => {
            room = left;
            true
        }
        None => false,
    };
    areas.iter().copied().take_while(fits).count()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use skep_placer::residency::ModelSize;
    use skep_types::Time;

    use super::*;
    use crate::residency::{FleetModel, FleetRequest};

    #[test]
    fn the_smallest_areas_fill_the_room() {
        let model = |bytes| FleetModel {
            size: ModelSize::private(bytes),
            bytes,
            load_time: Duration::ZERO,
        };
        let request = |second, model| FleetRequest {
            at: Time::ZERO + Duration::from_secs(second),
            model,
        };
        let fleet = Fleet {
            models: vec![model(10), model(20)],
            requests: vec![
                request(0, 0),
                request(0, 1),
                request(5, 0),
                request(10, 0),
                request(10, 1),
            ],
        };
        // Areas of 50, 50 and 200 in byte seconds, over 10 s.
        assert_eq!(
            [9, 10, 19, 20, 29, 30].map(|budget| bound(&fleet, budget)),
            [0, 2, 2, 2, 2, 3]
        );
    }
}
