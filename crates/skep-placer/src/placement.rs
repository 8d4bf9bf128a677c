//! On which node an instance of a model starts, and which instances are released first.
//!
//! A node that has tensors of the model already takes less memory for it. Theta is that share (Tetris, USENIX ATC'22, §5.3),
//! here exact, by digest: the bytes of the model's tensors that the node's store has, over all of them. Theta alone would
//! bring all instances to one node; [`PlacementTerms::spread`] bounds how many of them one node takes.
//!
//! Of nodes whose theta is about the same, most often 0, the one is chosen on which an instance brings the fewest bytes if
//! others follow: the tensors that are missing there are divided by the instances for which there is room. So the last
//! place of a full node does not get a copy of a model that needs four.

use std::collections::BTreeSet;

use crate::{packing::Resources, residency::TensorKey};

/// What is known of a node.
#[derive(Debug, Clone, Copy)]
pub struct NodeView<'a> {
    /// What it has left.
    pub free: Resources,
    /// The tensors in its store.
    pub stored: &'a BTreeSet<TensorKey>,
    /// What it takes there beside an instance, since the server does not run yet; 0 where it does.
    pub server_bytes: u64,
    /// How busy it is, as a share of its cores.
    pub load: f64,
    /// Instances of this model that it has.
    pub instances: u32,
}

/// What an instance needs.
#[derive(Debug, Clone, Copy)]
pub struct PlacementTerms<'a> {
    /// Its private bytes, and its cores.
    pub needs: Resources,
    /// The model's tensors with their bytes.
    pub tensors: &'a [(TensorKey, u64)],
    /// How many instances the model has on all nodes, with this one.
    pub instances: u32,
    /// The largest share of them that one node takes, as long as another one has room; one instance always may.
    pub spread: f64,
}

/// How a node is chosen among those that have room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PlacementPolicy {
    /// The one with the largest theta; of those within [`NEAR`] of it, the one to which instances bring the fewest bytes,
    /// and of those the least loaded.
    Theta,
    /// The least loaded.
    LeastLoaded,
    /// Any, by this random number.
    Random(u64),
}

/// Thetas that differ by less are as good as equal, and so are bytes that differ by such a share.
pub const NEAR: f64 = 0.05;

impl NodeView<'_> {
    /// The share of these tensors' bytes that the node already stores; 0 without tensors.
    #[must_use]
    pub fn theta(&self, tensors: &[(TensorKey, u64)]) -> f64 {
        let all = bytes(tensors.iter());
        match all {
            0 => 0.0,
            all => (all - self.missing(tensors)) as f64 / all as f64,
        }
    }

    /// The bytes of tensors that each instance brings, if as many follow as there is room for.
    fn bytes_brought(&self, terms: &PlacementTerms<'_>) -> f64 {
        let missing = self.missing(terms.tensors);
        let free = self.free.less(Resources {
            bytes: missing.saturating_add(self.server_bytes),
            millicores: 0,
        });
        let rooms = |free: u64, needed: u64| free.checked_div(needed).unwrap_or(u64::MAX);
        let by_bytes = rooms(free.bytes, terms.needs.bytes);
        let by_cores = rooms(free.millicores, terms.needs.millicores);
        missing as f64 / by_bytes.min(by_cores).max(1) as f64
    }

    /// The bytes of these tensors that are not here.
    #[must_use]
    pub fn missing(&self, tensors: &[(TensorKey, u64)]) -> u64 {
        let missing = tensors.iter();
        bytes(missing.filter(|(tensor, _)| !self.stored.contains(tensor)))
    }

    fn has_room(&self, terms: &PlacementTerms<'_>) -> bool {
        let tensors = Resources {
            bytes: (self.missing(terms.tensors)).saturating_add(self.server_bytes),
            millicores: 0,
        };
        terms.needs.plus(tensors).fits(self.free)
    }
}

/// Each tensor once, however often it is named.
fn bytes<'a>(tensors: impl Iterator<Item = &'a (TensorKey, u64)>) -> u64 {
    let distinct: BTreeSet<&(TensorKey, u64)> = tensors.collect();
    distinct
        .into_iter()
        .fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
}

