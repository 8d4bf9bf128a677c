//! Scenarios of the default scheduler in text, and properties that hold under any sequence of inputs.

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use proptest::prelude::*;
use skep_scheduler::{
    Input, InstanceId, Output, Outputs, RejectReason, Request, RequestId, Scheduler,
    SchedulerOptions,
};
use skep_types::Time;

/// Runs one step a word: `+i` instance joins, `-i` leaves, `.i` finishes, `xN` cancels, `drain`, `N` enqueues.
fn run(max_queue_size: usize, script: &str) -> String {
    let mut scheduler = Scheduler::new(SchedulerOptions { max_queue_size });
    let mut trace = String::new();
    for word in script.split_whitespace() {
        let instance = || InstanceId(word[1..].parse().expect("instance"));
        let input = match word.as_bytes()[0] {
            b'+' => Input::InstanceReady(instance()),
            b'-' => Input::InstanceGone(instance()),
            b'.' => Input::Finished {
                instance: instance(),
                duration: Duration::ZERO,
            },
            b'x' => Input::Cancel(RequestId(word[1..].parse().expect("request"))),
            b'd' => Input::Drain,
            _ => Input::Enqueue(Request {
                id: RequestId(word.parse().expect("request")),
                batch_size: 1,
                payload: (),
            }),
        };
        let mut outputs = Outputs::new();
        scheduler.handle(Time::ZERO, input, &mut outputs);
        for output in outputs {
            match output {
                Output::Dispatch { instance, batch } => {
                    write!(trace, "{}@{} ", batch.requests[0].id.0, instance.0)
                }
                Output::Reject {
                    request,
                    reason: RejectReason::QueueFull,
                } => write!(trace, "{}:full ", request.id.0),
                Output::Reject {
                    request,
                    reason: RejectReason::Draining,
                } => write!(trace, "{}:drain ", request.id.0),
                Output::Reject {
                    request,
                    reason: RejectReason::Cancelled,
                } => write!(trace, "{}:cancelled ", request.id.0),
            }
            .expect("a string takes all");
        }
    }
    write!(trace, "w{}", scheduler.waiting()).expect("a string takes all");
    trace
}

#[test]
fn scenarios() {
    for (name, max, script, expected) in [
        (
            "a free instance takes a request at once",
            9,
            "+0 1",
            "1@0 w0",
        ),
        (
            "requests wait for an instance, in order",
            9,
            "1 2 3 +0 .0 .0",
            "1@0 2@0 3@0 w0",
        ),
        (
            "the lowest free instance is taken",
            9,
            "+1 +0 1 2",
            "1@0 2@1 w0",
        ),
        (
            "a full queue answers at once",
            2,
            "+0 1 2 3 4",
            "1@0 4:full w2",
        ),
        (
            "a cancelled request never runs",
            9,
            "+0 1 2 3 x2 .0",
            "1@0 2:cancelled 3@0 w0",
        ),
        (
            "cancelling what runs changes nothing",
            9,
            "+0 1 x1 2 .0",
            "1@0 2@0 w0",
        ),
        (
            "a cancelled request makes room",
            1,
            "1 x1 2 3",
            "1:cancelled 3:full w1",
        ),
        (
            "draining serves what waits and refuses what comes",
            9,
            "+0 1 2 drain 3 .0 .0",
            "1@0 3:drain 2@0 w0",
        ),
        (
            "draining without instances answers all",
            9,
            "1 2 drain",
            "1:drain 2:drain w0",
        ),
        (
            "the last instance's death while draining answers all",
            9,
            "+0 1 2 drain -0",
            "1@0 2:drain w0",
        ),
        (
            "a dead instance gets nothing",
            9,
            "+0 +1 -0 1 2 .1",
            "1@1 2@1 w0",
        ),
        (
            "requests outlive an instance that is replaced",
            9,
            "+0 1 2 -0 +0",
            "1@0 2@0 w0",
        ),
    ] {
        assert_eq!(run(max, script), expected, "{name}: {script}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Enqueue,
    Cancel(u64),
    Join(u32),
    Leave(u32),
    Finish,
    Drain,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => Just(Step::Enqueue),
        2 => (0u64..200).prop_map(Step::Cancel),
        2 => (0u32..3).prop_map(Step::Join),
        1 => (0u32..3).prop_map(Step::Leave),
        6 => Just(Step::Finish),
        1 => Just(Step::Drain),
    ];
    prop::collection::vec(step, 1..300)
}

proptest! {
    /// Nothing is lost, answered twice or reordered; no bound is exceeded; nothing waits beside a free instance.
    #[test]
    fn every_request_leaves_once_in_order(steps in steps(), max_queue_size in 1usize..20) {
        let mut scheduler = Scheduler::new(SchedulerOptions { max_queue_size });
        let (mut next, mut last_dispatched) = (0u64, None);
        let (mut waiting, mut busy, mut free) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for step in steps {
            let input = match step {
                Step::Enqueue => {
                    waiting.insert(next);
                    next += 1;
                    Input::Enqueue(Request { id: RequestId(next - 1), batch_size: 1, payload: next - 1 })
                }
                Step::Cancel(id) => Input::Cancel(RequestId(id)),
                Step::Join(i) if !busy.contains(&i) => {
                    free.insert(i);
                    Input::InstanceReady(InstanceId(i))
                }
                Step::Leave(i) => {
                    free.remove(&i);
                    busy.remove(&i);
                    Input::InstanceGone(InstanceId(i))
                }
                Step::Finish => {
                    let Some(i) = busy.pop_first() else { continue };
                    free.insert(i);
                    Input::Finished { instance: InstanceId(i), duration: Duration::ZERO }
                }
                Step::Drain => Input::Drain,
                Step::Join(_) => continue,
            };
            let mut outputs = Outputs::new();
            scheduler.handle(Time::ZERO, input, &mut outputs);
            for output in outputs {
                match output {
                    Output::Dispatch { instance, batch } => {
                        prop_assert!(free.remove(&instance.0), "dispatched to a free instance");
                        busy.insert(instance.0);
                        for request in batch.requests {
                            prop_assert_eq!(request.id.0, request.payload);
                            prop_assert!(waiting.remove(&request.id.0), "waits, once");
                            prop_assert!(last_dispatched < Some(request.id.0), "in order");
                            last_dispatched = Some(request.id.0);
                        }
                    }
                    Output::Reject { request, .. } => prop_assert!(waiting.remove(&request.id.0), "waits, once"),
                }
            }
            prop_assert_eq!(scheduler.waiting(), waiting.len());
            prop_assert!(waiting.len() <= max_queue_size);
            prop_assert!(waiting.is_empty() || free.is_empty(), "nothing waits beside a free instance");
        }
    }
}
