//! How many instances a resident model needs: fast up, slow down.
//!
//! The *offered load* of a model is the number of instances that its requests would keep busy: arrivals a second, times
//! the seconds that an instance is busy for each of them. It is measured over two seconds, so that growth is followed at
//! once. A model has fewer instances only after a minute in which it never needed more.
//!
//! *Enough* means that no instance is busy for more than nine tenths of the time, and with a latency objective also that
//! at most one request in a hundred waits for longer than the objective leaves beside its execution. The waiting time is
//! that of an M/M/n queue (Erlang's second formula). Without an objective instances are busy for three quarters of the
//! time at most.
//!
//! Sources: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic
//! telephone exchanges", 1917; the window before a reduction is that of Kubernetes' horizontal autoscaler.

use std::{collections::VecDeque, time::Duration};

use skep_types::Time;

use crate::recent::{RecentMax, push_sample};

/// The load is measured over this time.
const WINDOW: Duration = Duration::from_secs(2);

/// A shorter time says nothing about the load.
const SHORTEST_WINDOW: Duration = Duration::from_millis(500);

/// How long fewer instances have to be enough before some leave.
const PATIENCE: Duration = Duration::from_secs(60);

/// The part of the time that an instance may be busy: without an objective, and with one.
const BUSY: f64 = 0.75;
const BUSY_WITH_OBJECTIVE: f64 = 0.9;

/// The part of the requests that may wait for longer than the objective leaves.
const LATE: f64 = 0.01;

/// What a model has done since it was loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadSample {
    /// Requests that have ended.
    pub ended: u64,
    /// Requests that wait now.
    pub waiting: u64,
    /// The time for which instances were busy, over all of them.
    pub busy: Duration,
}

/// What a model needs now.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct InstanceNeed {
    /// How many instances, within the bounds.
    pub instances: u32,
    /// Instances that the load would keep busy.
    pub offered: f64,
}

/// Watches the load of one model.
#[derive(Debug, Default)]
pub struct InstanceScaler {
    /// The last [`WINDOW`].
    samples: VecDeque<(Time, LoadSample)>,
    /// What was needed in the last [`PATIENCE`].
    needs: RecentMax<u32>,
    since: Option<Time>,
    /// Busy seconds a request, as of the last window in which one ended.
    service: Option<f64>,
}

impl InstanceScaler {
    /// Notes what a model with `instances` has done by `now`, and says how many it needs, between `least` and `most`.
    /// `slack` is what the latency objective leaves beside one execution. `None` if too little is known yet.
    pub fn observe(
        &mut self,
        now: Time,
        sample: LoadSample,
        instances: u32,
        (least, most): (u32, u32),
        slack: Option<Duration>,
    ) -> Option<InstanceNeed> {
        let last = self.samples.back().map(|(_, last)| *last);
        if last.is_some_and(|last| sample.ended < last.ended || sample.busy < last.busy) {
            // The model was loaded again and has begun to count again.
            self.samples.clear();
        }
        push_sample(&mut self.samples, now, sample, WINDOW);
        let offered = self.offered(now, sample, instances)?;
        let needed = needed(offered, self.service, slack, most).clamp(least, most);
        let peak = self.needs.note(now, needed, Some(PATIENCE));
        let since = *self.since.get_or_insert(now);
        let is_patient = now.since(since) >= PATIENCE;
        // Above the most that it may have, or below the least, there is nothing to wait for.
        let instances = match needed >= instances {
            true => needed,
            false if is_patient => peak.min(instances),
            false => instances,
        };
        Some(InstanceNeed {
            instances: instances.clamp(least, most),
            offered,
        })
    }

    /// Instances that the load keeps busy.
    fn offered(&mut self, now: Time, sample: LoadSample, instances: u32) -> Option<f64> {
        let (began, before) = *self.samples.front()?;
        let passed = now.since(began);
        if passed < SHORTEST_WINDOW {
            return None;
        }
        let seconds = passed.as_secs_f64();
        let ended = sample.ended - before.ended;
        let busy = sample.busy.saturating_sub(before.busy).as_secs_f64();
        if ended > 0 {
            self.service = Some(busy / ended as f64);
        }
        let arrived = ended as f64 + sample.waiting as f64 - before.waiting as f64;
        Some(match self.service {
            Some(service) if ended > 0 => service * arrived.max(0.0) / seconds,
            // None has ended; those that wait find all instances busy.
            _ if sample.waiting > 0 => f64::from(instances) + BUSY,
            _ => busy / seconds,
        })
    }
}

/// The least number of instances that is enough, and `most` if none is.
fn needed(offered: f64, service: Option<f64>, slack: Option<Duration>, most: u32) -> u32 {
    let is_enough = |count: u32| {
        let busy = offered / f64::from(count);
        match (slack, service) {
            (Some(slack), Some(service)) if !slack.is_zero() && service > 0.0 => {
                busy <= BUSY_WITH_OBJECTIVE
                    && waits_longer(count, offered, slack.as_secs_f64() / service) <= LATE
            }
            _ => busy <= BUSY,
        }
    };
    (1..most).find(|count| is_enough(*count)).unwrap_or(most)
}

