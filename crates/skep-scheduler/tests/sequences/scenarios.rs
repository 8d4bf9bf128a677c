//! Scenarios: a script of what happens, and the trace of what the scheduler does.
//!
//! `a1(` is the first request of sequence `a` and starts it, `a2)` the second one, which ends it. `+0` adds an instance,
//! `f0` says that it has finished, `-0` that it is gone, `~0` that it is retired; `x:a2` cancels a request, `w:a2` takes it
//! back, a number is the time in milliseconds. In the trace, `0[a1 . b1]` is a batch on instance 0 with an empty row.

use std::{collections::BTreeMap, time::Duration};

use skep_scheduler::{
    DirectPolicy, Input, InstanceId, OldestPolicy, Output, Outputs, RejectReason, Request,
    RequestId, SequenceCounts, SequenceOptions, SequenceScheduler, SequenceStrategy, TritonPolicy,
};
use skep_types::Time;

use crate::{Step, direct, oldest, options};

struct Play {
    scheduler: SequenceScheduler<Step>,
    now: Time,
    ids: BTreeMap<String, RequestId>,
    names: BTreeMap<RequestId, String>,
    trace: Vec<String>,
}

impl Play {
    fn new(options: SequenceOptions) -> Self {
        Self {
            scheduler: SequenceScheduler::new(options),
            now: Time::ZERO,
            ids: BTreeMap::new(),
            names: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    fn counts(&self) -> SequenceCounts {
        let snapshot = self.scheduler.policy_snapshot();
        snapshot.sequences.expect("it has sequences")
    }

    fn run(&mut self, script: &str) -> String {
        for word in script.split_whitespace() {
            if word.starts_with(|c: char| c.is_ascii_digit()) {
                let at = word.parse().expect("milliseconds");
                self.pass(Time::ZERO + Duration::from_millis(at));
                continue;
            }
            let input = self.input(word);
            self.apply(|scheduler, now, outputs| scheduler.handle(now, input, outputs));
        }
        std::mem::take(&mut self.trace).join(" ")
    }

    fn pass(&mut self, until: Time) {
        while let Some(at) = self.scheduler.next_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            self.apply(SequenceScheduler::handle_timeout);
        }
        self.now = until;
    }

    fn input(&mut self, word: &str) -> Input<Step> {
        let instance = |text: &str| InstanceId(text.parse().expect("an instance"));
        if let Some(name) = word.strip_prefix("x:") {
            return Input::Cancel(self.ids[name]);
        }
        if let Some(name) = word.strip_prefix("w:") {
            return Input::Withdraw(self.ids[name]);
        }
        match (word, word.split_at(1)) {
            ("drain", _) => Input::Drain,
            ("hurry", _) => Input::Hurry,
            ("broken", _) => Input::RejectWaiting,
            ("grant", _) => Input::SlotGranted,
            (_, ("+", id)) => Input::InstanceReady(instance(id)),
            (_, ("-", id)) => Input::InstanceGone(instance(id)),
            (_, ("~", id)) => Input::InstanceRetired(instance(id)),
            (_, ("f", id)) if id.parse::<u32>().is_ok() => Input::Finished {
                instance: instance(id),
                duration: Duration::ZERO,
            },
            _ => Input::Enqueue(self.request(word)),
        }
    }

    /// `a1(/t5/s`: the time-out is 5 ms, and the shape the other one.
    fn request(&mut self, word: &str) -> Request<Step> {
        let mut parts = word.split('/');
        let head = parts.next().expect("a name");
        let name = head.trim_end_matches(['(', ')']);
        let id = RequestId(self.ids.len() as u64);
        self.ids.insert(name.to_owned(), id);
        self.names.insert(id, name.to_owned());
        let sequence = u64::from(name.as_bytes()[0]);
        let mut payload = Step::new(sequence, head.contains('('), head.contains(')'));
        let mut timeout = None;
        for part in parts {
            match part.split_at(1) {
                ("t", ms) => timeout = Some(Duration::from_millis(ms.parse().expect("ms"))),
                _ => payload.shape = true,
            }
        }
        Request {
            id,
            batch_size: 1,
            priority: 0,
            timeout,
            payload,
        }
    }

    fn apply(&mut self, act: impl FnOnce(&mut SequenceScheduler<Step>, Time, &mut Outputs<Step>)) {
        let mut outputs = Outputs::new();
        act(&mut self.scheduler, self.now, &mut outputs);
        for output in outputs {
            let text = match output {
                Output::Dispatch { instance, batch } => {
                    let names = batch.requests.iter().map(|r| self.names[&r.id].as_str());
                    let names: Vec<&str> = names.collect();
                    let mut shown = vec!["."; batch.size()];
                    match &batch.rows {
                        None => shown.copy_from_slice(&names),
                        Some(rows) => {
                            for (row, name) in rows.of_requests.iter().zip(names) {
                                shown[*row as usize] = name;
                            }
                        }
                    }
                    format!("{}[{}]", instance.0, shown.join(" "))
                }
                Output::Reject { request, reason } => {
                    let reason = match reason {
                        RejectReason::NoStart => "no-start",
                        RejectReason::QueueFull => "full",
                        RejectReason::SequenceTimedOut => "timeout",
                        RejectReason::SequenceCancelled => "dropped",
                        RejectReason::Cancelled => "cancelled",
                        RejectReason::Draining => "draining",
                        RejectReason::NoInstance => "no-instance",
                        RejectReason::TimedOut | RejectReason::TooLate => "late",
                    };
                    format!("{}!{reason}", self.names[&request.id])
                }
                Output::WantSlot => "want".to_owned(),
                Output::ReturnSlot => "return".to_owned(),
            };
            self.trace.push(text);
        }
    }
}

fn play(options: SequenceOptions, script: &str) -> String {
    Play::new(options).run(script)
}

#[test]
fn a_sequence_keeps_its_row_and_others_leave_theirs_empty() {
    let script = "+0 a1( b1( f0 c1( f0 a2 f0 c2 b2 f0 b3) f0 f0 d1(";
    let expected = "0[a1] 0[. b1] 0[. . c1] 0[a2 . .] 0[. b2 c2] 0[. b3 .] 0[. d1 .]";
    assert_eq!(play(options(direct()), script), expected);
}

#[test]
fn ready_slots_run_together_if_their_shapes_agree() {
    let script = "a1( b1( c1( d1( +0 f0 a2 b2/s c2 f0 f0";
    // `a2` finds the instance free; `b2` has waited longest then.
    let expected = "0[a1 b1 c1 d1] 0[a2 . . .] 0[. b2 . .] 0[. . c2 .]";
    assert_eq!(play(options(direct()), script), expected);
}

#[test]
fn sequences_spread_over_instances_and_stay_where_they_are() {
    let script = "+0 +1 a1( b1( c1( f0 f1 b2 f1 a2 c2 f0";
    assert_eq!(
        play(options(direct()), script),
        "0[a1] 1[b1] 0[. c1] 1[b2] 0[a2 c2]"
    );
    // Candidates run where an instance is free.
    assert_eq!(
        play(options(oldest(4)), "+0 +1 a1( b1( f0 f1 b2 a2"),
        "0[a1] 1[b1] 0[b2] 1[a2]"
    );
}

#[test]
fn one_request_of_a_sequence_runs_at_a_time_and_in_order() {
    let script = "+0 +1 a1( a2 a3) f0 f0 f0";
    for strategy in [direct(), oldest(2)] {
        assert_eq!(play(options(strategy), script), "0[a1] 0[a2] 0[a3]");
    }
}

#[test]
fn candidates_are_batched_by_age() {
    let script = "+0 a1( b1( c1( d1( a2 f0 f0";
    // `d` waits until a candidate ends.
    assert_eq!(play(options(oldest(3)), script), "0[a1] 0[b1 c1 a2]");
    let script = "+0 a1() b1( c1( d1( f0 f0 c2) f0 d2";
    assert_eq!(
        play(options(oldest(3)), script),
        "0[a1] 0[b1 c1 d1] 0[c2] 0[d2]"
    );
}

#[test]
fn a_sequence_must_start_and_its_end_frees_the_slot() {
    let single = SequenceOptions {
        max_batch_size: 1,
        ..options(direct())
    };
    let script = "+0 a0 a1( b1( f0 a2) f0 f0 a3 b2) f0 a4(";
    let expected = "a0!no-start 0[a1] 0[a2] 0[b1] a3!no-start 0[b2] 0[a4]";
    assert_eq!(play(single, script), expected);
}

#[test]
fn a_second_start_begins_again_in_the_same_slot() {
    let mut play = Play::new(options(direct()));
    assert_eq!(
        play.run("+0 z1( a1( a2( a3) f0 f0 f0 f0"),
        "0[z1] 0[. a1] 0[. a2] 0[. a3]"
    );
    assert_eq!(play.counts().used, 1);
}

#[test]
fn an_end_that_waits_lets_the_id_start_another_sequence() {
    let script = "+0 a1() a2() f0 f0";
    assert_eq!(play(options(direct()), script), "0[a1] 0[. a2]");
    assert_eq!(play(options(oldest(2)), script), "0[a1] 0[a2]");
}

#[test]
fn idle_sequences_end() {
    for strategy in [direct(), oldest(1)] {
        let single = SequenceOptions {
            max_batch_size: 1,
            ..options(strategy)
        };
        let script = "+0 a1( b1( 90 f0 189 a2 f0 288 290 a3 f0";
        assert_eq!(play(single, script), "0[a1] 0[a2] 0[b1] a3!no-start");
    }
}

#[test]
fn waiting_sequences_are_bounded_in_number_and_time() {
    for strategy in [direct(), oldest(1)] {
        let bounded = SequenceOptions {
            max_batch_size: 1,
            max_waiting_sequences: Some(1),
            max_wait: Some(Duration::from_millis(50)),
            ..options(strategy)
        };
        let script = "+0 a1( b1( c1( b2 a2 10 f0 49 50 b3 60 d1(/t5 65 d2";
        let expected =
            "0[a1] c1!full 0[a2] b1!timeout b2!timeout b3!no-start d1!timeout d2!no-start";
        assert_eq!(play(bounded, script), expected);
    }
    let few = SequenceOptions {
        max_waiting: 2,
        ..options(direct())
    };
    assert_eq!(play(few, "a1( a2 a3 +0 f0 a4"), "a3!full 0[a1] 0[a2]");
}

#[test]
fn a_cancelled_request_takes_the_waiting_ones_with_it() {
    for strategy in [direct(), oldest(2)] {
        let mut play = Play::new(options(strategy));
        // While `a1` runs, and while it waits.
        assert_eq!(
            play.run("+0 a1( a2 a3 x:a2 a4"),
            "0[a1] a2!cancelled a3!dropped a4!no-start"
        );
        assert_eq!(play.counts().used, 1);
        assert_eq!(
            play.run("b1( b2 x:b1 b3"),
            "b1!cancelled b2!dropped b3!no-start"
        );
        assert_eq!(
            play.run("f0 c1( x:c1 c2 f0 c3"),
            "0[c1] c2!no-start c3!no-start"
        );
        assert_eq!(play.counts().used, 0);
    }
}

#[test]
fn a_request_is_taken_back_alone() {
    for strategy in [direct(), oldest(2)] {
        let mut play = Play::new(options(strategy));
        let script = "+0 a1( a2 w:a2 a3 a4) w:a4 a5 f0 f0 f0";
        assert_eq!(
            play.run(script),
            "0[a1] a2!cancelled a4!cancelled 0[a3] 0[a5]"
        );
        // The sequence does not begin, or does not begin again.
        assert_eq!(
            play.run("a6 b1( w:b1 b2 f0"),
            "0[a6] b1!cancelled b2!no-start"
        );
        assert_eq!(
            play.run("a7 a8( w:a8 a9 f0"),
            "0[a7] a8!cancelled a9!no-start"
        );
        assert_eq!(play.counts().used, 0);
    }
}

#[test]
fn sequences_of_a_lost_instance_continue_elsewhere() {
    let script = "+0 +1 a1( b1( a2 -0 f1 f1 b2 f1";
    assert_eq!(
        play(options(direct()), script),
        "0[a1] 1[b1] 1[. a2] 1[b2 .]"
    );
    // A retired instance answers its batch first; the sequence's next request waits for that.
    let script = "+0 +1 a1( a2 ~0 c1( f1 -0";
    assert_eq!(play(options(direct()), script), "0[a1] 1[c1] 1[. a2]");
    let script = "+0 +1 a1( a2 ~0 c1( f1 -0";
    assert_eq!(play(options(oldest(2)), script), "0[a1] 1[c1] 1[a2]");
}

#[test]
fn a_drain_answers_what_waits_and_frees_idle_sequences() {
    let single = SequenceOptions {
        max_batch_size: 1,
        ..options(direct())
    };
    let mut play = Play::new(single);
    assert_eq!(
        play.run("+0 a1( b1( c1( f0 drain a2 f0 f0"),
        "0[a1] 0[b1] a2!draining 0[c1]"
    );
    assert_eq!(play.scheduler.waiting(), 0);
    let mut play = Play::new(options(oldest(1)));
    assert_eq!(
        play.run("+0 a1( b1( c1( f0 drain a2 f0 f0"),
        "0[a1] 0[b1] a2!draining 0[c1]"
    );
    let mut play = Play::new(options(direct()));
    assert_eq!(play.run("a1( a2 drain"), "a1!draining a2!draining");
    let mut play = Play::new(options(oldest(1)));
    assert_eq!(
        play.run("a1( a2 b1( broken a3"),
        "a1!no-instance a2!no-instance b1!no-instance a3!no-start"
    );
}

#[test]
fn idle_sequences_make_room_in_a_hurry() {
    let script = "+0 a1( b1( f0 f0 hurry b2 f0 c1( f0 a2 b3 d1( f0";
    let direct = (
        direct(),
        "0[a1] 0[. b1] 0[. b2] 0[c1 .] a2!no-start 0[. b3] 0[d1 .]",
    );
    let oldest = (oldest(2), "0[a1] 0[b1] 0[b2] 0[c1] a2!no-start 0[b3] 0[d1]");
    for (strategy, expected) in [direct, oldest] {
        let two = SequenceOptions {
            max_batch_size: 2,
            ..options(strategy)
        };
        assert_eq!(play(two, script), expected);
    }
}

#[test]
fn a_batch_waits_for_more_slots_as_long_as_it_may() {
    let waits = |least_ready| {
        options(SequenceStrategy::Direct(DirectPolicy {
            max_queue_delay: Duration::from_millis(10),
            least_ready,
        }))
    };
    assert_eq!(play(waits(1), "+0 a1("), "0[a1]");
    let mut two = Play::new(waits(2));
    assert_eq!(two.run("+0 a1( 9"), "");
    assert_eq!(two.run("b1("), "0[a1 b1]");
    assert_eq!(two.run("f0 20 b2 29"), "");
    assert_eq!(two.run("30"), "0[. b2]");
    assert_eq!(two.run("f0 a2 hurry"), "0[a2 .]");
    let oldest = SequenceStrategy::Oldest(OldestPolicy {
        max_candidates: 4,
        batching: TritonPolicy {
            preferred_batch_sizes: vec![2],
            max_queue_delay: Duration::from_millis(10),
        },
    });
    let mut play = Play::new(options(oldest));
    assert_eq!(play.run("+0 a1( 9"), "");
    assert_eq!(play.run("b1( f0 b2 18"), "0[a1 b1]");
    assert_eq!(play.run("19"), "0[b2]");
}

#[test]
fn executions_ask_for_compute_slots() {
    for strategy in [direct(), oldest(2)] {
        let shared = SequenceOptions {
            slots: true,
            ..options(strategy)
        };
        let mut play = Play::new(shared);
        assert_eq!(play.run("+0 a1( b1("), "want");
        assert_eq!(play.run("grant"), "0[a1 b1]");
        assert_eq!(play.run("f0 a2 x:a2 grant"), "want a2!cancelled return");
    }
}

#[test]
fn the_first_batch_waits_for_as_many_requests_as_it_is_told() {
    for (strategy, second) in [(direct(), "0[a2 .]"), (oldest(2), "0[a2]")] {
        let held = SequenceOptions {
            hold_until: 3,
            ..options(strategy)
        };
        let mut play = Play::new(held);
        assert_eq!(play.run("+0 a1( b1("), "");
        assert_eq!(play.run("a2 f0"), format!("0[a1 b1] {second}"));
    }
}
