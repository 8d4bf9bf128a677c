//! A model on paper: settings and a script in text, what the scheduler did in text.
//!
//! ```text
//! settings:  max=8 delay=2 pref=4,6 on=2 run=3      2 instances, each execution takes 3 ms
//! script:    0 A4 C2  1 B2  x:A  end                numbers are moments in ms; what follows one happens then, together
//! trace:     0 A+C:queue_empty  1 A!cancelled  3 B:queue_empty@1
//! ```
//!
//! A request is a name and its batch size, then `/p2` for a priority, `/t5` for a time-out of 5 ms, `/sX` for the shape
//! `X`. `x:NAME` cancels, `+0` and `-0` are instances that join and go, `hurry` and `drain` do so, and `end` lets time pass until
//! nothing happens any more. In the trace a batch is named by its requests and why it ended; `@i` names an instance
//! other than the first.
//!
//! `slo=10 policy=edf table=2+1` is an objective of 10 ms, and executions that take 2 ms and 1 ms an inference, which the
//! policy knows from the start (`blank=` if it does not; `slow=9` if it thinks that the largest batch takes 9 ms).

use std::{collections::BTreeMap, fmt::Write, time::Duration};

use skep_scheduler::{
    Input, InstanceId, Objective, ObjectivePolicy, Output, Outputs, Payload, Percentile, Policy,
    PolicySnapshot, QueuePolicy, RejectReason, Request, RequestId, Scheduler, SchedulerOptions,
    TimeoutAction, TritonPolicy,
};
use skep_types::Time;

/// A request's name and the shape of its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) shape: String,
}

impl Payload for Named {
    fn joins(&self, other: &Self) -> bool {
        self.shape == other.shape
    }
}

pub(crate) struct Paper {
    scheduler: Scheduler<Named>,
    /// How long an execution takes, and longer an inference.
    run: (Duration, Duration),
    now: Time,
    ids: BTreeMap<String, RequestId>,
    /// When each busy instance finishes.
    busy: BTreeMap<InstanceId, (Time, Duration)>,
    trace: String,
}

pub(crate) fn ms(text: &str) -> Duration {
    Duration::from_secs_f64(text.parse::<f64>().expect("milliseconds") / 1e3)
}

/// How long a batch of this size takes.
fn took((fixed, each): (Duration, Duration), size: usize) -> Duration {
    fixed.saturating_add(each * u32::try_from(size).expect("a size"))
}