/// The probability that a request waits for longer than `services` service times, at this offered load.
pub(crate) fn waits_longer(instances: u32, offered: f64, services: f64) -> f64 {
    let count = f64::from(instances);
    if offered >= count {
        return 1.0;
    }
    // Erlang's first formula, by its recursion; then the second.
    let blocked = (1..=instances).fold(1.0, |blocked, number| {
        offered * blocked / (f64::from(number) + offered * blocked)
    });
    let waits = blocked / (1.0 - offered / count * (1.0 - blocked));
    waits * (-(count - offered) * services).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: Duration = Duration::from_millis(100);

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    /// A model with a constant service time, observed twice a second.
    struct Model {
        scaler: InstanceScaler,
        millis: u64,
        sample: LoadSample,
        instances: u32,
        slack: Option<Duration>,
    }

    impl Model {
        fn new() -> Self {
            Self {
                scaler: InstanceScaler::default(),
                millis: 0,
                sample: LoadSample::default(),
                instances: 1,
                slack: None,
            }
        }

        /// Requests a second for some seconds; those beyond the capacity wait. Takes over what is needed.
        fn run(&mut self, rate: u64, seconds: u64) -> u32 {
            for _ in 0..2 * seconds {
                self.millis += 500;
                let capacity = u64::from(self.instances) * 5;
                let due = self.sample.waiting + rate / 2;
                let done = due.min(capacity);
                self.sample.ended += done;
                self.sample.waiting = due - done;
                self.sample.busy += SERVICE * u32::try_from(done).expect("few");
                let need = self.scaler.observe(
                    at(self.millis),
                    self.sample,
                    self.instances,
                    (1, 8),
                    self.slack,
                );
                if let Some(need) = need {
                    self.instances = need.instances;
                }
            }
            self.instances
        }
    }

    #[test]
    fn instances_follow_growth_at_once_and_leave_after_a_minute() {
        let mut model = Model::new();
        assert_eq!(model.run(2, 4), 1);
        // 3 busy instances, at three quarters each.
        assert_eq!(model.run(30, 3), 4);
        assert_eq!(model.run(30, 20), 4, "and no more after the queue is gone");
        assert_eq!(model.run(10, 59), 4, "not yet");
        assert_eq!(model.run(10, 3), 2);
        assert_eq!(model.run(0, 70), 1);
    }

    #[test]
    fn a_short_pause_takes_no_instance() {
        let mut model = Model::new();
        model.run(30, 10);
        for _ in 0..5 {
            assert_eq!(model.run(0, 30), 4);
            assert_eq!(model.run(30, 5), 4);
        }
    }

    #[test]
    fn more_than_may_be_is_never_asked_for() {
        let mut model = Model::new();
        assert_eq!(model.run(1000, 5), 8);
    }

    #[test]
    fn an_objective_needs_more_the_less_slack_it_leaves() {
        let needs = |slack_ms: u64| {
            let mut model = Model::new();
            model.slack = Some(Duration::from_millis(slack_ms));
            model.run(30, 30)
        };
        // At 4 instances of which 3 are busy, a request waits with probability 0.51, for 0.1 s on average.
        assert_eq!(
            [needs(10_000), needs(400), needs(100), needs(10)],
            [4, 4, 6, 8]
        );
        // With no slack at all only the load counts.
        assert_eq!(needs(0), 4);
    }

    #[test]
    fn waiting_times_are_those_of_erlang() {
        // One server: the probability to wait is the load, and the wait is exponential.
        let single = waits_longer(1, 0.5, 2.0);
        assert!((single - 0.5 * (-1.0_f64).exp()).abs() < 1e-12, "{single}");
        // Erlang's table: 3 busy of 4 servers.
        let four = waits_longer(4, 3.0, 0.0);
        assert!((four - 0.5094).abs() < 1e-4, "{four}");
        assert_eq!(waits_longer(2, 2.0, 100.0), 1.0);
    }

    #[test]
    fn nothing_is_said_before_half_a_second() {
        let mut scaler = InstanceScaler::default();
        let mut observe = |millis, sample| scaler.observe(at(millis), sample, 2, (1, 4), None);
        assert_eq!(observe(0, LoadSample::default()), None);
        assert_eq!(observe(499, LoadSample::default()), None);
        let need = observe(500, LoadSample::default()).expect("known");
        assert_eq!((need.instances, need.offered), (2, 0.0));
    }

    #[test]
    fn first_requests_that_do_not_end_ask_for_one_more() {
        let mut scaler = InstanceScaler::default();
        let waiting = LoadSample {
            waiting: 3,
            ..LoadSample::default()
        };
        scaler.observe(at(0), waiting, 1, (1, 4), None);
        let need = scaler.observe(at(1000), waiting, 1, (1, 4), None);
        assert_eq!(need.map(|need| need.instances), Some(3));
    }

    #[test]
    fn a_model_that_counts_again_is_measured_again() {
        let mut model = Model::new();
        model.run(30, 10);
        model.sample = LoadSample::default();
        assert_eq!(model.run(2, 3), 4);
        assert_eq!(model.run(2, 70), 1);
    }
}