/// The node for an instance, by its index; `None` if none has room.
#[must_use]
pub fn place(
    nodes: &[NodeView<'_>],
    terms: &PlacementTerms<'_>,
    policy: PlacementPolicy,
) -> Option<usize> {
    let most = (terms.spread * f64::from(terms.instances)).floor().max(1.0);
    let mut rooms: Vec<usize> = (0..nodes.len())
        .filter(|node| nodes[*node].has_room(terms))
        .collect();
    let is_spread = |node: &usize| f64::from(nodes[*node].instances) + 1.0 <= most;
    // An instance in the wrong place serves more than none.
    if rooms.iter().any(is_spread) {
        rooms.retain(is_spread);
    }
    let least_loaded = |among: &[usize]| {
        let nodes = among.iter().copied().map(|node| (node, nodes[node].load));
        let least = nodes.min_by(|a, b| a.1.total_cmp(&b.1));
        least.map(|(node, _)| node)
    };
    match policy {
        PlacementPolicy::Theta => {
            let thetas = rooms.iter().map(|node| nodes[*node].theta(terms.tensors));
            let thetas: Vec<f64> = thetas.collect();
            let largest = thetas.iter().copied().fold(0.0, f64::max);
            let near = rooms.iter().zip(&thetas);
            let near = near.filter(|(_, theta)| largest - **theta < NEAR);
            let brought = near.map(|(node, _)| (*node, nodes[*node].bytes_brought(terms)));
            let brought: Vec<(usize, f64)> = brought.collect();
            let fewest = brought.iter().map(|(_, bytes)| *bytes);
            let fewest = fewest.fold(f64::INFINITY, f64::min);
            let few = brought
                .iter()
                .filter(|(_, bytes)| *bytes <= fewest * (1.0 + NEAR));
            let few: Vec<usize> = few.map(|(node, _)| *node).collect();
            least_loaded(&few)
        }
        PlacementPolicy::LeastLoaded => least_loaded(&rooms),
        PlacementPolicy::Random(number) => {
            let count = u64::try_from(rooms.len()).unwrap_or(u64::MAX);
            let place = number.checked_rem(count)?;
            rooms.get(usize::try_from(place).ok()?).copied()
        }
    }
}

/// An instance that serves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServingInstance {
    /// Requests a second that it can serve within the objective.
    pub throughput: f64,
    /// Requests a second that it serves.
    pub load: f64,
}

