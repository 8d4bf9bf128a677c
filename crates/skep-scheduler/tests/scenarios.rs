//! Every rule of Triton's schedulers, as a scenario in text.

mod common;

use common::{Paper, ms};
use skep_scheduler::{
    BatchEnd, Input, InstanceId, Output, Outputs, Percentile, PolicySnapshot, Request, RequestId,
    Scheduler, SchedulerOptions,
};
use skep_types::Time;

/// Plays scenarios: what each shows, its settings, its script, what should happen.
fn check(scenarios: &[(&str, &str, &str, &str)]) {
    for (name, settings, script, expected) in scenarios {
        let got = Paper::play(settings, script);
        let (got, expected) = (normal(&got), normal(expected));
        assert_eq!(
            got, expected,
            "{name}\n  settings: {settings}\n  script: {script}"
        );
    }
}

/// One space between words.
fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_default_scheduler() {
    check(&[
        (
            "a free instance takes a request at once",
            "one_by_one=",
            "0 a",
            "0 a:no_batching",
        ),
        (
            "requests wait for an instance, in order",
            "one_by_one= on=0",
            "0 a b c 1 +0 2 -0 +0",
            "1 a:no_batching 2 b:no_batching 1 wait",
        ),
        (
            "nothing is merged; the lowest free instance is taken",
            "one_by_one= on=2 run=5",
            "0 a b c 9 d",
            "0 a:no_batching 0 b:no_batching@1 5 c:no_batching 9 d:no_batching@1",
        ),
        (
            "a full queue answers at once",
            "one_by_one= waiting=2 on=0",
            "0 a b c",
            "0 c!full 2 wait",
        ),
        (
            "a cancelled request never runs, and makes room; cancelling what runs changes nothing",
            "one_by_one= waiting=1 run=2",
            "0 a 1 b x:a x:b c end",
            "0 a:no_batching 1 b!cancelled 2 c:no_batching",
        ),
    ]);
}

#[test]
fn holding() {
    check(&[
        (
            "nothing runs before so many wait, once",
            "hold=3 run=1",
            "0 a 1 b 2 c 9 d end",
            "2 a+b+c:queue_empty 9 d:queue_empty",
        ),
        (
            "a hurry ends it",
            "hold=3 run=1",
            "0 a 1 hurry end",
            "1 a:queue_empty",
        ),
    ]);
}

#[test]
fn draining() {
    check(&[
        (
            "what waits is served, nothing new is taken",
            "one_by_one= run=2",
            "0 a b drain c end",
            "0 c!draining 0 a:no_batching 2 b:no_batching",
        ),
        (
            "without an instance what waits is answered",
            "one_by_one= run=2",
            "0 a b drain 1 -0",
            "0 a:no_batching 1 b!draining",
        ),
        (
            "an instance that is replaced loses nobody",
            "one_by_one=",
            "0 a b 1 -0 2 +0",
            "0 a:no_batching 2 b:no_batching",
        ),
        (
            "nothing is delayed any more",
            "delay=50 run=1",
            "0 a b 3 drain",
            "3 a+b:queue_empty",
        ),
        (
            "in a hurry neither, and new requests are taken",
            "delay=50 run=1",
            "0 a b 3 hurry 5 c end",
            "3 a+b:queue_empty 5 c:queue_empty",
        ),
    ]);
}

/// The textbook's case, with X = 3 ms: requests A to E of 4, 2, 2, 6 and 2 inferences.
#[test]
fn the_textbook() {
    let script = "0 A4 C2  1 B2  2 D6 E2  end";
    check(&[
        (
            "in sequence: 5X",
            "one_by_one= run=3",
            script,
            "0 A:no_batching 3 C:no_batching 6 B:no_batching 9 D:no_batching 12 E:no_batching",
        ),
        (
            "dynamic batching: 3X",
            "max=8 run=3",
            script,
            "0 A+C:queue_empty 3 B+D:max_batch_size 6 E:queue_empty",
        ),
        (
            "with a long enough delay: 7X/3",
            "max=8 delay=2 run=3",
            script,
            "1 A+C+B:max_batch_size 4 D+E:max_batch_size",
        ),
        (
            "and on two instances: 5X/3",
            "max=8 delay=2 run=3 on=2",
            script,
            "1 A+C+B:max_batch_size 2 D+E:max_batch_size@1",
        ),
    ]);
}

