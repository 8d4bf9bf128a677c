//! Scenarios of residency.
//!
//! A scenario is a text: a line an input, `SECONDS COMMAND MODEL ...`. The trace shows each line with what came of it,
//! and the bytes in use if they changed. Models and tensors are single letters; a size is `PRIVATE+TENSOR:BYTES,...`.

use std::{fmt::Write as _, time::Duration};

use expect_test::{Expect, expect};
use skep_types::Time;

use super::*;
use crate::keep_alive::KeepAlive;

fn key(name: &str) -> ModelKey {
    ModelKey(u32::from(name.as_bytes()[0] - b'a'))
}

fn letter(model: ModelKey) -> char {
    char::from(b'a' + model.0 as u8)
}

fn size(text: &str) -> ModelSize {
    let (private, tensors) = text.split_once('+').unwrap_or((text, ""));
    let tensor = |text: &str| {
        let (key, bytes) = text.split_once(':').expect("TENSOR:BYTES");
        let bytes = bytes.parse().expect("bytes");
        (TensorKey([key.as_bytes()[0]; 32]), bytes)
    };
    ModelSize {
        private_bytes: private.parse().expect("bytes"),
        tensors: tensors.split_terminator(',').map(tensor).collect(),
    }
}

/// The input of a line, without its time.
fn input(now: Time, words: &[&str]) -> Option<ResidencyInput> {
    let model = || key(words[1]);
    let word = |at: usize| words.get(at).copied().unwrap_or("");
    let number = |name: &str| {
        let mut found = words.iter().filter_map(|word| word.strip_prefix(name));
        found
            .next()
            .map_or(0, |text| text.parse().expect("a number"))
    };
    Some(match words[0] {
        "add" => {
            let terms = ModelTerms {
                size: size(words[2]),
                load_bytes: number("load="),
                load_time: Duration::from_secs(1),
                is_pinned: words.contains(&"pinned"),
            };
            ResidencyInput::Add(model(), terms)
        }
        "remove" => ResidencyInput::Remove(model()),
        "request" => ResidencyInput::Requested(model()),
        "leave" => ResidencyInput::Abandoned(model()),
        "use" => ResidencyInput::Used {
            model: model(),
            requests: 1,
            last: now,
            is_busy: word(2) == "busy",
        },
        "load" => ResidencyInput::Load {
            model: model(),
            evicts: word(2) == "evicting",
        },
        "unload" => ResidencyInput::Unload(model()),
        "loaded" => ResidencyInput::Loaded {
            model: model(),
            size: size(words[2]),
            load_bytes: number("load="),
            took: Duration::from_secs(1),
        },
        "measured" => ResidencyInput::Measured(model(), size(words[2])),
        "failed" => ResidencyInput::Failed(model()),
        "gone" => ResidencyInput::Unloaded(model()),
        "unclaimed" => ResidencyInput::Unclaimed {
            kept: number("kept="),
            beyond: number("beyond="),
        },
        "tick" => return None,
        other => panic!("unknown command {other}"),
    })
}

fn said(output: ResidencyOutput) -> String {
    match output {
        ResidencyOutput::Load(model) => format!("load {}", letter(model)),
        ResidencyOutput::Unload(model, DepartureReason::RoomFor(other)) => {
            format!("unload {} for {}", letter(model), letter(other))
        }
        ResidencyOutput::Unload(model, reason) => format!("unload {}: {reason:?}", letter(model)),
        ResidencyOutput::Reclaim(bytes) => format!("reclaim {bytes}"),
        ResidencyOutput::Refuse(model, LoadRefusal::BackOff { until }) => {
            let seconds = until.since(Time::ZERO).as_secs_f64();
            format!("refuse {} until {seconds}", letter(model))
        }
        ResidencyOutput::Refuse(model, refusal) => format!("refuse {}: {refusal:?}", letter(model)),
    }
}