/// The instances to release, by their index, in this order: the least loaded first, as long as the others can serve
/// `rate` requests a second without them.
#[must_use]
pub fn release(instances: &[ServingInstance], rate: f64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..instances.len()).collect();
    order.sort_by(|a, b| instances[*a].load.total_cmp(&instances[*b].load));
    let mut left: f64 = instances.iter().map(|instance| instance.throughput).sum();
    order.retain(|index| {
        let without = left - instances[*index].throughput;
        let goes = without >= rate;
        if goes {
            left = without;
        }
        goes
    });
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> TensorKey {
        TensorKey([number; 32])
    }

    fn room(bytes: u64, millicores: u64) -> Resources {
        Resources { bytes, millicores }
    }

    fn node(
        free: Resources,
        stored: &BTreeSet<TensorKey>,
        load: f64,
        instances: u32,
    ) -> NodeView<'_> {
        NodeView {
            free,
            stored,
            server_bytes: 0,
            load,
            instances,
        }
    }

    #[test]
    fn an_instance_goes_where_its_tensors_are() {
        let (none, some, most) = (
            BTreeSet::new(),
            BTreeSet::from([key(1)]),
            BTreeSet::from([key(1), key(2), key(9)]),
        );
        let tensors = [(key(1), 60), (key(2), 37), (key(3), 3), (key(1), 60)];
        let terms = PlacementTerms {
            needs: room(10, 1000),
            tensors: &tensors,
            instances: 4,
            spread: 0.5,
        };
        let large = room(1000, 4000);
        let mut nodes = [
            node(large, &none, 0.1, 0),
            node(large, &some, 0.5, 0),
            node(large, &most, 0.9, 0),
        ];
        let thetas = nodes.map(|node| (100.0 * node.theta(&tensors)).round());
        assert_eq!(thetas, [0.0, 60.0, 97.0]);
        let by = |nodes: &[NodeView<'_>], policy| place(nodes, &terms, policy);
        assert_eq!(by(&nodes, PlacementPolicy::Theta), Some(2));
        assert_eq!(by(&nodes, PlacementPolicy::LeastLoaded), Some(0));
        assert_eq!(by(&nodes, PlacementPolicy::Random(7)), Some(1));
        nodes[2].instances = 1;
        assert_eq!(by(&nodes, PlacementPolicy::Theta), Some(2));
        // Two of four are half of them.
        nodes[2].instances = 2;
        assert_eq!(by(&nodes, PlacementPolicy::Theta), Some(1));
        // 10 and the 40 that are missing, not 110.
        nodes[1].free = room(49, 4000);
        assert_eq!(by(&nodes, PlacementPolicy::Theta), Some(0));
        nodes[1].free = room(50, 4000);
        assert_eq!(by(&nodes, PlacementPolicy::Theta), Some(1));
        nodes[1].free = room(50, 999);
        nodes[0].free = room(0, 0);
        assert_eq!(
            by(&nodes, PlacementPolicy::Theta),
            Some(2),
            "better than nowhere"
        );
        nodes[2].free = room(12, 4000);
        assert_eq!(by(&nodes, PlacementPolicy::Theta), None);
        assert_eq!(by(&nodes, PlacementPolicy::Random(7)), None);
    }

    #[test]
    fn of_near_thetas_the_load_decides() {
        let (some, more) = (BTreeSet::from([key(1)]), BTreeSet::from([key(1), key(2)]));
        let tensors = [(key(1), 996), (key(2), 4), (key(3), 100)];
        let terms = PlacementTerms {
            needs: Resources::default(),
            tensors: &tensors,
            instances: 1,
            spread: 0.5,
        };
        let nodes = [
            node(room(200, 0), &more, 0.8, 0),
            node(room(200, 0), &some, 0.2, 0),
        ];
        assert_eq!(place(&nodes, &terms, PlacementPolicy::Theta), Some(1));
    }

    #[test]
    fn instances_go_where_others_can_follow() {
        let none = BTreeSet::new();
        let tensors = [(key(1), 100)];
        let terms = PlacementTerms {
            needs: room(10, 1000),
            tensors: &tensors,
            instances: 1,
            spread: 1.0,
        };
        let mut nodes = [
            node(room(1000, 8000), &none, 0.7, 0),
            node(room(1000, 1000), &none, 0.0, 0),
        ];
        let by_theta = |nodes: &[NodeView<'_>]| place(nodes, &terms, PlacementPolicy::Theta);
        // The tensors are for eight there, and for one alone here.
        assert_eq!(by_theta(&nodes), Some(0));
        nodes[1].free = room(1000, 8000);
        assert_eq!(by_theta(&nodes), Some(1), "the least loaded");
        // There is memory for two after the tensors.
        nodes[1].free = room(120, 8000);
        assert_eq!(by_theta(&nodes), Some(0));
        // 10, 100 and a server.
        nodes[1].free = room(0, 0);
        nodes[0].server_bytes = 50;
        nodes[0].free = room(159, 8000);
        assert_eq!(by_theta(&nodes), None);
        nodes[0].free = room(160, 8000);
        assert_eq!(by_theta(&nodes), Some(0));
    }

    #[test]
    fn the_least_loaded_go_unless_the_rate_needs_them() {
        let instance = |throughput, load| ServingInstance { throughput, load };
        let instances = [
            instance(10.0, 5.0),
            instance(40.0, 1.0),
            instance(10.0, 2.0),
            instance(10.0, 3.0),
        ];
        assert_eq!(release(&instances, 70.0), [] as [usize; 0]);
        // The idle large one is needed, two small ones are not.
        assert_eq!(release(&instances, 45.0), [2, 3]);
        assert_eq!(release(&instances, 25.0), [1]);
        assert_eq!(release(&instances, 0.0), [1, 2, 3, 0]);
    }
}