#[test]
fn sizes() {
    check(&[
        (
            "as many as fit",
            "max=8 run=1",
            "0 a b c d e f g h i j end",
            "0 a+b+c+d+e+f+g+h:max_batch_size 1 i+j:queue_empty",
        ),
        (
            "whole requests only",
            "max=8 run=1",
            "0 a6 b4 end",
            "0 a:max_batch_size 1 b:queue_empty",
        ),
        (
            "in order, none skipped",
            "max=8 run=1",
            "0 a5 b6 c2 end",
            "0 a:max_batch_size 1 b+c:max_batch_size",
        ),
        (
            "a delay ends early when the batch is full",
            "max=8 delay=9 run=1",
            "0 a4 1 b4 end",
            "1 a+b:max_batch_size",
        ),
        (
            "the delay is that of the oldest request",
            "max=8 delay=9 run=1",
            "0 a 5 b end",
            "9 a+b:queue_delay",
        ),
        (
            "and it runs while no instance is free",
            "max=8 delay=3 run=9",
            "0 a8 1 b 8 c end",
            "0 a:max_batch_size 9 b+c:queue_delay",
        ),
        (
            "a batch grows until its instance is free",
            "max=8 run=9",
            "0 a8 1 b 2 c 3 d end",
            "0 a:max_batch_size 9 b+c+d:queue_empty",
        ),
        (
            "a request above the maximum runs alone",
            "max=4 run=1",
            "0 a9 b end",
            "0 a:max_batch_size 1 b:queue_empty",
        ),
    ]);
}

/// The cases that were observed on a real Triton.
#[test]
fn preferred_sizes() {
    let with = "max=8 pref=4,6 delay=3000 run=1";
    check(&[
        (
            "a preferred size leaves at once",
            with,
            "0 a4 end",
            "0 a:preferred_batch_size",
        ),
        (
            "so does the larger",
            with,
            "0 a6 end",
            "0 a:preferred_batch_size",
        ),
        (
            "another waits for the delay",
            with,
            "0 a end",
            "3000 a:queue_delay",
        ),
        (
            "what is above them leaves at once",
            with,
            "0 a7 end",
            "0 a:preferred_batch_size",
        ),
        (
            "until it is met",
            with,
            "0 a 7 b3 end",
            "7 a+b:preferred_batch_size",
        ),
        (
            "what would go past the largest waits",
            with,
            "0 a3 5 b7 end",
            "5 a:preferred_batch_size 6 b:preferred_batch_size",
        ),
        (
            "the largest that can be reached",
            "max=8 pref=2,4 run=1",
            "0 a b c d e end",
            "0 a+b+c+d:preferred_batch_size 1 e:queue_empty",
        ),
        (
            "without a delay what is left over leaves as well",
            "max=8 pref=4 run=1",
            "0 a b c d e end",
            "0 a+b+c+d:preferred_batch_size 1 e:queue_empty",
        ),
        (
            "an overdue request takes all along, past the preferred size",
            "max=8 pref=4 delay=2 run=5",
            "0 z8 1 a b c d e end",
            "0 z:max_batch_size 5 a+b+c+d+e:preferred_batch_size",
        ),
    ]);
}

#[test]
fn shapes() {
    check(&[
        (
            "other shapes end a batch, even if others behind them would fit",
            "max=8 run=1",
            "0 a/sX b/sX c/sY d/sX end",
            "0 a+b:shape_change 1 c:shape_change 2 d:queue_empty",
        ),
        (
            "at once",
            "max=8 delay=50 run=1",
            "0 a/sX 3 b/sY end",
            "3 a:shape_change 53 b:queue_delay",
        ),
        (
            "unless the one that differs goes away",
            "max=8 delay=50 run=9",
            "0 z8 1 a/sX b/sY c/sX 2 x:b 9 end",
            "0 z:max_batch_size 2 b!cancelled 51 a+c:queue_delay",
        ),
    ]);
}

#[test]
fn cancellation() {
    check(&[
        (
            "a cancelled request leaves its batch",
            "max=8 delay=9 run=1",
            "0 a b c 5 x:b end",
            "5 b!cancelled 9 a+c:queue_delay",
        ),
        (
            "the delay is that of the oldest that is left",
            "max=8 delay=9 run=1",
            "0 a 4 b 5 x:a end",
            "5 a!cancelled 13 b:queue_delay",
        ),
        (
            "its place can be taken",
            "max=4 delay=9 run=1",
            "0 a b c 1 x:c 2 d e end",
            "1 c!cancelled 2 a+b+d+e:max_batch_size",
        ),
    ]);
}

