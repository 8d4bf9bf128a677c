//! The server's state machine over the requests of a fleet.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::Duration,
};

use skep_placer::{
    keep_alive::KeepAlive,
    residency::{
        EvictionPolicy, ModelKey, ModelTerms, Residency, ResidencyInput, ResidencyOptions,
        ResidencyOutput, ResidencyState,
    },
};
use skep_types::Time;

use crate::residency::Fleet;

/// What became of a fleet's requests.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ResidencyOutcome {
    /// Requests.
    pub requests: usize,
    /// Requests that found their model resident.
    pub hits: usize,
    /// Requests that waited for a load.
    pub waited: usize,
    /// Requests that were refused.
    pub refused: usize,
    /// Loads.
    pub loads: usize,
    /// What these loads brought, shared or not.
    pub bytes_loaded: u64,
    /// The most bytes in use at once, those of models that were leaving included.
    pub most_used: u64,
    /// How long the requests that waited did so; ascending.
    pub waits: Vec<Duration>,
}

impl ResidencyOutcome {
    /// The part of requests that found their model resident.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.requests.max(1) as f64
    }

    /// The wait that this part of all requests did not exceed, from 0 to 1; requests that found their model waited not
    /// at all.
    #[must_use]
    pub fn wait(&self, part: f64) -> Duration {
        #[expect(
            clippy::cast_sign_loss,
            clippy::cast_possible_truncation,
            reason = "a share of a count"
        )]
        let rank = (part * self.requests as f64).ceil() as usize;
        let without = self.requests - self.waits.len();
        let place = rank.saturating_sub(1).checked_sub(without);
        place.map_or(Duration::ZERO, |place| {
            self.waits[place.min(self.waits.len() - 1)]
        })
    }
}

/// How long the memory of a model that leaves stays in use.
const UNLOAD_TIME: Duration = Duration::from_millis(20);

/// Loads at once.
const LOADS_AT_ONCE: usize = 4;

/// What ends at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Load(usize),
    Unload(usize),
}

struct Simulation<'a> {
    fleet: &'a Fleet,
    residency: Residency,
    now: Time,
    endings: BinaryHeap<Reverse<(Time, Ending)>>,
    /// When requests came that wait, by model.
    waiting: BTreeMap<usize, Vec<Time>>,
    outcome: ResidencyOutcome,
    outputs: Vec<ResidencyOutput>,
}

/// Plays the requests of a fleet under a budget in bytes.
#[must_use]
pub fn simulate(fleet: &Fleet, budget: u64, policy: EvictionPolicy) -> ResidencyOutcome {
    let mut simulation = Simulation {
        fleet,
        residency: Residency::new(ResidencyOptions {
            budget,
            policy,
            loads_at_once: LOADS_AT_ONCE,
            keep_alive: KeepAlive::Forever,
        }),
        now: Time::ZERO,
        endings: BinaryHeap::new(),
        waiting: BTreeMap::new(),
        outcome: ResidencyOutcome::default(),
        outputs: Vec::new(),
    };
    for (model, known) in fleet.models.iter().enumerate() {
        let terms = ModelTerms {
            size: known.size.clone(),
            load_time: known.load_time,
            ..ModelTerms::default()
        };
        simulation.apply(Time::ZERO, ResidencyInput::Add(key(model), terms));
    }
    for request in &fleet.requests {
        simulation.end_until(request.at);
        simulation.request(request.at, request.model);
    }
    simulation.end_until(Time::from_nanos(u64::MAX));
    let mut outcome = simulation.outcome;
    outcome.waits.sort_unstable();
    outcome.waited = outcome.waits.len();
    outcome
}

