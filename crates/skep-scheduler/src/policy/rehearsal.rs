//! Rehearsals: arriving requests are served in a simulation of each manner, side by side, to find the manner that
//! answers most in time.
//!
//! Which manner is best depends on what comes next: at the start of a burst, a batch that leaves at once makes
//! the rest late; in a stream that stays too fast, giving up some requests early saves more of the others; waiting may
//! pay with four instances and not with one. No rate tells these apart. So each manner has a *stage* of
//! its own, with as many instances as there are and the latencies that were learned, and gets the requests that really
//! arrive. Its score is how many of the last ones it would have answered in time.
//!
//! ```text
//! past:     [ 1 1 0 1 . . . . . . ]       the last arrivals, and which manners answered them in time
//! stages:           ^head  ^seen          each manner has its own: behind the head all is decided
//! ```
//!
//! A request counts when all manners have decided it: they are compared on the same requests, not at the same moment,
//! when the patient ones are behind. Scores fade as the load changes. From time to time all stages begin again
//! with what really waits and runs: a manner that never builds up a backlog may still be unable to clear one.
//!
//! An arrival advances one stage, in turn, so it always costs some hundred nanoseconds. Nothing is rehearsed while
//! there is always a free instance.

use std::collections::VecDeque;

use skep_types::Time;

use crate::{
    BatchEnd,
    policy::{
        Verdict,
        ahead::{Chance, LookAhead},
        by_deadline::{DecisionContext, Manner, Patience, UrgentQueue, count},
        rate::ArrivalRate,
    },
    variation::SCENARIOS,
};

/// The manners that are compared; the first is that of a load that asks for nothing else. Where executions do not vary,
/// a plain one is the same as one that is not.
const MANNERS: [Manner; 9] = [
    manner(Patience::Enough, false),
    plain(manner(Patience::Full, false)),
    plain(manner(Patience::None, false)),
    plain(manner(Patience::Brief, false)),
    plain(manner(Patience::Enough, true)),
    plain(manner(Patience::Full, true)),
    Manner {
        price_percent: 90,
        ..manner(Patience::None, false)
    },
    manner(Patience::Full, false),
    manner(Patience::None, false),
];

const fn plain(manner: Manner) -> Manner {
    Manner {
        plain: true,
        ..manner
    }
}

/// So many of them take part where executions do not vary; the others differ only in how they deal with doubt.
const WITHOUT_DOUBT: usize = 6;

const fn manner(patience: Patience, strict: bool) -> Manner {
    Manner {
        patience,
        strict,
        thrifty: true,
        price_percent: 0,
        plain: false,
    }
}

/// Requests over which scores fade to a third (1/e), or those of so many objectives if they are more: several bursts of
/// a few, several backlogs of many.
const REMEMBERED: f64 = 1024.0;
const REMEMBERED_OBJECTIVES: f64 = 20.0;

/// Requests, and objectives, until stages begin again: long enough to show whether a backlog grows.
const SCENE_REQUESTS: usize = 1024;
const SCENE_OBJECTIVES: u64 = 4;

/// Arrivals for which rehearsals go on after the last that found no free instance.
const ATTENTIVE: usize = 4096;

/// Requests that are remembered until all stages have decided them. Beyond this, the oldest count undecided.
const MAX_PAST: usize = 8192;

/// The share of the requests that another manner has to answer more, where everything is asked of the instances, and
/// where nothing is: the first manner answers sooner, which then is worth something too.
const BETTER: f64 = 0.002;
const BETTER_AT_REST: f64 = 0.03;

/// From one execution's scenario to the next one's: it has no factor in common with their number, and spreads slow and
/// fast ones.
const STRIDE: usize = 7;

/// A request that arrived.
#[derive(Debug)]
struct PastArrival {
    at: u64,
    deadline: u64,
    size: usize,
    /// The inferences before it.
    before: usize,
    /// As it was known then.
    rate: ArrivalRate,
    /// In how many of [`SCENARIOS`] each manner answers it in time.
    answered: [u8; MANNERS.len()],
}

/// Where a manner is.
#[derive(Debug, Default)]
struct RehearsalStage {
    /// The first of the past that is not decided.
    head: usize,
    /// The first that has not arrived yet.
    seen: usize,
    now: u64,
    /// When each instance is free.
    free: Vec<u64>,
    /// The scenario of the last execution.
    executions: usize,
    /// The faded number of requests that were answered in time, and the faded time of the executions.
    score: f64,
    busy: f64,
}

/// The rehearsals of one model's scheduler.
#[derive(Debug)]
pub(crate) struct Rehearsal {
    past: VecDeque<PastArrival>,
    stages: [RehearsalStage; MANNERS.len()],
    /// How many of the manners take part.
    active: usize,
    /// The stage that is played next.
    turn: usize,
    chosen: usize,
    /// The faded number of requests that count, the time in which they arrived, and the last of them.
    counted: f64,
    span: f64,
    last: u64,
    /// Since when, and for how many requests, stages go on by themselves.
    began: u64,
    since: usize,
    attention: usize,
    earned_per_ns: f64,
    ahead: LookAhead,
}