#[test]
fn queue_policy() {
    check(&[
        (
            "a bound counts requests, not inferences",
            "max=8 size=2 run=9",
            "0 z8 1 a8 b8 c",
            "0 z:max_batch_size 1 c!full 2 wait",
        ),
        (
            "a time-out fires when it is due, with no instance free",
            "max=8 timeout=5 run=50",
            "0 z8 1 a 2 b end",
            "0 z:max_batch_size 6 a!timeout 7 b!timeout",
        ),
        (
            "a request's own counts where it is shorter and may",
            "max=8 timeout=5 override= run=50",
            "0 z8 1 a/t2 b/t9 c end",
            "0 z:max_batch_size 3 a!timeout 6 b!timeout 6 c!timeout",
        ),
        (
            "it does not where it may not",
            "max=8 timeout=5 run=50",
            "0 z8 1 a/t2 end",
            "0 z:max_batch_size 6 a!timeout",
        ),
        (
            "nor where the default is none, as on Triton",
            "max=8 override= run=50",
            "0 z8 1 a/t2 end",
            "0 z:max_batch_size 50 a:queue_empty",
        ),
        (
            "delayed ones are served behind the others",
            "max=2 timeout=5 action=delay run=20",
            "0 z2 1 a2 2 b2 10 c2 16 d2 end",
            "0 z:max_batch_size 20 d:max_batch_size 40 a:max_batch_size 60 b:max_batch_size 80 c:max_batch_size",
        ),
        (
            "what is delayed has no further time-out, and can join the others' batch",
            "max=8 timeout=5 action=delay run=20",
            "0 z8 1 a 19 b end",
            "0 z:max_batch_size 20 b+a:queue_empty",
        ),
        (
            "both count against the bound",
            "max=8 timeout=5 action=delay size=2 run=20",
            "0 z8 1 a 7 b c",
            "0 z:max_batch_size 7 c!full 2 wait",
        ),
    ]);
}

#[test]
fn priorities() {
    check(&[
        (
            "the first level first; none means the default, as does one that is not there",
            "max=1 levels=3 default=2 run=1",
            "0 z a/p3 b c/p1 d/p9 e/p2 end",
            "0 c:max_batch_size 1 z:max_batch_size 2 b:max_batch_size 3 d:max_batch_size
             4 e:max_batch_size 5 a:max_batch_size",
        ),
        (
            "levels are batched together, the higher first",
            "max=8 levels=2 default=2 run=9",
            "0 z8 1 a 2 b/p1 end",
            "0 z:max_batch_size 9 b+a:queue_empty",
        ),
        (
            "a newcomer of a higher level takes the place of what waits",
            "max=4 levels=2 default=2 delay=9 run=9",
            "0 a2 1 b3/p1 end",
            "1 b:max_batch_size 10 a:queue_delay",
        ),
        (
            "each level has its own policy",
            "max=8 levels=2 default=1 L1.timeout=3 L2.timeout=6 L2.action= L2.size=1 run=50",
            "0 z8 1 a/p1 b/p2 c/p2 end",
            "0 z:max_batch_size 1 c!full 4 a!timeout 50 b:queue_empty",
        ),
        (
            "the overstayed of a level come before the next level",
            "max=1 levels=2 default=1 timeout=2 action= run=9",
            "0 z 1 a/p1 b/p2 8 c/p2 end",
            "0 z:max_batch_size 9 a:max_batch_size 18 b:max_batch_size 27 c:max_batch_size",
        ),
    ]);
}

#[test]
fn compute_slots() {
    check(&[
        (
            "a batch asks for a slot once, and is formed when it is there",
            "max=8 slots= run=2",
            "0 a 1 b 2 * 5 c end",
            "0 want 2 a+b:queue_empty 5 want 1 wait",
        ),
        (
            "a slot that is not needed any more is given back",
            "max=8 slots= run=2",
            "0 a 1 x:a 2 *",
            "0 want 1 a!cancelled 2 return",
        ),
        (
            "nothing is asked for while nothing could run",
            "max=8 slots= delay=5 run=9",
            "0 a 6 * 7 b end",
            "5 want 6 a:queue_delay 15 want 1 wait",
        ),
    ]);
}

