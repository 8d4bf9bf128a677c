//! What nodes hold: instances, processes, tensors.

use std::collections::{BTreeSet, HashMap};

use skep_placer::{
    packing::Resources,
    placement::{NodeView, PlacementPolicy, PlacementTerms, place},
    residency::TensorKey,
};

use super::{
    platform::PlatformRules,
    scenario::{ClusterModel, ClusterScenario},
};

/// What all nodes hold together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Held {
    /// All of it.
    pub(super) bytes: u64,
    /// Tensors; those that are shared count once a node.
    pub(super) tensor_bytes: u64,
    /// The same tensors, each once in the cluster: no platform that shares tensors holds less.
    pub(super) distinct_bytes: u64,
    /// Cores that instances own, in thousandths.
    pub(super) millicores: u64,
    pub(super) instances: u32,
    /// Nodes with an instance.
    pub(super) nodes: u32,
}

/// What an instance takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct InstanceSize {
    pub(super) private_bytes: u64,
    pub(super) millicores: u64,
}

/// Where an instance was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) node: usize,
    /// Bytes of tensors that have to be read there.
    pub(super) read_bytes: u64,
    /// Whether a process has to start.
    pub(super) starts_process: bool,
}

#[derive(Debug, Default)]
struct NodeState {
    /// What is held; what the platform believes is held.
    bytes: u64,
    claimed: u64,
    millicores: u64,
    instances: u32,
    stored: BTreeSet<TensorKey>,
    /// Instances that use each tensor.
    uses: HashMap<TensorKey, u32>,
    /// Instances by model.
    of_model: HashMap<usize, u32>,
}

/// Files are this much smaller than what ModelMesh claims for a model.
const GUESS: (u64, u64) = (5, 4);

pub(super) struct Nodes {
    nodes: Vec<NodeState>,
    node: Resources,
    rules: PlatformRules,
    process_bytes: u64,
    /// How much of a model's instances one node takes.
    spread: f64,
    /// How many nodes, or instances where nothing is shared, hold each tensor.
    copies: HashMap<TensorKey, u32>,
    pub(super) held: Held,
    /// The most that a node held beyond its memory.
    pub(super) overrun: u64,
}

impl Nodes {
    pub(super) fn new(scenario: &ClusterScenario, rules: PlatformRules) -> Self {
        let nodes = (0..scenario.nodes).map(|_| NodeState::default());
        Self {
            nodes: nodes.collect(),
            node: scenario.node,
            rules,
            process_bytes: scenario.costs.process_bytes,
            spread: scenario.spread,
            copies: HashMap::new(),
            held: Held::default(),
            overrun: 0,
        }
    }

    /// Places an instance of a model that has `others` of them; `None` if no node has room.
    pub(super) fn place(
        &mut self,
        index: usize,
        model: &ClusterModel,
        size: InstanceSize,
        others: u32,
        policy: PlacementPolicy,
    ) -> Option<Placed> {
        let tensors: &[(TensorKey, u64)] = match self.rules.shares {
            true => &model.tensors,
            false => &[],
        };
        let terms = PlacementTerms {
            needs: Resources {
                bytes: self.claim(model, size),
                millicores: size.millicores,
            },
            tensors,
            instances: others + 1,
            spread: self.spread,
        };
        let views: Vec<NodeView<'_>> = self
            .nodes
            .iter()
            .map(|node| self.view(node, index))
            .collect();
        let node = place(&views, &terms, policy)?;
        Some(self.add(node, index, model, size))
    }