/// What is really going on.
#[derive(Debug)]
pub(crate) struct LiveState<I> {
    /// When the one that waits for longest arrived.
    pub(crate) oldest: Option<u64>,
    /// When each busy instance will be free.
    pub(crate) busy: I,
}

impl Rehearsal {
    pub(crate) fn new() -> Self {
        Self {
            past: VecDeque::new(),
            stages: Default::default(),
            active: MANNERS.len(),
            turn: 0,
            chosen: 0,
            counted: 0.0,
            span: 0.0,
            last: 0,
            began: 0,
            since: 0,
            attention: 0,
            earned_per_ns: 0.0,
            ahead: LookAhead::default(),
        }
    }

    /// The manner that did best.
    pub(crate) fn manner(&self) -> Manner {
        MANNERS[self.chosen]
    }

    /// What an instance earns in the best of manners: requests in time a nanosecond.
    pub(crate) fn earned_per_ns(&self) -> f64 {
        self.earned_per_ns
    }

    /// A request arrives, at the scene's moment.
    pub(crate) fn arrived(
        &mut self,
        deadline: u64,
        size: usize,
        rate: &ArrivalRate,
        context: DecisionContext<'_>,
        live: LiveState<impl Iterator<Item = u64> + Clone>,
    ) {
        if live.busy.clone().count() >= context.instances {
            self.attention = ATTENTIVE;
        }
        if self.attention == 0 {
            self.past.clear();
            self.chosen = 0;
            return;
        }
        self.attention -= 1;
        let now = context.now;
        if self.past.is_empty() {
            self.stages = Default::default();
            (self.counted, self.span) = (0.0, 0.0);
            (self.last, self.began, self.since) = (now, now, 0);
        }
        let before = self.past.back().map_or(0, |past| past.before + past.size);
        self.past.push_back(PastArrival {
            at: now,
            deadline,
            size,
            before,
            rate: rate.clone(),
            answered: [0; MANNERS.len()],
        });
        self.since += 1;
        self.active = if context.latency.variation().varies() {
            MANNERS.len()
        } else {
            WITHOUT_DOUBT
        };
        self.play(self.turn.min(self.active - 1), context);
        self.turn = (self.turn + 1) % self.active;
        if self.turn == 0 {
            let long = SCENE_OBJECTIVES.saturating_mul(context.terms.objective);
            if self.since >= SCENE_REQUESTS && now - self.began >= long {
                self.begin_again(context, live);
            }
            self.count(context);
            self.choose(context);
        }
    }