/// `l(b)` is 2 ms and 1 ms an inference, so `l(1)` is 3 ms and `l(8)` 10 ms.
#[test]
fn earliest_deadline_first() {
    let with = "max=8 slo=20 policy=edf table=2+1";
    check(&[
        (
            "at once, all that waits",
            with,
            "0 a end",
            "0 a:queue_empty",
        ),
        (
            "by deadline, not by arrival",
            "max=1 slo=20 policy=edf table=2+1",
            "0 z 1 a b/t9 c/t5 end",
            "0 z:max_batch_size 3 c:max_batch_size 6 b:max_batch_size 9 a:max_batch_size",
        ),
        (
            "a longer time-out of its own loosens nothing",
            "max=1 slo=6 policy=edf table=2+1",
            "0 z a b/t50 end",
            "0 z:max_batch_size 3 a:max_batch_size 3.000001 b!late",
        ),
        (
            "as many as the head's deadline allows",
            with,
            "0 z8 4 a/t12 b c d e f g end",
            "0 z:max_batch_size 10 a+b+c+d:deadline 16 e+f+g:queue_empty",
        ),
        (
            "what would be late even alone is answered when that is certain",
            with,
            "0 z8 1 a/t11 b/t12 end",
            "0 z:max_batch_size 9.000001 a!late 10 b:queue_empty",
        ),
        (
            "a head that costs the others more than it is worth is dropped",
            "max=8 slo=12 policy=edf table=2+1",
            "0 z8 2 a/t11 5 b c d e f g h end",
            "0 z:max_batch_size 10 a!late 10 b+c+d+e+f:deadline 14.000001 g!late 14.000001 h!late",
        ),
        (
            "but not for those of a lower level",
            "max=8 slo=12 policy=edf table=2+1 levels=2",
            "0 z8 2 a/t11/p1 5 b/p2 c/p2 d/p2 e/p2 f/p2 end",
            "0 z:max_batch_size 10 a:deadline 13 b+c:deadline 14.000001 d!late 14.000001 e!late 14.000001 f!late",
        ),
        (
            "or waits behind the others",
            "max=2 slo=12 policy=edf table=2+4 miss=",
            "0 z2 1 a b c2 19 d2 end",
            "0 z:max_batch_size 10 a+b:max_batch_size 20 d:max_batch_size 30 c:max_batch_size",
        ),
        (
            "within the margin it is tried, and at once",
            "max=8 slo=20 policy=edf table=2+1 margin=5",
            "0 z8 1 a/t14 b end",
            "0 z:max_batch_size 10 a+b:queue_empty",
        ),
    ]);
}

#[test]
fn objectives_that_executions_do_not_keep() {
    for (policy, first) in [
        ("edf", "0 a:queue_empty 11.000001 b!late"),
        ("auto", "0 a:queue_empty 11.000001 b!late"),
        ("deferred", "10 a+b:waited"),
    ] {
        check(&[(
            "a request that finds an instance free runs: what was learned can be unlearned",
            &format!("max=8 slo=10 policy={policy} run=50 blank="),
            "0 a 1 b 100 c 101 d end",
            &format!("{first} 100 c:queue_empty 101.000001 d!late"),
        )]);
    }
}

#[test]
fn deferral() {
    let with = "max=4 slo=20 policy=deferred table=2+1";
    check(&[
        (
            "as late as another one could still join",
            with,
            "0 a 5 b end",
            // l(3) is 5 ms.
            "15 a+b:waited",
        ),
        (
            "unless the batch is full",
            with,
            "0 a 5 b 6 c 7 d end",
            "7 a+b+c+d:max_batch_size",
        ),
        (
            "or none can join",
            "max=4 slo=20 policy=deferred table=2+1",
            "0 a/sX 5 b/sY end",
            "5 a:shape_change 21 b:waited",
        ),
        ("or it drains", with, "0 a 5 drain", "5 a:queue_empty"),
    ]);
}

#[test]
fn auto() {
    check(&[
        (
            "a lone request is never held back",
            "max=8 slo=100 policy=auto table=2+1 on=2",
            "0 a 50 b 100 c end",
            "0 a:queue_empty 50 b:queue_empty 100 c:queue_empty",
        ),
        (
            "what does not gain by batching runs one by one",
            "max=8 slo=100 policy=auto table=0+10",
            "0 a b c end",
            "0 a:cap 10 b:cap 20 c:queue_empty",
        ),
    ]);
}