fn play(options: ResidencyOptions, script: &str, expected: &Expect) {
    let mut residency = Residency::new(options);
    let mut trace = String::new();
    let (mut used, mut last) = (0, Time::ZERO);
    for line in script.trim().lines().map(str::trim) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = Time::ZERO + Duration::from_secs_f64(words[0].parse().expect("seconds"));
        last = now;
        let mut outputs = Vec::new();
        match input(now, &words[1..]) {
            Some(input) => residency.handle(now, input, &mut outputs),
            None => residency.handle_timeout(now, &mut outputs),
        }
        let _ = write!(trace, "{line}");
        for output in outputs {
            let _ = write!(trace, " -> {}", said(output));
        }
        let figures = residency.figures();
        if figures.used != used {
            used = figures.used;
            let _ = write!(trace, " [{used}]");
        }
        trace.push('\n');
        check(&residency);
    }
    let timeout = residency.next_timeout(last);
    if let Some(timeout) = timeout {
        let _ = writeln!(trace, "next: {}", timeout.since(Time::ZERO).as_secs_f64());
    }
    expected.assert_eq(&trace);
}

/// What always holds.
pub(super) fn check(residency: &Residency) {
    let figures = residency.figures();
    assert!(figures.held <= figures.unshared, "{figures:?}");
    assert!(figures.resident + figures.loading + figures.wanted <= figures.known);
}

const LRU: ResidencyOptions = ResidencyOptions {
    budget: 100,
    policy: EvictionPolicy::Lru,
    loads_at_once: 2,
    keep_alive: KeepAlive::Forever,
};

