//! The event loop.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use skep_placer::placement::PlacementPolicy;
use skep_scheduler::{Batch, Input, InstanceId, Output, Outputs, Request};
use skep_types::Time;

use super::{
    control::{Change, Kind, ModelControl},
    instance::{ClusterInstance, InstanceRun, JourneyId, Phase},
    nodes::{Nodes, Placed},
    outcome::{ClusterOutcome, HeldOverTime},
    platform::{Placement, Platform, PlatformRules},
    scenario::{ClusterScenario, InvalidScenario},
};
use crate::{RandomPurpose, RandomStream};

/// Runs a scenario until every request is answered or given up.
///
/// `placement` says where instances go; `None` for the platform's own way.
///
/// # Errors
/// If the scenario is empty, or a model cannot keep its objective or fits no node on this platform.
pub fn simulate(
    scenario: &ClusterScenario,
    platform: Platform,
    placement: Option<Placement>,
) -> Result<ClusterOutcome, InvalidScenario> {
    scenario.check()?;
    let mut cluster = Cluster::new(scenario, platform, placement)?;
    cluster.run();
    Ok(cluster.finish())
}

/// How long after the last request answers still come. Where nothing has room for a model, its requests wait for ever.
const PATIENCE: Duration = Duration::from_secs(600);

/// Something that happens. Instances are named with the number of their use of a place, since places are used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrival(u32),
    Ready(u32, u32),
    Finished(u32, u32, u32),
    Timeout(u32, u32),
    Tick,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
struct Journey {
    application: u32,
    stage: u32,
    begun: Time,
    is_cold: bool,
}

struct Cluster<'a> {
    scenario: &'a ClusterScenario,
    rules: PlatformRules,
    placement: Option<Placement>,
    now: Time,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    /// Orders events of one moment.
    sequence: u64,
    models: Vec<ModelControl>,
    /// In places that are used again, with how often each was used.
    instances: Vec<Option<ClusterInstance>>,
    uses: Vec<u32>,
    free: Vec<usize>,
    journeys: Vec<Journey>,
    free_journeys: Vec<u32>,
    /// The next arrival of each application.
    next: Vec<usize>,
    /// The time in which each application's requests have to be answered.
    objectives: Vec<Duration>,
    /// Requests that have not come, or are on their way; by application.
    unanswered: Vec<usize>,
    request_id: u64,
    nodes: Nodes,
    over_time: HeldOverTime,
    random: RandomStream,
    routes: RandomStream,
    outcome: ClusterOutcome,
    /// Requests that go on to a stage; kept for its memory.
    moving: Vec<JourneyId>,
}

impl<'a> Cluster<'a> {
    fn new(
        scenario: &'a ClusterScenario,
        platform: Platform,
        placement: Option<Placement>,
    ) -> Result<Self, InvalidScenario> {
        let rules = platform.rules();
        let models = scenario.models.iter();
        let models = models.map(|model| ModelControl::new(scenario, model, platform));
        let applications = &scenario.applications;
        let objective = |stages: &[usize]| {
            let stages = stages.iter();
            stages.map(|stage| scenario.models[*stage].objective).sum()
        };
        let requests = scenario.requests();
        let cluster = Self {
            scenario,
            rules,
            placement,
            now: Time::ZERO,
            events: BinaryHeap::new(),
            sequence: 0,
            models: models.collect::<Result<_, _>>()?,
            instances: Vec::new(),
            uses: Vec::new(),
            free: Vec::new(),
            journeys: Vec::new(),
            free_journeys: Vec::new(),
            next: vec![0; applications.len()],
            objectives: applications
                .iter()
                .map(|application| objective(&application.stages))
                .collect(),
            unanswered: applications
                .iter()
                .map(|application| application.arrivals.len())
                .collect(),
            request_id: 0,
            nodes: Nodes::new(scenario, rules),
            over_time: HeldOverTime::new(Time::ZERO + scenario.span),
            random: RandomStream::new(scenario.seed, RandomPurpose::Executions),
            routes: RandomStream::new(scenario.seed, RandomPurpose::Fleet),
            outcome: ClusterOutcome::new(platform, requests, applications.len(), scenario.span),
            moving: Vec::new(),
        };
        cluster.check_sizes()?;
        Ok(cluster)
    }