#[test]
fn caps() {
    check(&[
        (
            "the cap grows with each full batch that keeps the objective",
            "max=8 slo=1000 policy=aimd table=2+1 blank=",
            "0 a b c d e f g h i end",
            "0 a:cap 3 b+c:cap 7 d+e+f:cap 12 g+h+i:queue_empty",
        ),
        (
            "and falls when it is broken; what is late is given up",
            "max=8 slo=5 policy=aimd table=2+2 blank=",
            "0 a b c d e f end",
            "0 a:cap 4 b+c:cap 5 d!late 5 e!late 5 f!late",
        ),
        (
            "quantile goes up to what keeps it",
            "max=8 slo=6.5 policy=quantile table=2+1 blank=",
            "0 a 10 b c 20 d e f 30 g h i j 40 k l m n o 50 p q r s t u end",
            "0 a:cap 10 b+c:cap 20 d+e+f:cap 30 g+h+i+j:cap 40 k+l+m+n:cap 46 o:queue_empty
             50 p+q+r+s:cap 56 t+u:queue_empty",
        ),
    ]);
}

/// What is seen of each policy from outside.
#[test]
fn snapshots() {
    let known = |sizes: &[(usize, &str)]| -> Vec<_> {
        sizes.iter().map(|(size, took)| (*size, ms(took))).collect()
    };
    let quiet = PolicySnapshot {
        policy: "none",
        objective: None,
        percentile: None,
        cap: 1,
        target: 1,
        arrivals_per_s: None,
        latencies: Vec::new(),
        last_batch: None,
        rejected: 0,
        delayed: 0,
        sequences: None,
    };
    assert_eq!(Paper::watch("one_by_one=", ""), quiet);
    for (settings, target) in [
        ("", 1),
        ("delay=5", 8),
        ("delay=5 pref=2,6", 6),
        ("pref=4", 1),
    ] {
        let triton = PolicySnapshot {
            policy: "triton",
            cap: 8,
            target,
            ..quiet.clone()
        };
        assert_eq!(Paper::watch(settings, ""), triton, "{settings}");
    }
    let timeouts = "levels=2 L1.timeout=5 L2.timeout=5 L2.action=delay max=4";
    let got = Paper::watch(timeouts, "0 a3 b/p1 c/p1 d/p2 6");
    assert_eq!((got.rejected, got.delayed), (1, 1));
    assert_eq!(got.last_batch, Some((4, BatchEnd::MaxBatchSize)));

    let slo = |policy| format!("max=6 slo=20 policy={policy} table=2+1");
    let profile = known(&[(1, "3"), (2, "4"), (4, "6"), (6, "8")]);
    for (policy, cap, target) in [
        ("aimd", 1, 1),
        ("quantile", 1, 1),
        ("edf", 6, 1),
        ("deferred", 6, 6),
    ] {
        let expected = PolicySnapshot {
            policy,
            objective: Some(ms("20")),
            percentile: Some(Percentile::default()),
            cap,
            target,
            latencies: profile.clone(),
            ..quiet.clone()
        };
        assert_eq!(Paper::watch(&slo(policy), ""), expected);
    }
    let got = Paper::watch(&slo("edf"), "0 z6 1 a/t3 b end");
    assert_eq!(
        (got.rejected, got.last_batch),
        (1, Some((1, BatchEnd::QueueEmpty)))
    );
    // Two full batches kept the objective.
    let got = Paper::watch(&slo("aimd"), "0 a b c 4");
    assert_eq!((got.cap, got.last_batch), (2, Some((2, BatchEnd::Cap))));
    let blank = Paper::watch("max=6 slo=20 policy=edf table=2+1 blank=", "");
    assert!(blank.latencies.is_empty());
}

/// `auto` shows the load that it sees, and what it makes of it.
#[test]
fn snapshots_of_auto() {
    let with = "max=8 slo=100 policy=auto table=2+1";
    let idle = Paper::watch(with, "");
    assert_eq!((idle.arrivals_per_s, idle.target), (Some(0.0), 1));
    // An inference every 2 ms, where `l(b)` is 2 + b ms: two are just too few for it and a tenth more, three suffice.
    let moments: Vec<String> = (0..500)
        .map(|i| format!("{} r{}x", 2 * i, letters(i)))
        .collect();
    let busy = Paper::watch(with, &moments.join(" "));
    let rate = busy.arrivals_per_s.expect("measured");
    assert!((495.0..530.0).contains(&rate), "{rate}");
    // Seven take 9 ms, hardly longer an inference than eight.
    assert_eq!((busy.target, busy.cap), (3, 7));
}

