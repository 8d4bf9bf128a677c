//! The queue, call by call: order, joining, bounds, lanes, the end.

use skep_types::ModelName;

use super::*;
use crate::{models::management::call::CallTarget, repository::LoadOverrides};

const LIMITS: QueueLimits = QueueLimits {
    loads: 2,
    waiting: 4,
    callers: 100,
};

fn named(name: &str) -> CallTarget {
    CallTarget::Named(ModelName::new(name).expect("a name"))
}

fn load(name: &str) -> ManagementCall {
    ManagementCall::Load {
        target: named(name),
        overrides: LoadOverrides::default(),
        reports_missing: true,
    }
}

fn load_with(name: &str, config: &str) -> ManagementCall {
    ManagementCall::Load {
        target: named(name),
        overrides: LoadOverrides {
            config: Some(config.to_owned()),
            files: Vec::new(),
            charge: None,
        },
        reports_missing: true,
    }
}

fn unload(name: &str) -> ManagementCall {
    ManagementCall::Unload(named(name))
}

const NONE: [CallTicket; 0] = [];

const INDEX: ManagementCall = ManagementCall::Index { ready_only: false };

/// A queue whose callers are words.
struct TestQueue(CallQueue<&'static str>);

impl TestQueue {
    fn new() -> Self {
        Self(CallQueue::new(LIMITS))
    }

    fn add(&mut self, work: ManagementCall, caller: &'static str) -> CallPosition {
        self.0.submit(work, true, caller).expect("taken")
    }

    fn refused(&mut self, work: ManagementCall) -> CallRefusal {
        let outcome = self.0.submit(work, true, "nobody");
        outcome.expect_err("refused").0
    }

    /// Begins what may run: tickets.
    fn start(&mut self) -> Vec<CallTicket> {
        std::iter::from_fn(|| self.0.start_next())
            .map(|(ticket, _)| ticket)
            .collect()
    }

    fn assert_empty(&self) {
        let queue = &self.0;
        assert!(
            queue.calls.is_empty() && queue.lines.is_empty(),
            "{queue:?}"
        );
        assert!(queue.ready.iter().all(BTreeSet::is_empty), "{queue:?}");
        let counts = (queue.waiting, queue.callers, queue.running);
        assert_eq!(counts, (0, 0, [0; LANES]));
    }
}

#[test]
fn a_load_joins_the_same_load_only_while_that_waits() {
    let mut calls = TestQueue::new();
    calls.add(load("m"), "a");
    calls.add(load("m"), "b");
    assert_eq!(calls.start(), [0]);
    // Files may have changed since the first load read them.
    calls.add(load("m"), "c");
    calls.add(load("m"), "d");
    assert_eq!(calls.start(), NONE, "one after the other");
    assert_eq!(calls.0.finish(0), ["a", "b"]);
    assert_eq!(calls.start(), [1]);
    assert_eq!(calls.0.finish(1), ["c", "d"]);
    calls.assert_empty();
}

#[test]
fn other_loads_and_unloads_of_a_model_keep_their_order() {
    let mut calls = TestQueue::new();
    for (work, caller) in [
        (load("m"), "a"),
        (load_with("m", "{}"), "b"),
        (load_with("m", "{}"), "c"),
        (unload("m"), "d"),
        (unload("m"), "e"),
    ] {
        calls.add(work, caller);
    }
    // The last waiting call is an unload: this load comes after it.
    calls.add(load("m"), "f");
    for (ticket, callers) in [
        (0, &["a"][..]),
        (1, &["b", "c"]),
        (2, &["d", "e"]),
        (3, &["f"]),
    ] {
        assert_eq!(calls.start(), [ticket]);
        assert_eq!(calls.0.finish(ticket), callers);
    }
    calls.assert_empty();
}

#[test]
fn models_load_side_by_side_oldest_first_up_to_the_limit() {
    let mut calls = TestQueue::new();
    calls.add(load("a"), "a");
    calls.add(load("a"), "a");
    calls.add(load_with("a", "{}"), "a");
    calls.add(load("b"), "b");
    calls.add(load("c"), "c");
    assert_eq!(calls.start(), [0, 2]);
    // An index has its own place: it does not wait for loads.
    calls.add(INDEX, "i");
    assert_eq!(calls.start(), [4]);
    calls.0.finish(0);
    assert_eq!(calls.start(), [1], "older than the load of c");
    calls.0.finish(2);
    assert_eq!(calls.start(), [3]);
    assert_eq!(calls.0.running(), 3);
}

#[test]
fn waiting_calls_are_bounded_and_joining_is_free() {
    let mut calls = TestQueue::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    calls.add(load(names[0]), "0");
    calls.add(load(names[1]), "1");
    assert_eq!(calls.start().len(), 2);
    for name in &names[2..] {
        calls.add(load(name), "waits");
    }
    assert_eq!(calls.refused(load("g")), CallRefusal::Full(4));
    assert_eq!(calls.refused(unload("a")), CallRefusal::Full(4));
    calls.add(load("f"), "joins");
    // The node's own calls are bounded by its repository.
    calls.0.submit(load("g"), false, "own").expect("taken");
    calls.0.finish(0);
    assert_eq!(calls.start().len(), 1);
    calls.add(load("h"), "fits again");
    for _ in 0..LIMITS.callers {
        let _ = calls.0.submit(load("f"), true, "joins");
    }
    assert_eq!(
        calls.refused(load("f")),
        CallRefusal::Callers(LIMITS.callers)
    );
}

#[test]
fn a_waiting_call_is_removed_with_its_last_caller() {
    let mut calls = TestQueue::new();
    let first = calls.add(load("m"), "a");
    assert_eq!(calls.start(), [0]);
    let second = calls.add(load_with("m", "{}"), "b");
    let joined = calls.add(load_with("m", "{}"), "c");
    calls.add(unload("m"), "d");
    assert!(calls.0.leave(second).is_none(), "another caller waits");
    assert!(calls.0.leave(joined).is_some(), "the last caller");
    assert!(calls.0.leave(joined).is_none(), "gone already");
    assert!(calls.0.leave(first).is_none(), "runs");
    assert_eq!(
        calls.start(),
        NONE,
        "the unload waits for the load that runs"
    );
    assert_eq!(calls.0.finish(0), [""; 0]);
    assert_eq!(calls.start(), [2]);
    // A call at the front of its line that waits for a thread.
    let ready = calls.add(unload("n"), "e");
    calls.add(load("n"), "f");
    assert!(calls.0.leave(ready).is_some());
    assert_eq!(calls.start(), [4]);
    calls.0.finish(2);
    calls.0.finish(4);
    calls.assert_empty();
}

#[test]
fn closing_drops_waiting_calls_and_releases_every_caller() {
    let mut calls = TestQueue::new();
    let runs = calls.add(load("a"), "runs");
    calls.start();
    calls.add(unload("a"), "waits");
    calls.add(load("b"), "ready");
    assert_eq!(calls.0.close(), ["runs", "waits", "ready"]);
    assert_eq!(calls.start(), NONE);
    assert_eq!(calls.refused(load("c")), CallRefusal::Closed);
    assert_eq!(calls.0.running(), 1);
    assert!(calls.0.leave(runs).is_none());
    assert_eq!(calls.0.finish(0), [""; 0]);
    assert_eq!(calls.start(), NONE);
    calls.assert_empty();
}

fn with_file(bytes: usize) -> LoadOverrides {
    LoadOverrides {
        config: Some("{}".to_owned()),
        files: vec![("1/model.onnx".to_owned(), vec![0; bytes].into())],
        charge: None,
    }
}

#[test]
fn large_overrides_are_not_compared() {
    assert!(with_file(10).is_same(&with_file(10)));
    assert!(!with_file(10).is_same(&with_file(11)));
    assert!(!with_file(10).is_same(&LoadOverrides::default()));
    assert!(!with_file(1 << 20).is_same(&with_file(1 << 20)));
}