    /// Plays a stage up to the moment before now: not all that arrive now may be known.
    fn play(&mut self, index: usize, context: DecisionContext<'_>) {
        let (stage, past) = (&mut self.stages[index], &mut self.past);
        stage.free.resize(context.instances.max(1), 0);
        while stage.head < past.len() {
            let free = stage.free.iter().copied().enumerate();
            let (at, free) = free
                .min_by_key(|(_, moment)| *moment)
                .expect("an instance is there");
            let now = free.max(past[stage.head].at).max(stage.now);
            if now >= context.now {
                return;
            }
            stage.now = now;
            while stage.seen < past.len() && past[stage.seen].at <= now {
                stage.seen += 1;
            }
            let margin = context.terms.margin;
            let urgent = &past[stage.head];
            if now + context.latency.luckiest(urgent.size) > urgent.deadline.saturating_add(margin)
            {
                stage.head += 1;
                stage.seen = stage.seen.max(stage.head);
                continue;
            }
            let waiting = stage.seen - stage.head;
            let mut line = RehearsedQueue {
                past,
                head: stage.head,
                waiting,
                joined: 1,
                most: context.terms.max_batch_size,
            };
            line.joined = count(waiting, |requests| line.size(requests) <= line.most).max(1);
            let others = stage.free.iter().enumerate();
            let others = others.filter(|(other, _)| *other != at);
            let context_then = DecisionContext {
                now,
                per_ns: past[stage.seen - 1].rate.per_ns(Time::from_nanos(now)),
                ..context
            };
            let verdict = context_then.decide(
                MANNERS[index],
                &line,
                others.map(|(_, moment)| (*moment).max(now)),
                &mut self.ahead,
            );
            match verdict {
                Verdict::Send { requests, .. } => {
                    let takes = context.latency.expected(line.size(requests));
                    let mut chance = Chance::new(context.latency, takes);
                    for past in past.range_mut(stage.head..stage.head + requests) {
                        let time = past.deadline.saturating_add(margin).saturating_sub(now);
                        past.answered[index] = chance.within(time) as u8;
                    }
                    stage.head += requests;
                    // The scenarios take turns, so that each stage has as many slow executions.
                    stage.executions = (stage.executions + STRIDE) % SCENARIOS;
                    let scenario = context.latency.variation().scenarios()[stage.executions];
                    #[expect(
                        clippy::cast_sign_loss,
                        reason = "no execution takes less than no time"
                    )]
                    let takes = (takes as f64 * scenario) as u64;
                    stage.busy += takes as f64;
                    stage.free[at] = now + takes;
                }
                Verdict::Drop { requests } => stage.head += requests,
                Verdict::Wait(until) => {
                    let next = past.get(stage.seen).map_or(u64::MAX, |past| past.at);
                    let until = until.as_nanos().min(next);
                    if until >= context.now {
                        return;
                    }
                    stage.now = until;
                }
            }
        }
    }

    /// Lets all stages begin with what really waits and runs.
    fn begin_again(
        &mut self,
        context: DecisionContext<'_>,
        live: LiveState<impl Iterator<Item = u64> + Clone>,
    ) {
        let newest = self.past.len() - 1;
        let oldest = live.oldest.map_or(newest, |oldest| {
            self.past
                .partition_point(|past| past.at < oldest)
                .min(newest)
        });
        for (index, stage) in self.stages.iter_mut().enumerate() {
            // What the patient have not decided shall not be held against them.
            for past in self.past.range_mut(stage.head.min(oldest)..oldest) {
                past.answered[index] = SCENARIOS as u8;
            }
            stage.head = oldest;
            stage.seen = stage.seen.max(oldest);
            stage.now = context.now;
            stage.free.clear();
            stage.free.extend(live.busy.clone());
            stage.free.resize(context.instances.max(1), 0);
        }
        (self.began, self.since) = (context.now, 0);
    }

    /// Counts and forgets what all have decided.
    fn count(&mut self, context: DecisionContext<'_>) {
        let heads = self.stages[..self.active].iter().map(|stage| stage.head);
        let decided = heads.min().unwrap_or(0).min(self.past.len() - 1);
        let decided = decided.max(self.past.len().saturating_sub(MAX_PAST));
        let objectives = REMEMBERED_OBJECTIVES * context.terms.objective.max(1) as f64;
        for past in self.past.drain(..decided) {
            let gap = (past.at - self.last) as f64;
            self.last = past.at;
            let keeps = 1.0 - (gap / objectives).min(1.0 / REMEMBERED);
            self.counted = self.counted * keeps + 1.0;
            self.span = self.span * keeps + gap;
            for (index, stage) in self.stages.iter_mut().enumerate() {
                stage.busy *= keeps;
                stage.score =
                    stage.score * keeps + f64::from(past.answered[index]) / SCENARIOS as f64;
            }
        }
        // What does not take part begins as the first one.
        let (first, others) = self.stages.split_at_mut(self.active);
        for stage in others {
            (stage.score, stage.busy) = (first[0].score, first[0].busy);
            (stage.head, stage.seen) = (first[0].head, first[0].seen);
            stage.now = first[0].now;
            stage.free.clone_from(&first[0].free);
        }
        for stage in &mut self.stages {
            stage.head = stage.head.saturating_sub(decided);
            stage.seen = stage.seen.saturating_sub(decided);
        }
    }

    /// The first manner, unless another is better; of the others one that is as good as the best, if it is the present.
    fn choose(&mut self, context: DecisionContext<'_>) {
        let active = &self.stages[..self.active];
        let scores = || active.iter().map(|stage| stage.score).enumerate();
        let best = scores().fold(
            (0, 0.0),
            |best, other| {
                if other.1 > best.1 { other } else { best }
            },
        );
        self.earned_per_ns = best.1 / self.stages[best.0].busy.max(1.0);
        // What would be asked of the instances if all ran one by one.
        let busy = self.counted / self.span.max(1.0) * context.latency.mean(1) as f64;
        let rest = 1.0 - busy / context.instances.max(1) as f64;
        let as_good =
            |index: usize, better: f64| self.stages[index].score + better * self.counted >= best.1;
        if as_good(0, BETTER.max(BETTER_AT_REST * rest)) {
            self.chosen = 0;
        } else if self.chosen >= self.active || !as_good(self.chosen, BETTER) {
            self.chosen = best.0;
        }
    }
}

/// A stage's waiting requests. All have the objective, or nearly: the one that came first is the most urgent.
struct RehearsedQueue<'a> {
    past: &'a VecDeque<PastArrival>,
    head: usize,
    waiting: usize,
    joined: usize,
    most: usize,
}

impl UrgentQueue for RehearsedQueue<'_> {
    fn joined(&self) -> usize {
        self.joined
    }

    fn size(&self, requests: usize) -> usize {
        let last = &self.past[self.head + requests - 1];
        last.before + last.size - self.past[self.head].before
    }

    fn deadline(&self, _requests: usize) -> Option<u64> {
        Some(self.past[self.head].deadline)
    }

    fn may_grow(&self) -> bool {
        self.joined == self.waiting && self.size(self.joined) < self.most
    }

    fn end(&self) -> BatchEnd {
        BatchEnd::QueueEmpty
    }

    fn inferences(&self) -> usize {
        self.size(self.waiting)
    }

    fn urgent(&self) -> impl Iterator<Item = (u64, usize)> {
        let waiting = self.past.range(self.head..self.head + self.waiting);
        waiting.map(|past| (past.deadline, past.size))
    }
}

#[cfg(test)]
#[path = "rehearsal_tests.rs"]
mod tests;