/// A largest batch that was slow when it was measured is found to be fast.
#[test]
fn auto_corrects_a_slow_profile() {
    let with = "max=8 slo=2000 policy=auto table=2+1 slow=40";
    assert_eq!(Paper::watch(with, "").cap, 1);
    // Eight take 10 ms: more come than can be served.
    let moments: Vec<String> = (0..3000).map(|i| format!("{i} r{}x", letters(i))).collect();
    let busy = Paper::watch(with, &moments.join(" "));
    assert_eq!(busy.cap, 8);
    assert_eq!(busy.latencies.last(), Some(&(8, ms("10"))));
}

/// Nor one that says that the objective has no room for a batch at all.
#[test]
fn auto_corrects_a_profile_that_rules_batches_out() {
    let with = "max=8 slo=30 policy=auto table=2+1 slow=400";
    let moments: Vec<String> = (0..3000).map(|i| format!("{i} r{}x", letters(i))).collect();
    let busy = Paper::watch(with, &moments.join(" "));
    assert_eq!(busy.latencies.last(), Some(&(8, ms("10"))));
    assert_eq!(busy.cap, 8);
}

/// A name without digits for each number.
fn letters(number: usize) -> String {
    let digits = number.to_string();
    digits
        .bytes()
        .map(|digit| char::from(digit - b'0' + b'a'))
        .collect()
}

#[test]
fn a_cap_below_the_maximum_holds_from_the_next_batch_on() {
    check(&[
        (
            "requests that wait already are in smaller batches, and in larger ones again",
            "max=8 on=1 run=5",
            "0 a 1 b c d e f cap:2 5 6 g h i j cap:8 end",
            "0 a:queue_empty 5 b+c:max_batch_size 10 d+e+f+g+h+i+j:queue_empty",
        ),
        (
            "a batch that waits for more leaves if it is full now",
            "max=8 delay=50",
            "0 a 1 b 2 cap:2",
            "2 a+b:max_batch_size",
        ),
        (
            "a larger request still runs, alone; no cap is above the maximum, and none is 0",
            "max=4 on=1 run=5",
            "0 cap:1 A3 1 b c cap:0 6 cap:100 d e f g h end",
            "0 A:max_batch_size 5 b:max_batch_size 10 c+d+e+f:max_batch_size 15 g+h:queue_empty",
        ),
    ]);
}

#[test]
fn a_batch_of_a_preferred_size_below_the_maximum_says_so() {
    check(&[
        (
            "the maximum is preferred too",
            "max=8 pref=4,8 delay=5",
            "0 A4",
            "0 A:preferred_batch_size",
        ),
        (
            "the maximum is its own reason",
            "max=8 pref=4,8 delay=5",
            "0 A8",
            "0 A:max_batch_size",
        ),
    ]);
}

#[test]
fn a_slot_for_an_instance_is_used_by_that_one() {
    let options = SchedulerOptions {
        slots: true,
        ..SchedulerOptions::one_by_one(8)
    };
    let mut scheduler: Scheduler<()> = Scheduler::new(options);
    let mut handle = |input| {
        let mut outputs = Outputs::new();
        scheduler.handle(Time::ZERO, input, &mut outputs);
        outputs
    };
    let request = |id| {
        Input::Enqueue(Request {
            id: RequestId(id),
            batch_size: 1,
            priority: 0,
            timeout: None,
            payload: (),
        })
    };
    for id in 0..3 {
        assert!(handle(Input::InstanceReady(InstanceId(id))).is_empty());
    }
    assert_eq!(handle(request(0)).as_slice(), [Output::WantSlot]);
    let outputs = handle(Input::SlotGrantedFor(InstanceId(2)));
    assert!(
        matches!(
            outputs.as_slice(),
            [Output::Dispatch {
                instance: InstanceId(2),
                ..
            }]
        ),
        "{outputs:?}"
    );
    // A slot for an instance that nothing needs comes back like any other.
    assert_eq!(
        handle(Input::SlotGrantedFor(InstanceId(1))).as_slice(),
        [Output::ReturnSlot]
    );
    // The next slot is for any instance again: the free one with the lowest number.
    assert_eq!(handle(request(1)).as_slice(), [Output::WantSlot]);
    let outputs = handle(Input::SlotGranted);
    assert!(
        matches!(
            outputs.as_slice(),
            [Output::Dispatch {
                instance: InstanceId(0),
                ..
            }]
        ),
        "{outputs:?}"
    );
}