impl Paper {
    pub(crate) fn new(settings: &str) -> Self {
        let mut options = SchedulerOptions {
            max_batch_size: 8,
            policy: Policy::Triton(TritonPolicy::default()),
            ..SchedulerOptions::one_by_one(1000)
        };
        let (mut run, mut instances) = ((Duration::MAX, Duration::ZERO), 1);
        let mut objective = Objective {
            latency: Duration::ZERO,
            policy: ObjectivePolicy::Auto,
            miss_action: TimeoutAction::Reject,
            percentile: Percentile::default(),
            margin: Duration::ZERO,
            profile: Vec::new(),
        };
        let (mut blank, mut slow) = (false, None);
        let mut triton = TritonPolicy::default();
        for setting in settings.split_whitespace() {
            let (key, value) = setting.split_once('=').expect("key=value");
            let number = || value.parse::<usize>().expect("a number");
            // Of all levels, or of one: `L2.timeout`.
            let (levels, key) = match key.strip_prefix('L').and_then(|key| key.split_once('.')) {
                Some((level, key)) => {
                    let level: usize = level.parse().expect("a level");
                    (level - 1..level, key)
                }
                None => (0..options.levels.len(), key),
            };
            let each = &mut options.levels[levels];
            match key {
                "max" => options.max_batch_size = number(),
                "waiting" => options.max_waiting = number(),
                "one_by_one" => options.policy = Policy::OneByOne,
                "pref" => {
                    let sizes = value.split(',').map(|size| size.parse().expect("a size"));
                    triton.preferred_batch_sizes = sizes.collect();
                }
                "delay" => triton.max_queue_delay = ms(value),
                "on" => instances = number(),
                "run" => run.0 = ms(value),
                "table" => {
                    let (fixed, each) = value.split_once('+').expect("fixed+each");
                    run = (ms(fixed), ms(each));
                }
                "blank" => blank = true,
                "slow" => slow = Some(ms(value)),
                "slo" => objective.latency = ms(value),
                "margin" => objective.margin = ms(value),
                "miss" => objective.miss_action = TimeoutAction::Delay,
                "policy" => {
                    let policy = ObjectivePolicy::ALL.iter().find(|p| p.name() == value);
                    objective.policy = *policy.expect("a policy");
                }
                "levels" => options.levels = vec![QueuePolicy::default(); number()],
                "default" => options.default_level = number() - 1,
                "size" => each
                    .iter_mut()
                    .for_each(|l| l.max_queue_size = Some(number())),
                "timeout" => each.iter_mut().for_each(|l| l.timeout = Some(ms(value))),
                "override" => each
                    .iter_mut()
                    .for_each(|l| l.allow_timeout_override = true),
                "action" => each
                    .iter_mut()
                    .for_each(|l| l.timeout_action = TimeoutAction::Delay),
                "slots" => options.slots = true,
                "hold" => options.hold_until = number(),
                other => panic!("no setting is called {other}"),
            }
        }
        if !objective.latency.is_zero() {
            if !blank {
                let sizes = [1, options.max_batch_size];
                objective.profile = sizes.map(|size| (size, took(run, size))).to_vec();
                objective.profile[1].1 = slow.unwrap_or(objective.profile[1].1);
            }
            options.policy = Policy::Objective(objective);
        } else if options.policy != Policy::OneByOne {
            options.policy = Policy::Triton(triton);
        }
        let mut paper = Self {
            scheduler: Scheduler::new(options),
            run,
            now: Time::ZERO,
            ids: BTreeMap::new(),
            busy: BTreeMap::new(),
            trace: String::new(),
        };
        let ready = (0..instances).map(|index| Input::InstanceReady(InstanceId(index as u32)));
        paper.apply(ready.collect());
        paper
    }

    /// Plays a script; what happened.
    pub(crate) fn play(settings: &str, script: &str) -> String {
        let mut paper = Self::played(settings, script);
        let waiting = paper.scheduler.waiting();
        if waiting > 0 {
            write!(paper.trace, " {waiting} wait").expect("a string takes all");
        }
        paper.trace.trim().to_owned()
    }

    /// Plays a script; what the policy is doing then.
    pub(crate) fn watch(settings: &str, script: &str) -> PolicySnapshot {
        let paper = Self::played(settings, script);
        paper.scheduler.policy_snapshot(paper.now)
    }

    fn played(settings: &str, script: &str) -> Self {
        let mut paper = Self::new(settings);
        let mut inputs = Vec::new();
        for word in script.split_whitespace() {
            if word == "end" {
                paper.apply(std::mem::take(&mut inputs));
                while let Some(next) = paper.next() {
                    paper.advance(next);
                }
            } else if word.starts_with(|c: char| c.is_ascii_digit()) {
                paper.apply(std::mem::take(&mut inputs));
                paper.advance(Time::ZERO + ms(word));
            } else {
                inputs.push(paper.input(word));
            }
        }
        paper.apply(inputs);
        paper
    }