    fn view<'a>(&self, node: &'a NodeState, model: usize) -> NodeView<'a> {
        NodeView {
            server_bytes: match self.needs_process(node) {
                true => self.process_bytes,
                false => 0,
            },
            free: Resources {
                bytes: (self.node.bytes).saturating_sub(node.claimed),
                millicores: self.node.millicores.saturating_sub(node.millicores),
            },
            stored: &node.stored,
            load: node.millicores as f64 / self.node.millicores.max(1) as f64,
            instances: node.of_model.get(&model).copied().unwrap_or(0),
        }
    }

    const fn needs_process(&self, node: &NodeState) -> bool {
        !self.rules.one_process || node.instances == 0
    }

    /// What the platform believes that an instance takes, beside a process and shared tensors.
    fn claim(&self, model: &ClusterModel, size: InstanceSize) -> u64 {
        match (self.rules.guesses_sizes, self.rules.shares) {
            (true, _) => model.tensor_bytes() * GUESS.0 / GUESS.1,
            (false, true) => size.private_bytes,
            (false, false) => size.private_bytes + model.tensor_bytes(),
        }
    }

    fn add(&mut self, at: usize, index: usize, model: &ClusterModel, size: InstanceSize) -> Placed {
        let claim = self.claim(model, size);
        let starts_process = self.needs_process(&self.nodes[at]);
        let process = if starts_process {
            self.process_bytes
        } else {
            0
        };
        let node = &mut self.nodes[at];
        let mut read = 0;
        for (key, bytes) in &model.tensors {
            let uses = node.uses.entry(*key).or_default();
            *uses += 1;
            if *uses > 1 && self.rules.shares {
                continue;
            }
            read += bytes;
            node.stored.insert(*key);
            let copies = self.copies.entry(*key).or_default();
            *copies += 1;
            if *copies == 1 {
                self.held.distinct_bytes += bytes;
            }
        }
        let shared = if self.rules.shares { read } else { 0 };
        let bytes = size.private_bytes + process + read;
        node.bytes += bytes;
        node.claimed += claim + process + shared;
        node.millicores += size.millicores;
        node.instances += 1;
        *node.of_model.entry(index).or_default() += 1;
        self.overrun = self.overrun.max(node.bytes.saturating_sub(self.node.bytes));
        self.held.nodes += u32::from(node.instances == 1);
        self.held.bytes += bytes;
        self.held.tensor_bytes += read;
        self.held.millicores += size.millicores;
        self.held.instances += 1;
        Placed {
            node: at,
            read_bytes: read,
            starts_process,
        }
    }

    /// Takes an instance away.
    pub(super) fn remove(
        &mut self,
        at: usize,
        index: usize,
        model: &ClusterModel,
        size: InstanceSize,
    ) {
        let claim = self.claim(model, size);
        let node = &mut self.nodes[at];
        node.instances -= 1;
        let ends_process = !self.rules.one_process || node.instances == 0;
        let process = if ends_process { self.process_bytes } else { 0 };
        let mut freed = 0;
        for (key, bytes) in &model.tensors {
            let uses = node.uses.entry(*key).or_default();
            *uses -= 1;
            let is_last = *uses == 0;
            if is_last {
                node.uses.remove(key);
                node.stored.remove(key);
            }
            if !is_last && self.rules.shares {
                continue;
            }
            freed += bytes;
            let copies = self.copies.entry(*key).or_default();
            *copies -= 1;
            if *copies == 0 {
                self.held.distinct_bytes -= bytes;
            }
        }
        let shared = if self.rules.shares { freed } else { 0 };
        let bytes = size.private_bytes + process + freed;
        node.bytes -= bytes;
        node.claimed -= claim + process + shared;
        node.millicores -= size.millicores;
        if let Some(count) = node.of_model.get_mut(&index) {
            *count -= 1;
        }
        self.held.nodes -= u32::from(node.instances == 0);
        self.held.bytes -= bytes;
        self.held.tensor_bytes -= freed;
        self.held.millicores -= size.millicores;
        self.held.instances -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cluster::{Platform, tests::scenario};

    fn model(tensors: &[(u8, u64)]) -> ClusterModel {
        let tensors = tensors.iter();
        ClusterModel {
            name: "m".to_owned(),
            objective: Duration::from_secs(1),
            tensors: tensors
                .map(|(key, bytes)| (TensorKey([*key; 32]), *bytes))
                .collect(),
            configurations: Vec::new(),
        }
    }

    const SIZE: InstanceSize = InstanceSize {
        private_bytes: 5,
        millicores: 2000,
    };

    fn nodes(platform: Platform) -> Nodes {
        let mut scenario = scenario();
        scenario.nodes = 2;
        scenario.node = Resources {
            bytes: 1000,
            millicores: 8000,
        };
        scenario.costs.process_bytes = 50;
        scenario.spread = 1.0;
        Nodes::new(&scenario, platform.rules())
    }

    #[test]
    fn shared_tensors_and_one_process_count_once_a_node() {
        let (one, other) = (model(&[(1, 100), (2, 30)]), model(&[(1, 100), (3, 7)]));
        let mut skep = nodes(Platform::Skep);
        let place = |nodes: &mut Nodes, index, model: &ClusterModel| {
            nodes
                .place(index, model, SIZE, 0, PlacementPolicy::Theta)
                .expect("room")
        };
        let first = place(&mut skep, 0, &one);
        assert_eq!((first.read_bytes, first.starts_process), (130, true));
        let second = place(&mut skep, 1, &other);
        assert_eq!(second.node, first.node);
        assert_eq!((second.read_bytes, second.starts_process), (7, false));
        assert_eq!(skep.held.bytes, 50 + 137 + 2 * 5);
        assert_eq!(
            (skep.held.tensor_bytes, skep.held.distinct_bytes),
            (137, 137)
        );
        skep.remove(first.node, 0, &one, SIZE);
        assert_eq!(skep.held.bytes, 50 + 107 + 5);
        skep.remove(second.node, 1, &other, SIZE);
        assert_eq!(skep.held, Held::default());

        let mut photons = nodes(Platform::Photons);
        place(&mut photons, 0, &one);
        place(&mut photons, 1, &other);
        assert_eq!(photons.held.bytes, 2 * 55 + 130 + 107);
        assert_eq!(photons.held.distinct_bytes, 137);
    }

    #[test]
    fn guesses_can_be_wrong_and_show_it() {
        let mut guessing = nodes(Platform::ModelMesh);
        guessing.nodes.truncate(1);
        let model = model(&[(1, 100)]);
        let large = InstanceSize {
            private_bytes: 400,
            millicores: 0,
        };
        for _ in 0..3 {
            let policy = PlacementPolicy::Random(0);
            guessing.place(0, &model, large, 0, policy).expect("room");
        }
        // 3 * 500 and a process, in a node of 1,000.
        assert_eq!(guessing.overrun, 550);
    }

    #[test]
    fn what_fits_nowhere_is_not_placed() {
        let mut skep = nodes(Platform::Skep);
        let place = |nodes: &mut Nodes, bytes| {
            let model = model(&[(1, bytes)]);
            nodes.place(0, &model, SIZE, 0, PlacementPolicy::LeastLoaded)
        };
        // With the process and the private bytes.
        assert_eq!(place(&mut skep, 946), None);
        assert!(place(&mut skep, 945).is_some());
        let mut skep = nodes(Platform::Skep);
        for _ in 0..8 {
            assert!(place(&mut skep, 900).is_some());
        }
        assert_eq!(place(&mut skep, 900), None, "no cores are left");
    }
}