impl Simulation<'_> {
    fn request(&mut self, now: Time, model: usize) {
        self.outcome.requests += 1;
        if self.residency.state(key(model)) == Some(ResidencyState::Resident) {
            self.outcome.hits += 1;
            let used = ResidencyInput::Used {
                model: key(model),
                requests: 1,
                last: now,
                is_busy: false,
            };
            self.apply(now, used);
        } else {
            self.waiting.entry(model).or_default().push(now);
            self.apply(now, ResidencyInput::Requested(key(model)));
        }
    }

    /// Everything that ends, or becomes due, up to this moment.
    fn end_until(&mut self, until: Time) {
        loop {
            let ending = self.endings.peek().map(|Reverse((at, _))| *at);
            let due = self.residency.next_timeout(self.now);
            let ending = ending.filter(|at| *at <= until);
            let due = due.filter(|due| *due <= until);
            match (ending, due) {
                (Some(at), due) if due.is_none_or(|due| at <= due) => {
                    if let Some(Reverse((at, ending))) = self.endings.pop() {
                        self.end(at, ending);
                    }
                }
                (_, Some(due)) => {
                    self.now = due;
                    self.residency.handle_timeout(due, &mut self.outputs);
                    self.carry_out(due);
                }
                (_, None) => return,
            }
        }
    }

    fn end(&mut self, at: Time, ending: Ending) {
        match ending {
            Ending::Unload(model) => self.apply(at, ResidencyInput::Unloaded(key(model))),
            Ending::Load(model) => {
                let known = &self.fleet.models[model];
                let waited = self.waiting.remove(&model).unwrap_or_default();
                let waits = waited.iter().map(|came| at.since(*came));
                self.outcome.waits.extend(waits);
                let loaded = ResidencyInput::Loaded {
                    model: key(model),
                    size: known.size.clone(),
                    load_bytes: 0,
                    took: known.load_time,
                };
                self.apply(at, loaded);
            }
        }
    }

    fn apply(&mut self, now: Time, input: ResidencyInput) {
        self.now = now;
        self.residency.handle(now, input, &mut self.outputs);
        self.carry_out(now);
    }

    fn carry_out(&mut self, now: Time) {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                ResidencyOutput::Load(model) => {
                    let model = model.0 as usize;
                    let known = &self.fleet.models[model];
                    self.outcome.loads += 1;
                    self.outcome.bytes_loaded += known.bytes;
                    let ends = now + known.load_time;
                    self.endings.push(Reverse((ends, Ending::Load(model))));
                }
                ResidencyOutput::Unload(model, _) => {
                    let ends = now + UNLOAD_TIME;
                    let ending = Ending::Unload(model.0 as usize);
                    self.endings.push(Reverse((ends, ending)));
                }
                ResidencyOutput::Refuse(model, _) => {
                    let waiting = self.waiting.remove(&(model.0 as usize));
                    self.outcome.refused += waiting.map_or(0, |waiting| waiting.len());
                }
                ResidencyOutput::Reclaim(_) => {}
            }
        }
        let used = self.residency.figures().used;
        self.outcome.most_used = self.outcome.most_used.max(used);
    }
}

fn key(model: usize) -> ModelKey {
    ModelKey(u32::try_from(model).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::residency::{FleetTerms, bound, foresee};

    fn fleet(family: usize) -> Fleet {
        let terms = FleetTerms {
            models: 60,
            rate: 5.0,
            span: Duration::from_secs(2000),
            family,
            ..FleetTerms::default()
        };
        Fleet::generate(&terms, None, 5)
    }

    #[test]
    fn no_request_is_lost_the_budget_holds_and_no_policy_beats_the_bound() {
        let fleet = fleet(1);
        let budget = fleet.bytes() / 5;
        let most = bound(&fleet, budget);
        let best = foresee(&fleet, budget);
        assert!(best.hits <= most && most <= fleet.requests.len());
        for policy in EvictionPolicy::ALL {
            let outcome = simulate(&fleet, budget, policy);
            let answered = outcome.hits + outcome.waited + outcome.refused;
            assert_eq!(answered, fleet.requests.len(), "{policy}");
            assert!(outcome.most_used <= budget, "{policy}");
            assert!(outcome.hits <= most, "{policy}: {} of {most}", outcome.hits);
            assert!(outcome.loads <= outcome.waited && outcome.refused == 0);
            assert!(outcome.wait(0.5) == Duration::ZERO && outcome.wait(1.0) > Duration::ZERO);
        }
    }

    #[test]
    fn with_room_for_all_each_model_loads_once() {
        let fleet = fleet(1);
        let outcome = simulate(&fleet, fleet.bytes(), EvictionPolicy::Lru);
        let mut asked: Vec<usize> = fleet.requests.iter().map(|request| request.model).collect();
        asked.sort_unstable();
        asked.dedup();
        assert_eq!(outcome.loads, asked.len());
        assert_eq!(
            bound(&fleet, fleet.bytes()),
            fleet.requests.len() - asked.len()
        );
    }

    #[test]
    fn a_family_needs_less_room() {
        let apart = fleet(1);
        let family = fleet(10);
        let budget = apart.bytes() / 10;
        let [apart, family] =
            [apart, family].map(|fleet| simulate(&fleet, budget, EvictionPolicy::Value).hit_rate());
        assert!(family > apart, "{family} {apart}");
    }

    #[test]
    fn a_model_that_is_larger_than_the_budget_is_refused() {
        let fleet = fleet(1);
        let largest = fleet.models.iter().map(|model| model.bytes).max();
        let outcome = simulate(&fleet, largest.unwrap_or_default() - 1, EvictionPolicy::Lru);
        assert!(outcome.refused > 0);
        let answered = outcome.hits + outcome.waited + outcome.refused;
        assert_eq!(answered, fleet.requests.len());
    }
}
