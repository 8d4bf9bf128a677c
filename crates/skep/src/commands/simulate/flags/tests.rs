//! What flags mean, and what is refused.

use std::time::Duration;

use skep_sim::Arrivals;

use super::{
    pattern::{AMPLITUDE, periodic},
    *,
};

#[test]
fn valid_flags_are_read() {
    assert_eq!("20x".parse(), Ok(Slo::Times(20.0)));
    assert_eq!("12.5".parse(), Ok(Slo::Ms(12.5)));
    for (text, expected) in [
        ("poisson", Arrivals::Poisson),
        ("constant", Arrivals::Constant),
        ("bursty:4", Arrivals::Bursty { variation: 4.0 }),
        ("periodic", periodic(AMPLITUDE, None)),
        ("periodic:1", periodic(1.0, None)),
        (
            "periodic:0.2:50",
            periodic(0.2, Some(Duration::from_millis(50))),
        ),
    ] {
        let pattern: Pattern = text.parse().expect("valid");
        assert_eq!(pattern.load().expect("no file"), expected, "{text}");
    }
    let policies = |text: &str| {
        let Policies(policies) = text.parse().expect("valid");
        let names = policies.iter().map(|policy| policy.name().to_owned());
        names.collect::<Vec<String>>()
    };
    assert_eq!(
        policies("none, triton:preferred=4+8,delay=500,triton:delay=0,auto"),
        [
            "none",
            "triton:preferred=4+8,delay=500",
            "triton:delay=0",
            "auto"
        ]
    );
    let chosen = |text: &[&str]| {
        let chosen: Vec<Seeds> = text.iter().map(|t| t.parse().expect("valid")).collect();
        seeds(&chosen, 2)
    };
    assert_eq!(chosen(&[]).expect("a count"), [0, 1]);
    assert_eq!(chosen(&["7", "2-4"]).expect("a list"), [7, 2, 3, 4]);
    assert!(chosen(&["3", "2-4"]).is_err());
    assert_eq!(rate("250"), Ok(250.0));
    let flat: TableFlag = "flat:10".parse().expect("valid");
    let flat = flat.load(4).expect("valid");
    assert_eq!(flat.latency(4), Duration::from_millis(40));
    for (text, expected) in [
        ("0", Jitter::None),
        ("0.1", Jitter::Uniform(0.1)),
        ("lognormal:0.2", Jitter::LogNormal(0.2)),
    ] {
        assert_eq!(jitter(text), Ok(expected));
    }
}

#[test]
fn invalid_flags_are_refused() {
    for text in [
        "affine:1",
        "affine:a,b",
        "flat:",
        "flat:x",
        "flat:0",
        "flat:-1",
        "affine:inf,1",
        "affine:-1,2",
        "affine:2,-0.01",
    ] {
        assert!(text.parse::<TableFlag>().is_err(), "{text}");
    }
    for text in [
        "bursty",
        "bursty:0",
        "bursty:-4",
        "periodic:-0.5",
        "periodic:0.5:-1",
        "bursty:4:4",
        "periodic:2",
        "periodic:0.5:0",
    ] {
        assert!(text.parse::<Pattern>().is_err(), "{text}");
    }
    for text in ["", "x", "-1", "0", "0x", "1e99x", "nan"] {
        assert!(text.parse::<Slo>().is_err(), "{text}");
    }
    for text in ["0", "-1", "nan", "1e3"] {
        assert!(load(text).is_err(), "{text}");
    }
    for text in [
        "1",
        "-0.1",
        "nan",
        "lognormal",
        "lognormal:0",
        "lognormal:9",
    ] {
        assert!(jitter(text).is_err(), "{text}");
    }
    let missing: TableFlag = "nosuchfile".parse().expect("a file's name");
    let error = format!("{:#}", missing.load(4).expect_err("missing"));
    assert!(
        error.starts_with("--table nosuchfile: expected affine:"),
        "{error}"
    );
    for text in ["0", "-1", "nan", "inf", "1e10", "x"] {
        assert!(rate(text).is_err(), "{text}");
    }
    for text in ["-1", "", "3-1", "0-10000", "1.5", "0-", "1..3"] {
        assert!(text.parse::<Seeds>().is_err(), "{text}");
    }
    for (text, words) in [
        (
            "fifo",
            "no policy is called `fifo`, expected one or some of none, ",
        ),
        ("auto,delay=5", "no policy is called `delay=5`"),
        ("triton:delay=-5", "`delay=-5`: expected whole microseconds"),
        (
            "triton:delay=5,auto,delay=6",
            "no policy is called `delay=6`",
        ),
    ] {
        let error = text.parse::<Policies>().expect_err(text);
        assert!(error.contains(words), "{text}: {error}");
    }
    let zero: TableFlag = "affine:0,0".parse().expect("numbers");
    assert!(
        format!("{:#}", zero.load(4).expect_err("no time")).contains("a batch of 1 takes 0 ms")
    );
}