    /// The next moment at which something happens by itself.
    fn next(&self) -> Option<Time> {
        let finished = self.busy.values().map(|(at, _)| *at).min();
        [finished, self.scheduler.next_timeout()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Lets time pass up to this moment; what happens at it by itself happens before what the script says.
    fn advance(&mut self, to: Time) {
        while let Some(next) = self.next().filter(|next| *next <= to) {
            self.now = self.now.max(next);
            let done: Vec<InstanceId> = self
                .busy
                .iter()
                .filter(|(_, (at, _))| *at <= next)
                .map(|(id, _)| *id)
                .collect();
            let inputs = done.into_iter().map(|instance| {
                let (_, duration) = self.busy.remove(&instance).expect("it is busy");
                Input::Finished { instance, duration }
            });
            let inputs = inputs.collect();
            self.apply(inputs);
            assert!(
                self.next().is_none_or(|after| after > next),
                "time stands still"
            );
        }
        self.now = to;
    }

    fn input(&mut self, word: &str) -> Input<Named> {
        let instance = || InstanceId(word[1..].parse().expect("an instance"));
        match word {
            "hurry" => return Input::Hurry,
            "drain" => return Input::Drain,
            _ => {}
        }
        if let Some(cap) = word.strip_prefix("cap:") {
            return Input::BatchCap(cap.parse().expect("a size"));
        }
        if let Some(name) = word.strip_prefix("x:") {
            return Input::Cancel(self.ids[name]);
        }
        match word.as_bytes()[0] {
            b'+' => return Input::InstanceReady(instance()),
            b'-' => {
                self.busy.remove(&instance());
                return Input::InstanceGone(instance());
            }
            b'*' => return Input::SlotGranted,
            _ => {}
        }
        let mut parts = word.split('/');
        let head = parts.next().expect("a split has a first part");
        let digits = head
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(head.len());
        let (name, size) = head.split_at(digits);
        let id = RequestId(self.ids.len() as u64);
        assert!(
            self.ids.insert(name.to_owned(), id).is_none(),
            "{name} is there already"
        );
        let mut request = Request {
            id,
            batch_size: if size.is_empty() {
                1
            } else {
                size.parse().expect("a size")
            },
            priority: 0,
            timeout: None,
            payload: Named {
                name: name.to_owned(),
                shape: String::new(),
            },
        };
        for part in parts {
            let (key, value) = part.split_at(1);
            match key {
                "p" => request.priority = value.parse().expect("a priority"),
                "t" => request.timeout = Some(ms(value)),
                "s" => value.clone_into(&mut request.payload.shape),
                other => panic!("no attribute is called {other}"),
            }
        }
        Input::Enqueue(request)
    }

    fn apply(&mut self, inputs: Vec<Input<Named>>) {
        let mut outputs = Outputs::new();
        self.scheduler.handle_all(self.now, inputs, &mut outputs);
        for output in outputs {
            let moment = self.now.as_nanos() as f64 / 1e6;
            write!(self.trace, "  {moment} ").expect("a string takes all");
            let text = match output {
                Output::Dispatch { instance, batch } => {
                    let duration = took(self.run, batch.size());
                    let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
                    let at = Time::from_nanos(self.now.as_nanos().saturating_add(nanos));
                    let before = self.busy.insert(instance, (at, duration));
                    assert!(before.is_none(), "{instance:?} is busy");
                    let names: Vec<String> = batch
                        .requests
                        .iter()
                        .map(|r| r.payload.name.clone())
                        .collect();
                    let on = if instance.0 == 0 {
                        String::new()
                    } else {
                        format!("@{}", instance.0)
                    };
                    format!("{}:{}{on}", names.join("+"), batch.end.name())
                }
                Output::Reject { request, reason } => {
                    let reason = match reason {
                        RejectReason::QueueFull => "full",
                        RejectReason::TimedOut => "timeout",
                        RejectReason::TooLate => "late",
                        RejectReason::Draining => "draining",
                        RejectReason::Cancelled => "cancelled",
                        RejectReason::NoInstance => "no instance",
                        RejectReason::NoStart
                        | RejectReason::SequenceTimedOut
                        | RejectReason::SequenceCancelled => "for its sequence",
                    };
                    format!("{}!{reason}", request.payload.name)
                }
                Output::WantSlot => "want".to_owned(),
                Output::ReturnSlot => "return".to_owned(),
            };
            self.trace.push_str(&text);
        }
    }
}