    /// Refuses a model of which no instance fits a node.
    fn check_sizes(&self) -> Result<(), InvalidScenario> {
        let node = self.scenario.node;
        for (model, control) in self.scenario.models.iter().zip(&self.models) {
            let process = self.scenario.costs.process_bytes;
            let fixed = process + model.tensor_bytes();
            let fits = |kind: &Kind| {
                kind.size.private_bytes + fixed <= node.bytes
                    && kind.size.millicores <= node.millicores
            };
            if control.kinds.iter().any(fits) {
                continue;
            }
            let least = |of: &dyn Fn(&Kind) -> u64| control.kinds.iter().map(of).min().unwrap_or(0);
            let shown = |bytes: u64, millicores: u64| {
                let mib = bytes as f64 / f64::from(1 << 20);
                format!("{mib:.0} MiB and {} cores", millicores / 1000)
            };
            return Err(InvalidScenario::Node {
                model: model.name.clone(),
                needs: shown(
                    least(&|kind| kind.size.private_bytes) + fixed,
                    least(&|kind| kind.size.millicores),
                ),
                has: shown(node.bytes, node.millicores),
            });
        }
        Ok(())
    }

    fn run(&mut self) {
        for application in 0..self.next.len() {
            self.await_arrival(application);
        }
        self.after(self.rules.tick, Event::Tick);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at;
            self.over_time.until(at, &self.nodes.held);
            match event {
                Event::Arrival(application) => self.arrival(application as usize),
                Event::Ready(index, used) => self.ready(index as usize, used),
                Event::Finished(index, used, place) => self.finished(index as usize, used, place),
                Event::Timeout(index, used) => self.timeout(index as usize, used),
                Event::Tick => self.tick(),
            }
            let ends = Time::ZERO + self.scenario.span;
            let is_over = || self.unanswered.iter().all(|count| *count == 0);
            if self.now >= ends && (is_over() || self.now >= ends + PATIENCE) {
                break;
            }
        }
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.at(self.now + delay, event);
    }

    fn at(&mut self, at: Time, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((at, self.sequence, event)));
    }

    fn await_arrival(&mut self, application: usize) {
        let arrivals = &self.scenario.applications[application].arrivals;
        if let Some(at) = arrivals.get(self.next[application]).copied() {
            self.next[application] += 1;
            self.at(at, Event::Arrival(number(application)));
        }
    }

    fn arrival(&mut self, application: usize) {
        let journey = Journey {
            application: number(application),
            stage: 0,
            begun: self.now,
            is_cold: false,
        };
        let request = match self.free_journeys.pop() {
            Some(place) => {
                self.journeys[place as usize] = journey;
                JourneyId(place)
            }
            None => {
                self.journeys.push(journey);
                JourneyId(number(self.journeys.len() - 1))
            }
        };
        self.await_arrival(application);
        self.send(request);
    }

    /// A request comes to the model of its stage.
    fn send(&mut self, request: JourneyId) {
        let journey = self.journeys[request.0 as usize];
        let application = &self.scenario.applications[journey.application as usize];
        let model = application.stages[journey.stage as usize];
        self.models[model].demand.arrived(self.now);
        match self.route(model) {
            Some(index) => self.enqueue(index, request),
            None => {
                let journey = &mut self.journeys[request.0 as usize];
                self.outcome.cold += usize::from(!journey.is_cold);
                journey.is_cold = true;
                self.models[model].waiting.push_back(request);
                if self.models[model].instances.is_empty() {
                    for (kind, count) in self.models[model].first() {
                        self.start(model, kind, count);
                    }
                }
            }
        }
    }

    /// An instance that takes requests of a model: the less loaded one of two, or the least loaded of a few.
    fn route(&mut self, model: usize) -> Option<usize> {
        const FEW: usize = 4;
        let own = &self.models[model].instances;
        let ready = |index: &usize| {
            let instance = self.instances[*index].as_ref();
            instance.filter(|one| one.phase == Phase::Ready)
        };
        let least = |candidates: &mut dyn Iterator<Item = usize>| {
            let loads = candidates.filter_map(|index| Some((index, ready(&index)?.load())));
            let least = loads.min_by(|a, b| a.1.total_cmp(&b.1));
            least.map(|(index, _)| index)
        };
        if own.len() > FEW {
            let (one, other) = (self.routes.below(own.len()), self.routes.below(own.len()));
            let found = least(&mut [own[one], own[other]].into_iter());
            if found.is_some() {
                return found;
            }
        }
        least(&mut own.iter().copied())
    }

    fn enqueue(&mut self, index: usize, request: JourneyId) {
        let mut outputs = Outputs::new();
        self.request_id += 1;
        if let Some(instance) = &mut self.instances[index] {
            instance.enqueue(self.now, self.request_id, request, &mut outputs);
        }
        self.carry_out(index, outputs);
    }

    fn ready(&mut self, index: usize, used: u32) {
        let now = self.now;
        let mut outputs = Outputs::new();
        let Some(instance) = self.instance_mut(index, used) else {
            return;
        };
        let model = instance.model;
        instance.ready(now, &mut outputs);
        self.carry_out(index, outputs);
        // Those that waited for any instance.
        while let Some(request) = self.models[model].waiting.pop_front() {
            match self.route(model) {
                Some(index) => self.enqueue(index, request),
                None => {
                    self.models[model].waiting.push_front(request);
                    break;
                }
            }
        }
    }

    fn timeout(&mut self, index: usize, used: u32) {
        let now = self.now;
        let mut outputs = Outputs::new();
        let Some(instance) = self.instance_mut(index, used) else {
            return;
        };
        if instance.timeout != Some(now) {
            return;
        }
        instance.timeout = None;
        instance.scheduler.handle_timeout(now, &mut outputs);
        self.carry_out(index, outputs);
    }

    fn finished(&mut self, index: usize, used: u32, place: u32) {
        let now = self.now;
        let mut outputs = Outputs::new();
        let mut moving = std::mem::take(&mut self.moving);
        let Some(instance) = self.instance_mut(index, used) else {
            return;
        };
        if let Some(run) = instance.runs[place as usize].take() {
            instance.busy -= 1;
            instance.outstanding -= run.requests.len();
            instance.last_used = now;
            moving.extend(run.requests.iter().map(|request| request.payload));
            instance.scheduler.recycle(run.requests);
            let finished = Input::Finished {
                instance: InstanceId(place),
                duration: run.duration,
            };
            instance.scheduler.handle(now, finished, &mut outputs);
        }
        self.carry_out(index, outputs);
        for request in moving.drain(..) {
            self.go_on(request);
        }
        self.moving = moving;
    }

    /// A stage has answered a request.
    fn go_on(&mut self, request: JourneyId) {
        let journey = &mut self.journeys[request.0 as usize];
        journey.stage += 1;
        let application = journey.application as usize;
        let stages = self.scenario.applications[application].stages.len();
        if (journey.stage as usize) < stages {
            return self.send(request);
        }
        let latency = self.now.since(journey.begun);
        let is_late = latency > self.objectives[application];
        self.end(request, is_late);
    }

    fn end(&mut self, request: JourneyId, is_late: bool) {
        let application = self.journeys[request.0 as usize].application as usize;
        self.outcome.late_of[application] += usize::from(is_late);
        self.unanswered[application] -= 1;
        self.free_journeys.push(request.0);
    }

    /// Does what an instance's scheduler says.
    fn carry_out(&mut self, index: usize, outputs: Outputs<JourneyId>) {
        for output in outputs {
            match output {
                Output::Dispatch { instance, batch } => self.execute(index, instance, batch),
                Output::Reject { request, .. } => self.give_up(index, &request),
                Output::WantSlot | Output::ReturnSlot => {
                    unreachable!("the scheduler is made without slots")
                }
            }
        }
        let used = self.uses[index];
        let now = self.now;
        let Some(instance) = &mut self.instances[index] else {
            return;
        };
        let due = instance.scheduler.next_timeout().map(|at| at.max(now));
        if instance.phase == Phase::Leaving && instance.outstanding == 0 {
            return self.remove(index);
        }
        if due != instance.timeout {
            instance.timeout = due;
            if let Some(at) = due {
                self.at(at, Event::Timeout(number(index), used));
            }
        }
    }

    fn execute(&mut self, index: usize, place: InstanceId, batch: Batch<JourneyId>) {
        let used = self.uses[index];
        let factor = self.scenario.jitter.factor(&mut self.random);
        let Some(instance) = &mut self.instances[index] else {
            return;
        };
        instance.busy += 1;
        let time = instance.times.of_run(instance.busy, batch.size());
        let duration = time.mul_f64(factor);
        instance.runs[place.0 as usize] = Some(InstanceRun {
            duration,
            requests: batch.requests,
        });
        self.after(duration, Event::Finished(number(index), used, place.0));
    }

    fn give_up(&mut self, index: usize, request: &Request<JourneyId>) {
        if let Some(instance) = &mut self.instances[index] {
            instance.outstanding -= 1;
        }
        self.outcome.given_up += 1;
        self.end(request.payload, true);
    }

    fn tick(&mut self) {
        for model in 0..self.models.len() {
            match self.models[model].tick(self.now, &self.instances) {
                Some(Change::Start(starts)) => {
                    for (kind, count) in starts {
                        self.start(model, kind, count);
                    }
                }
                Some(Change::Release(places)) => self.release(model, places),
                None => {}
            }
        }
        self.after(self.rules.tick, Event::Tick);
    }

    fn start(&mut self, model: usize, kind: usize, count: u32) {
        for number in 0..count {
            if !self.start_one(model, kind) {
                self.outcome.unplaced += (count - number) as usize;
                return;
            }
        }
    }

    /// Starts an instance; `false` if no node has room.
    fn start_one(&mut self, model: usize, kind: usize) -> bool {
        let Some(placed) = self.place(model, kind) else {
            return false;
        };
        let of = &self.scenario.models[model];
        let kind = &self.models[model].kinds[kind];
        let instance = ClusterInstance::new(
            &self.rules,
            (model, of.objective),
            &kind.configuration,
            &kind.times,
            (placed.node, kind.size),
            self.now,
        );
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.instances.push(None);
                self.uses.push(0);
                self.instances.len() - 1
            }
        };
        self.uses[index] += 1;
        self.instances[index] = Some(instance);
        self.models[model].instances.push(index);
        self.outcome.starts += 1;
        self.outcome.read_bytes += placed.read_bytes;
        let costs = &self.scenario.costs;
        let read = placed.read_bytes as f64 / costs.bytes_per_second;
        let process = match placed.starts_process {
            true => costs.process,
            false => Duration::ZERO,
        };
        let takes = process + costs.instance + Duration::from_secs_f64(read);
        self.after(takes, Event::Ready(number(index), self.uses[index]));
        true
    }

    /// Finds a node. Where models stay, idle ones leave for it, the least recently used first.
    fn place(&mut self, model: usize, kind: usize) -> Option<Placed> {
        let policy = match self.placement.unwrap_or(self.rules.placement) {
            Placement::Theta => PlacementPolicy::Theta,
            Placement::LeastLoaded => PlacementPolicy::LeastLoaded,
            Placement::Random => PlacementPolicy::Random(self.routes.below(usize::MAX) as u64),
        };
        let size = self.models[model].kinds[kind].size;
        let others = number(self.models[model].instances.len());
        let of = &self.scenario.models[model];
        loop {
            let placed = self.nodes.place(model, of, size, others, policy);
            if placed.is_some() || !self.rules.stays {
                return placed;
            }
            let idle = self
                .instances
                .iter()
                .enumerate()
                .filter_map(|(index, one)| {
                    let one = one.as_ref()?;
                    let may_leave = one.phase == Phase::Ready && one.outstanding == 0;
                    may_leave.then_some((one.last_used, index, one.model))
                });
            let (_, index, leaves) = idle.min()?;
            self.models[leaves].instances.retain(|own| *own != index);
            self.remove(index);
        }
    }

    fn release(&mut self, model: usize, places: Vec<usize>) {
        let own = &self.models[model].instances;
        let released: Vec<usize> = places.into_iter().map(|place| own[place]).collect();
        let own = &mut self.models[model].instances;
        own.retain(|index| !released.contains(index));
        for index in released {
            if let Some(instance) = &mut self.instances[index] {
                instance.phase = Phase::Leaving;
                if instance.outstanding == 0 {
                    self.remove(index);
                }
            }
        }
    }

    fn remove(&mut self, index: usize) {
        let Some(gone) = self.instances[index].take() else {
            return;
        };
        let model = &self.scenario.models[gone.model];
        self.nodes.remove(gone.node, gone.model, model, gone.size);
        self.free.push(index);
    }

    /// The instance of this use of its place; `None` if it has gone.
    fn instance_mut(&mut self, index: usize, used: u32) -> Option<&mut ClusterInstance> {
        match self.uses[index] == used {
            true => self.instances[index].as_mut(),
            false => None,
        }
    }

    fn finish(mut self) -> ClusterOutcome {
        self.over_time
            .until(Time::ZERO + self.scenario.span, &self.nodes.held);
        self.outcome.overrun_bytes = self.nodes.overrun;
        for (late, left) in self.outcome.late_of.iter_mut().zip(&self.unanswered) {
            *late += left;
        }
        self.over_time.write(&mut self.outcome);
        self.outcome
    }
}

/// Places and numbers are far below 2^32.
fn number(index: usize) -> u32 {
    u32::try_from(index).expect("fewer than 2^32")
}
