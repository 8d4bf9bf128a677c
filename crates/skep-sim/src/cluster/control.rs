//! How many instances a model has, and of which kind.

use std::{collections::VecDeque, rc::Rc, time::Duration};

use skep_placer::{
    keep_alive::KeepAlive,
    placement::{ServingInstance, release},
    selection::{Configuration, SelectionError, SelectionRule, SelectionTerms, select},
};
use skep_types::Time;

use super::{
    demand::Demand,
    instance::{ClusterInstance, JourneyId, Phase},
    nodes::InstanceSize,
    platform::{Choice, Platform, PlatformRules},
    scenario::{ClusterModel, ClusterScenario, InvalidScenario},
    times::ExecutionTimes,
};

/// The part of an objective that a run may take where requests that wait count: the rest is for waiting.
const FOR_RUNS: f64 = 0.8;

/// One way to run a model on a platform.
pub(super) struct Kind {
    pub(super) configuration: Configuration,
    pub(super) times: Rc<ExecutionTimes>,
    pub(super) size: InstanceSize,
}

/// A model on a platform.
pub(super) struct ModelControl {
    pub(super) kinds: Vec<Kind>,
    /// The same, with what the platform counts as an instance's own memory.
    weighed: Vec<Configuration>,
    terms: SelectionTerms,
    rule: SelectionRule,
    keep_alive: KeepAlive,
    /// The throughput that is kept, by the rate.
    headroom: f64,
    /// Whether requests that wait count as load.
    counts_backlog: bool,
    /// Whether instances leave for others alone.
    stays: bool,
    pub(super) demand: Demand,
    /// Instances that have not begun to leave, by their place in the list of all.
    pub(super) instances: Vec<usize>,
    /// Requests that came while there was no instance that could take them.
    pub(super) waiting: VecDeque<JourneyId>,
}

/// What a model's instances are to become.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// Starts of kinds, each so many times.
    Start(Vec<(usize, u32)>),
    /// Instances to release, by their place in the model's list.
    Release(Vec<usize>),
}

impl ModelControl {
    pub(super) fn new(
        scenario: &ClusterScenario,
        model: &ClusterModel,
        platform: Platform,
    ) -> Result<Self, InvalidScenario> {
        let rules = platform.rules();
        let mut terms = SelectionTerms {
            objective: model.objective,
            rate: 0.0,
            tensor_bytes: model.tensor_bytes(),
            shares: rules.shares,
            bytes_per_cpu: scenario.bytes_per_cpu,
        };
        if rules.counts_backlog {
            terms.objective = terms.objective.mul_f64(FOR_RUNS);
        }
        let possible = configurations(&rules, model, terms.objective);
        let kinds = kinds(model, &possible);
        let process = match rules.one_process {
            true => 0,
            false => scenario.costs.process_bytes,
        };
        let weighed = possible.into_iter().map(|mut one| {
            one.private_bytes += process;
            one
        });
        let control = Self {
            weighed: weighed.collect(),
            kinds,
            terms,
            rule: match rules.choice {
                Choice::ByMemory | Choice::FewestCpus | Choice::MostConcurrent => {
                    SelectionRule::DecreasingThroughput
                }
                Choice::Covering => SelectionRule::CoveringTail,
            },
            keep_alive: keep_alive(&rules, scenario.keep_alive),
            headroom: rules.headroom,
            counts_backlog: rules.counts_backlog,
            stays: rules.stays,
            demand: Demand::new(rules.tick),
            instances: Vec::new(),
            waiting: VecDeque::new(),
        };
        match control.selected(1.0) {
            Ok(_) => Ok(control),
            Err(error) => Err(control.refusal(model, platform, error)),
        }
    }

    /// Kinds that serve a rate, each so many times.
    fn selected(&self, rate: f64) -> Result<Vec<(usize, u32)>, SelectionError> {
        let terms = SelectionTerms { rate, ..self.terms };
        let selection = select(&self.weighed, &terms, self.rule)?;
        Ok(selection.instances)
    }

    fn refusal(
        &self,
        model: &ClusterModel,
        platform: Platform,
        error: SelectionError,
    ) -> InvalidScenario {
        let closest = match error {
            SelectionError::Objective(Some((index, shortest))) => {
                let one = self.weighed[index];
                format!(
                    "; the closest one, {} CPUs, {} at a time, batches of {}, needs {:.1} ms",
                    one.cpus,
                    one.concurrency,
                    one.batch,
                    shortest.as_secs_f64() * 1e3
                )
            }
            SelectionError::Objective(None) | SelectionError::Rate(_) => String::new(),
        };
        InvalidScenario::Objective {
            model: model.name.clone(),
            platform: platform.name(),
            objective_ms: self.terms.objective.as_secs_f64() * 1e3,
            closest,
        }
    }