#[test]
fn only_as_much_leaves_as_is_needed_and_it_counts_until_it_is_gone() {
    play(
        LRU,
        "
        0 add a 40
        0 add b 40
        0 add c 30
        0 add d 30
        1 request a
        2 loaded a 40
        3 request b
        4 loaded b 40
        10 request c
        10.1 request c
        10.2 request d
        11 gone a
        12 loaded c 30
        13 loaded d 30
        ",
        &expect![[r#"
            0 add a 40
            0 add b 40
            0 add c 30
            0 add d 30
            1 request a -> load a [40]
            2 loaded a 40
            3 request b -> load b [80]
            4 loaded b 40
            10 request c -> unload a for c
            10.1 request c
            10.2 request d
            11 gone a -> load c -> load d [100]
            12 loaded c 30
            13 loaded d 30
        "#]],
    );
}

#[test]
fn what_the_next_model_shares_is_no_room() {
    play(
        LRU,
        "
        0 add a 10+x:50
        0 add b 30+y:10
        0 add c 20+x:50
        1 request a
        2 loaded a 10+x:50
        3 request b
        4 loaded b 30+y:10
        10 request c
        11 gone a
        12 gone b
        13 loaded c 20+x:50
        ",
        &expect![[r#"
            0 add a 10+x:50
            0 add b 30+y:10
            0 add c 20+x:50
            1 request a -> load a [60]
            2 loaded a 10+x:50
            3 request b -> load b [100]
            4 loaded b 30+y:10
            10 request c -> unload a for c -> unload b for c [50]
            11 gone a [40]
            12 gone b -> load c [70]
            13 loaded c 20+x:50
        "#]],
    );
}

#[test]
fn a_model_that_never_fits_is_refused_at_once() {
    play(
        LRU,
        "
        0 add a 101
        0 add b 60 load=50
        0 add c 50 pinned
        0 add d 51
        0 add e 30+x:20
        0 add f 10+x:20 pinned
        1 request a
        1 request b
        1 load c evicting
        2 loaded c 50
        3 request d
        4 unclaimed beyond=20
        5 load f evicting
        6 loaded f 10+x:20
        7 request e
        ",
        &expect![[r#"
            0 add a 101
            0 add b 60 load=50
            0 add c 50 pinned
            0 add d 51
            0 add e 30+x:20
            0 add f 10+x:20 pinned
            1 request a -> refuse a: TooLarge { needed: 101, budget: 100, pinned: 0, beyond: 0 }
            1 request b -> refuse b: TooLarge { needed: 110, budget: 100, pinned: 0, beyond: 0 }
            1 load c evicting -> load c [50]
            2 loaded c 50
            3 request d -> refuse d: TooLarge { needed: 51, budget: 100, pinned: 50, beyond: 0 }
            4 unclaimed beyond=20 [70]
            5 load f evicting -> load f [100]
            6 loaded f 10+x:20
            7 request e -> refuse e: TooLarge { needed: 30, budget: 100, pinned: 80, beyond: 0 }
        "#]],
    );
}

#[test]
fn a_load_waits_for_a_peak_beyond_the_models_and_is_refused_for_what_lasts() {
    play(
        LRU,
        "
        0 add a 40
        0 add b 60
        0 add c 20
        1 request a
        2 loaded a 40
        10 unclaimed beyond=45
        10 request b
        10 request c
        11 unclaimed beyond=0
        12 gone a
        13 loaded b 60
        14 loaded c 20
        20 unclaimed beyond=41
        21 unclaimed beyond=43
        22 gone b
        22 request b
        24.9 tick
        25 tick
        25 request a
        ",
        &expect![[r#"
            0 add a 40
            0 add b 60
            0 add c 20
            1 request a -> load a [40]
            2 loaded a 40
            10 unclaimed beyond=45 [85]
            10 request b
            10 request c
            11 unclaimed beyond=0 -> load b -> unload a for c [100]
            12 gone a -> load c [80]
            13 loaded b 60
            14 loaded c 20
            20 unclaimed beyond=41 [121]
            21 unclaimed beyond=43 -> unload b: OverBudget [123]
            22 gone b [63]
            22 request b
            24.9 tick
            25 tick -> refuse b: TooLarge { needed: 60, budget: 100, pinned: 0, beyond: 41 }
            25 request a -> unload c for a
            next: 26
        "#]],
    );
}

#[test]
fn a_failed_load_is_not_tried_again_at_once() {
    play(
        LRU,
        "
        0 add a 40
        1 request a
        2 request a
        3 failed a
        3.5 request a
        4 request a
        5 failed a
        5.5 request a
        6.5 load a evicting
        7 failed a
        7.5 request a
        8 add a 40
        8 request a
        9 loaded a 40
        ",
        &expect![[r#"
            0 add a 40
            1 request a -> load a [40]
            2 request a
            3 failed a [0]
            3.5 request a -> refuse a until 4
            4 request a -> load a [40]
            5 failed a [0]
            5.5 request a -> refuse a until 7
            6.5 load a evicting -> load a [40]
            7 failed a [0]
            7.5 request a -> refuse a until 8
            8 add a 40
            8 request a -> load a [40]
            9 loaded a 40
        "#]],
    );
}

#[test]
fn a_load_that_evicts_nothing_gets_what_is_free() {
    play(
        LRU,
        "
        0 add a 70
        0 add b 40
        0 add c 30
        1 load a
        2 loaded a 70
        3 load b
        4 load c
        ",
        &expect![[r#"
            0 add a 70
            0 add b 40
            0 add c 30
            1 load a -> load a [70]
            2 loaded a 70
            3 load b -> refuse b: NoRoom { needed: 40, free: 30 }
            4 load c -> load c [100]
        "#]],
    );
}

#[test]
fn who_waits_may_leave_and_a_load_that_nobody_waits_for_is_dropped() {
    play(
        LRU,
        "
        0 add a 60
        0 add b 60
        1 request a
        1.5 leave a
        2 loaded a 60
        2.1 request b
        2.2 request b
        2.3 leave b
        2.4 leave b
        4 tick
        5 request b
        6 gone a
        ",
        &expect![[r#"
            0 add a 60
            0 add b 60
            1 request a -> load a [60]
            1.5 leave a
            2 loaded a 60
            2.1 request b
            2.2 request b
            2.3 leave b
            2.4 leave b
            4 tick
            5 request b -> unload a for b
            6 gone a -> load b
        "#]],
    );
}

#[test]
fn explicit_unloads_and_removals_hold_whatever_the_state() {
    play(
        LRU,
        "
        0 add a 60
        0 add b 60
        0 add c 60
        1 request a
        2 unload a
        3 loaded a 60
        4 request a
        5 gone a
        6 request b
        7 unload b
        8 remove a
        9 loaded a 60
        10 request a
        11 gone a
        12 request c
        13 remove c
        14 failed c
        15 request c
        16 request b
        17 loaded b 60
        18 remove b
        19 gone b
        ",
        &expect![[r#"
            0 add a 60
            0 add b 60
            0 add c 60
            1 request a -> load a [60]
            2 unload a -> refuse a: Withdrawn
            3 loaded a 60 -> unload a: Explicit
            4 request a
            5 gone a -> load a
            6 request b
            7 unload b -> refuse b: Withdrawn
            8 remove a -> refuse a: Withdrawn
            9 loaded a 60 -> unload a: Explicit
            10 request a -> refuse a: Withdrawn
            11 gone a [0]
            12 request c -> load c [60]
            13 remove c -> refuse c: Withdrawn
            14 failed c [0]
            15 request c -> refuse c: Withdrawn
            16 request b -> load b [60]
            17 loaded b 60
            18 remove b -> unload b: Explicit
            19 gone b [0]
        "#]],
    );
}

#[test]
fn a_model_stays_as_long_as_its_own_pauses_last() {
    let options = ResidencyOptions {
        keep_alive: KeepAlive::IdleHistogram(Duration::from_secs(1000)),
        ..LRU
    };
    play(
        options,
        "
        0 add a 10
        1 request a
        2 loaded a 10
        30 use a
        60 use a
        90 use a
        120 use a
        150 use a
        170 tick
        200 tick
        ",
        &expect![[r#"
            0 add a 10
            1 request a -> load a [10]
            2 loaded a 10
            30 use a
            60 use a
            90 use a
            120 use a
            150 use a
            170 tick
            200 tick -> unload a: Idle
        "#]],
    );
}

#[test]
fn idle_models_leave_after_their_keep_alive() {
    let options = ResidencyOptions {
        keep_alive: KeepAlive::Fixed(Duration::from_secs(60)),
        ..LRU
    };
    play(
        options,
        "
        0 add a 10
        0 add b 20
        0 add c 30 pinned
        1 request a
        1 request b
        2 loaded a 10
        2 loaded b 20
        3 load c evicting
        4 loaded c 30
        50 use a
        55 use b busy
        61 tick
        110 tick
        111 gone a
        115 tick
        120 use b
        ",
        &expect![[r#"
            0 add a 10
            0 add b 20
            0 add c 30 pinned
            1 request a -> load a [10]
            1 request b -> load b [30]
            2 loaded a 10
            2 loaded b 20
            3 load c evicting -> load c [60]
            4 loaded c 30
            50 use a
            55 use b busy
            61 tick
            110 tick -> unload a: Idle
            111 gone a [50]
            115 tick
            120 use b
            next: 180
        "#]],
    );
}

#[test]
fn a_model_stays_for_as_long_as_its_load_took_and_busy_ones_leave_last() {
    play(
        LRU,
        "
        0 add a 50
        0 add b 50
        0 add c 50
        1 request a
        1 request b
        2 loaded a 50
        2.5 loaded b 50
        2.6 use a busy
        2.7 use b
        2.8 request c
        3.2 tick
        3.5 tick
        4 gone b
        5 loaded c 50
        6 use a busy
        ",
        &expect![[r#"
            0 add a 50
            0 add b 50
            0 add c 50
            1 request a -> load a [50]
            1 request b -> load b [100]
            2 loaded a 50
            2.5 loaded b 50
            2.6 use a busy
            2.7 use b
            2.8 request c
            3.2 tick -> unload a for c
            3.5 tick
            4 gone b -> load c
            5 loaded c 50
            6 use a busy
        "#]],
    );
}

#[test]
fn weights_that_no_model_uses_go_first() {
    play(
        LRU,
        "
        0 add a 50
        0 add b 60
        1 request a
        2 loaded a 50
        3 unclaimed kept=30
        4 request b
        5 unclaimed kept=0
        6 gone a
        ",
        &expect![[r#"
            0 add a 50
            0 add b 60
            1 request a -> load a [50]
            2 loaded a 50
            3 unclaimed kept=30 [80]
            4 request b -> reclaim 30 -> unload a for b
            5 unclaimed kept=0 [50]
            6 gone a -> load b [60]
        "#]],
    );
}

#[test]
fn models_leave_when_they_turn_out_to_be_larger_than_the_budget() {
    play(
        LRU,
        "
        0 add a 30
        0 add b 30
        0 add c 30
        1 request a
        2 loaded a 30
        3 request b
        4 loaded b 30
        5 request c
        10 loaded c 60
        11 gone a
        20 measured b 45
        30 unclaimed beyond=5
        ",
        &expect![[r#"
            0 add a 30
            0 add b 30
            0 add c 30
            1 request a -> load a [30]
            2 loaded a 30
            3 request b -> load b [60]
            4 loaded b 30
            5 request c -> load c [90]
            10 loaded c 60 -> unload a: OverBudget [120]
            11 gone a [90]
            20 measured b 45 -> unload b: OverBudget [105]
            30 unclaimed beyond=5 [110]
        "#]],
    );
}

#[test]
fn a_model_that_is_loaded_again_while_its_memory_is_freed_counts_twice() {
    play(
        LRU,
        "
        0 add a 40
        1 load a evicting
        2 loaded a 40
        3 remove a
        4 add a 40
        4 load a evicting
        5 loaded a 40
        6 unload a
        7 request a
        8 gone a
        9 loaded a 40
        10 gone a
        11 unload a
        12 gone a
        ",
        &expect![[r#"
            0 add a 40
            1 load a evicting -> load a [40]
            2 loaded a 40
            3 remove a -> unload a: Explicit
            4 add a 40
            4 load a evicting -> load a [80]
            5 loaded a 40
            6 unload a -> unload a: Explicit
            7 request a
            8 gone a -> load a
            9 loaded a 40
            10 gone a [40]
            11 unload a -> unload a: Explicit
            12 gone a [0]
        "#]],
    );
}

#[test]
fn no_more_load_at_once_than_may() {
    play(
        LRU,
        "
        0 add a 10 load=5
        0 add b 10 load=5
        0 add c 10 load=5
        1 request a
        1 request b
        1 request c
        2 loaded a 12 load=1
        3 loaded b 10
        4 loaded c 10
        ",
        &expect![[r#"
            0 add a 10 load=5
            0 add b 10 load=5
            0 add c 10 load=5
            1 request a -> load a [15]
            1 request b -> load b [30]
            1 request c
            2 loaded a 12 load=1 -> load c [42]
            3 loaded b 10 [37]
            4 loaded c 10 [32]
        "#]],
    );
}

/// Four models that differ in size, in how often they are used, and in when. `z` needs room.
fn leaves_first(policy: EvictionPolicy) -> char {
    let mut residency = Residency::new(ResidencyOptions {
        policy,
        budget: 100,
        ..LRU
    });
    let mut outputs = Vec::new();
    let at = |seconds: u64| Time::ZERO + Duration::from_secs(seconds);
    // Name, size, how often it is used: every so many seconds.
    let models = [
        ("a", 10, 100),
        ("b", 40, 20),
        ("c", 40, 170),
        ("d", 10, 1100),
    ];
    for (name, bytes, _) in models {
        let model = key(name);
        let terms = ModelTerms {
            size: ModelSize::private(bytes),
            ..ModelTerms::default()
        };
        residency.handle(at(0), ResidencyInput::Add(model, terms), &mut outputs);
        residency.handle(at(0), ResidencyInput::Requested(model), &mut outputs);
        let loaded = ResidencyInput::Loaded {
            model,
            size: ModelSize::private(bytes),
            load_bytes: 0,
            took: Duration::from_secs(1),
        };
        residency.handle(at(0), loaded, &mut outputs);
    }
    for second in 1..=6010 {
        for (name, _, every) in models {
            if second % every == 0 {
                let used = ResidencyInput::Used {
                    model: key(name),
                    requests: 1,
                    last: at(second),
                    is_busy: false,
                };
                residency.handle(at(second), used, &mut outputs);
            }
        }
    }
    outputs.clear();
    let terms = ModelTerms {
        size: ModelSize::private(5),
        ..ModelTerms::default()
    };
    residency.handle(at(6050), ResidencyInput::Add(key("z"), terms), &mut outputs);
    residency.handle(at(6050), ResidencyInput::Requested(key("z")), &mut outputs);
    match outputs[..] {
        [ResidencyOutput::Unload(model, _)] => letter(model),
        _ => panic!("{outputs:?}"),
    }
}

#[test]
fn each_policy_has_its_own_victim() {
    let victims: Vec<String> = EvictionPolicy::ALL
        .into_iter()
        .map(|policy| format!("{policy}: {}", leaves_first(policy)))
        .collect();
    expect![[r#"
        lru: d
        lfu: d
        gdsf: d
        idle-histogram: d
        value: d"#]]
    .assert_eq(&victims.join("\n"));
    for policy in EvictionPolicy::ALL {
        assert_eq!(policy.name().parse(), Ok(policy));
    }
    let error = "mru".parse::<EvictionPolicy>().expect_err("no such policy");
    let text =
        "unknown eviction policy `mru`, expected one of lru, lfu, gdsf, idle-histogram, value";
    assert_eq!(error.to_string(), text);
}
