//! Properties of residency: whatever happens, every request is answered, within the budget.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use skep_types::Time;

use super::{tests::check, *};
use crate::keep_alive::KeepAlive;

/// What a node does with outputs: everything takes a while, some loads fail, some models are larger than expected.
#[derive(Debug, Default)]
struct Node {
    loading: Vec<ModelKey>,
    leaving: Vec<ModelKey>,
    /// Requests that wait, by model.
    waiting: BTreeMap<ModelKey, usize>,
    pinned: Vec<ModelKey>,
    may_grow: bool,
}

impl Node {
    fn carry_out(&mut self, residency: &Residency, outputs: Vec<ResidencyOutput>) {
        for output in outputs {
            match output {
                ResidencyOutput::Load(model) => {
                    let figures = residency.figures();
                    assert!(
                        self.may_grow || figures.used <= figures.budget,
                        "{figures:?}"
                    );
                    assert!(!self.loading.contains(&model));
                    self.loading.push(model);
                }
                ResidencyOutput::Unload(model, reason) => {
                    let may = !self.pinned.contains(&model) || reason == DepartureReason::Explicit;
                    assert!(may, "{model:?} never leaves, and left: {reason:?}");
                    self.leaving.push(model);
                }
                ResidencyOutput::Refuse(model, _) => {
                    self.waiting.remove(&model);
                }
                ResidencyOutput::Reclaim(_) => {}
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Event {
    Request(u32),
    Leave(u32),
    Load(u32, bool),
    Unload(u32),
    Remove(u32),
    Add(u32, u64, Vec<u8>, bool),
    LoadEnds(usize, bool, u64),
    UnloadEnds(usize),
    Use(u32, bool),
    Unclaimed(u64, u64),
    Pass(u64),
}

fn event() -> impl Strategy<Value = Event> {
    let model = 0..8_u32;
    prop_oneof![
        6 => model.clone().prop_map(Event::Request),
        1 => model.clone().prop_map(Event::Leave),
        1 => (model.clone(), any::<bool>()).prop_map(|(model, evicts)| Event::Load(model, evicts)),
        1 => model.clone().prop_map(Event::Unload),
        1 => model.clone().prop_map(Event::Remove),
        2 => (model.clone(), 0..60_u64, prop::collection::vec(0..6_u8, 0..4), prop::bool::weighted(0.1))
            .prop_map(|(model, bytes, tensors, pinned)| Event::Add(model, bytes, tensors, pinned)),
        4 => (0..4_usize, prop::bool::weighted(0.8), 0..20_u64)
            .prop_map(|(which, ok, more)| Event::LoadEnds(which, ok, more)),
        4 => (0..4_usize).prop_map(Event::UnloadEnds),
        4 => (model, any::<bool>()).prop_map(|(model, busy)| Event::Use(model, busy)),
        2 => (0..40_u64, 0..60_u64).prop_map(|(kept, beyond)| Event::Unclaimed(kept, beyond)),
        3 => (0..5_000_u64).prop_map(Event::Pass),
    ]
}

fn sized(bytes: u64, tensors: &[u8]) -> ModelSize {
    let tensors = tensors.iter();
    ModelSize {
        private_bytes: bytes,
        tensors: tensors
            .map(|&key| (TensorKey([key; 32]), 10 * u64::from(key)))
            .collect(),
    }
}

fn keep_alive() -> impl Strategy<Value = KeepAlive> {
    let seconds = (1..20_u64).prop_map(Duration::from_secs);
    prop_oneof![
        Just(KeepAlive::Forever),
        seconds.clone().prop_map(KeepAlive::Fixed),
        seconds.prop_map(KeepAlive::IdleHistogram),
    ]
}

proptest! {
    #[test]
    fn every_request_is_answered_within_the_budget(
        events in prop::collection::vec(event(), 1..120),
        policy in prop::sample::select(&EvictionPolicy::ALL[..]),
        may_grow in any::<bool>(),
        loads_at_once in 1..4_usize,
        keep_alive in keep_alive(),
    ) {
        let options = ResidencyOptions { budget: 100, policy, loads_at_once, keep_alive };
        let mut residency = Residency::new(options);
        let mut node = Node { may_grow, ..Node::default() };
        let mut known: BTreeMap<ModelKey, ModelSize> = Default::default();
        let (mut now, mut beyond) = (Time::ZERO, 0);
        let end = |residency: &mut Residency, node: &mut Node, now, model, size: Option<ModelSize>| {
            let mut outputs = Vec::new();
            // Answered either way.
            node.waiting.remove(&model);
            let input = match size {
                Some(size) => ResidencyInput::Loaded { model, size, load_bytes: 0, took: Duration::from_secs(1) },
                None => ResidencyInput::Failed(model),
            };
            residency.handle(now, input, &mut outputs);
            node.carry_out(residency, outputs);
        };
        for event in events {
            now = now + Duration::from_millis(10);
            let mut outputs = Vec::new();
            let input = match event {
                Event::Request(model) => {
                    let model = ModelKey(model);
                    if residency.state(model) == Some(ResidencyState::Resident) {
                        continue;
                    }
                    *node.waiting.entry(model).or_default() += 1;
                    ResidencyInput::Requested(model)
                }
                Event::Leave(model) => {
                    let model = ModelKey(model);
                    match node.waiting.get_mut(&model) {
                        Some(1) => drop(node.waiting.remove(&model)),
                        Some(count) => *count -= 1,
                        None => continue,
                    }
                    ResidencyInput::Abandoned(model)
                }
                Event::Load(model, evicts) => ResidencyInput::Load { model: ModelKey(model), evicts },
                Event::Unload(model) => ResidencyInput::Unload(ModelKey(model)),
                Event::Remove(model) => ResidencyInput::Remove(ModelKey(model)),
                Event::Add(model, bytes, tensors, is_pinned) => {
                    let (model, size) = (ModelKey(model), sized(bytes, &tensors));
                    known.insert(model, size.clone());
                    node.pinned.retain(|pinned| *pinned != model);
                    if is_pinned {
                        node.pinned.push(model);
                    }
                    ResidencyInput::Add(model, ModelTerms { size, is_pinned, ..ModelTerms::default() })
                }
                Event::LoadEnds(which, ok, more) => {
                    if which < node.loading.len() {
                        let model = node.loading.remove(which);
                        let mut size = known[&model].clone();
                        size.private_bytes += if may_grow { more } else { 0 };
                        end(&mut residency, &mut node, now, model, ok.then_some(size));
                    }
                    continue;
                }
                Event::UnloadEnds(which) => {
                    if which >= node.leaving.len() {
                        continue;
                    }
                    ResidencyInput::Unloaded(node.leaving.remove(which))
                }
                Event::Use(model, is_busy) => {
                    let model = ModelKey(model);
                    if residency.state(model) != Some(ResidencyState::Resident) {
                        continue;
                    }
                    ResidencyInput::Used { model, requests: 1, last: now, is_busy }
                }
                Event::Unclaimed(kept, bytes) => {
                    beyond = bytes;
                    ResidencyInput::Unclaimed { kept, beyond }
                }
                Event::Pass(milliseconds) => {
                    now = now + Duration::from_millis(milliseconds);
                    residency.handle_timeout(now, &mut outputs);
                    node.carry_out(&residency, outputs);
                    continue;
                }
            };
            // A size that grew by other means than a load may be too large for a moment.
            node.may_grow |= matches!(input, ResidencyInput::Unclaimed { .. } | ResidencyInput::Add(..));
            residency.handle(now, input, &mut outputs);
            node.carry_out(&residency, outputs);
            check(&residency);
        }
        // Everything that has begun ends; then nobody waits any more.
        for _ in 0..500 {
            let mut outputs = Vec::new();
            residency.handle(now, ResidencyInput::Unclaimed { kept: 0, beyond }, &mut outputs);
            node.carry_out(&residency, outputs);
            if let Some(model) = node.loading.pop() {
                let size = known[&model].clone();
                end(&mut residency, &mut node, now, model, Some(size));
            } else if let Some(model) = node.leaving.pop() {
                let mut outputs = Vec::new();
                residency.handle(now, ResidencyInput::Unloaded(model), &mut outputs);
                node.carry_out(&residency, outputs);
            } else if let Some(due) = residency.next_timeout(now) && !node.waiting.is_empty() {
                now = due;
                let mut outputs = Vec::new();
                residency.handle_timeout(now, &mut outputs);
                node.carry_out(&residency, outputs);
            } else {
                break;
            }
        }
        prop_assert!(node.waiting.is_empty(), "{:?} of {residency:#?}", node.waiting);
    }
}