    /// The first instances of a model that has none.
    pub(super) fn first(&self) -> Vec<(usize, u32)> {
        // One request, to be answered within the objective.
        let rate = 1.0 / self.terms.objective.as_secs_f64();
        self.selected(rate * 1e-3).unwrap_or_default()
    }

    /// Decides by the requests since the last tick; `None` if nothing changes.
    pub(super) fn tick(&mut self, now: Time, all: &[Option<ClusterInstance>]) -> Option<Change> {
        if !self.demand.is_active() && self.instances.is_empty() && self.waiting.is_empty() {
            return None;
        }
        let instances = || {
            let own = self.instances.iter();
            own.filter_map(|index| all[*index].as_ref())
        };
        // What starts now takes what has come meanwhile.
        let is_starting = instances().any(|one| one.phase == Phase::Starting);
        let backlog = match self.counts_backlog && !is_starting {
            true => self.backlog(instances()) / self.terms.objective.as_secs_f64(),
            false => 0.0,
        };
        let throughput: f64 = instances().map(|one| one.throughput).sum();
        let needed = self.headroom * self.demand.tick(now, backlog, self.keep_alive);
        // Rounding is no reason for one more.
        if needed > throughput * (1.0 + 1e-9) {
            let starts = self.selected(needed - throughput).unwrap_or_default();
            return Some(Change::Start(starts));
        }
        if self.stays {
            return None;
        }
        let serving: Vec<ServingInstance> = instances()
            .map(|one| ServingInstance {
                throughput: one.throughput,
                load: one.outstanding as f64,
            })
            .collect();
        let mut released = release(&serving, needed);
        // One that starts is not there yet; the next tick decides about it.
        released.retain(|place| {
            let instance = all[self.instances[*place]].as_ref();
            instance.is_some_and(|one| one.phase == Phase::Ready)
        });
        (!released.is_empty()).then_some(Change::Release(released))
    }

    /// Requests beyond those that can run at once.
    fn backlog<'a>(&self, instances: impl Iterator<Item = &'a ClusterInstance>) -> f64 {
        let over = instances.map(|one| one.outstanding.saturating_sub(one.places));
        (over.sum::<usize>() + self.waiting.len()) as f64
    }
}

fn keep_alive(rules: &PlatformRules, longest: Duration) -> KeepAlive {
    match rules.keeps_by_pauses {
        true => KeepAlive::IdleHistogram(longest),
        false => KeepAlive::Fixed(longest),
    }
}

/// What a platform may use of a profile.
fn configurations(
    rules: &PlatformRules,
    model: &ClusterModel,
    objective: Duration,
) -> Vec<Configuration> {
    let all = model.configurations.iter().copied();
    let possible = all.filter(|one| {
        (rules.batches || one.batch == 1) && (rules.concurrent || one.concurrency == 1)
    });
    let possible: Vec<Configuration> = possible.collect();
    let kept = possible.iter().filter(|one| one.keeps(objective));
    match rules.choice {
        Choice::ByMemory | Choice::Covering => possible,
        Choice::FewestCpus => {
            let fewest = kept.map(|one| one.cpus).min();
            let fewest = possible.iter().filter(|one| Some(one.cpus) == fewest);
            let fewest: Vec<Configuration> = fewest.copied().collect();
            if fewest.is_empty() { possible } else { fewest }
        }
        Choice::MostConcurrent => {
            let most = kept.max_by_key(|one| (one.cpus, one.concurrency)).copied();
            most.map_or(possible, |most| vec![most])
        }
    }
}

fn kinds(model: &ClusterModel, possible: &[Configuration]) -> Vec<Kind> {
    let mut times: Vec<(u32, Rc<ExecutionTimes>)> = Vec::new();
    let mut of = |cpus: u32| {
        if let Some((_, known)) = times.iter().find(|(of, _)| *of == cpus) {
            return Rc::clone(known);
        }
        let made = Rc::new(ExecutionTimes::of(&model.configurations, cpus));
        times.push((cpus, Rc::clone(&made)));
        made
    };
    let kinds = possible.iter().map(|one| Kind {
        configuration: *one,
        times: of(one.cpus),
        size: InstanceSize {
            private_bytes: one.private_bytes,
            millicores: u64::from(one.cpus) * 1000,
        },
    });
    kinds.collect()
}
