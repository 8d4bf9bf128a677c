//! Tests of recorded arrivals.

use super::*;

fn moments(text: &str, count: usize) -> Vec<f64> {
    let recording = RecordedArrivals::parse(text).expect("valid");
    recording.moments_from(
        0,
        1.0,
        count,
        0,
        &mut RandomStream::new(1, RandomPurpose::Arrivals),
    )
}

/// Gaps over the first, which no scaling changes.
fn shape(text: &str, count: usize) -> Vec<f64> {
    let moments = moments(text, count);
    let gaps = moments.windows(2).map(|pair| pair[1] - pair[0]);
    let gaps: Vec<f64> = gaps.collect();
    gaps.iter()
        .map(|gap| (gap / gaps[0] * 1e3).round() / 1e3)
        .collect()
}

#[test]
fn each_format_is_read() {
    let llm = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-12-31 23:59:59.5,1,2\r\n\
               2024-01-01 00:00:00.5000000,1,2\r\n2024-01-01 00:00:03.5,9,9\r\n";
    assert_eq!(shape(llm, 3), [1.0, 3.0]);
    let leap = "TIMESTAMP\n2024-02-28 12:00:00\n2024-02-29 12:00:00\n2024-03-02 12:00:00\n";
    assert_eq!(shape(leap, 3), [1.0, 2.0]);
    let zoned = "id,\"Arrival_Time\"\na,2024-05-10 00:00:00.5+00:00\nb,2024-05-10 00:00:01Z\nc,2024-05-10T00:00:02\n";
    assert_eq!(shape(zoned, 3), [1.0, 2.0]);
    let milliseconds = "Timestamp,Model\n1715299200000,m\n1715299200001,m\n1715299200003,m\n";
    assert_eq!(shape(milliseconds, 3), [1.0, 2.0]);
    let functions = "app,func,end_timestamp,duration\na,f,10.0,9.0\na,g,13,10\nb,f,6,0.5\n";
    assert_eq!(shape(functions, 3), [1.0, 1.25]);
    assert_eq!(shape("0\n1\n3\n", 3), [1.0, 2.0]);
    // The second round begins a mean gap after the first.
    assert_eq!(shape("5\n6\n8\n", 6), [1.0, 2.0, 1.5, 1.0, 2.0]);
}

/// More requests at one moment than are wanted: the rate is kept all the same.
#[test]
fn a_rate_needs_two_moments() {
    let recording = |lines: &[(&str, usize)]| {
        let text: String = lines.iter().map(|(at, n)| at.repeat(*n)).collect();
        RecordedArrivals::parse(&text).expect("valid")
    };
    for (lines, starts) in [
        (&[("0\n", 1), ("5\n", 300), ("6\n", 1)][..], 0..302),
        (&[("0\n", 1), ("5\n", 300)], 0..301),
        (&[("5\n", 2), ("6\n", 1)], 0..3),
    ] {
        let recording = recording(lines);
        for start in starts {
            for count in [2, 3, 200] {
                let mut random = RandomStream::new(1, RandomPurpose::Arrivals);
                let moments = recording.moments_from(start, 1.0, count, 0, &mut random);
                assert!(moments.is_sorted());
                assert_eq!(moments.len(), count);
                let last = moments[count - 1];
                assert!(
                    (last - count as f64).abs() < 1e-9,
                    "{count} from {start}: {last}"
                );
            }
        }
    }
}

/// Wherever the recording is dense: what counts comes at the rate that was asked.
#[test]
fn the_rate_holds_after_the_warm_up() {
    let dense: String = (0..300)
        .map(|i| format!("{}\n", 100.0 + f64::from(i) * 1e-3))
        .collect();
    let sparse: String = (0..100).map(|i| format!("{i}\n")).collect();
    let minutes = "HashOwner,HashApp,HashFunction,Trigger,1,2\na,b,c,http,50,5000\n";
    for text in [
        &format!("{sparse}{dense}"),
        &format!("{}{}", "0\n".repeat(300), sparse),
        minutes,
    ] {
        let recording = RecordedArrivals::parse(text).expect("valid");
        let length = match &recording.0 {
            ArrivalPattern::Moments(recorded) => recorded.len(),
            ArrivalPattern::Counts(counts) => counts.len(),
        };
        for start in 0..length {
            for (count, warm_up) in [(100, 10), (20, 2), (3, 2), (10, 0)] {
                let mut random = RandomStream::new(1, RandomPurpose::Arrivals);
                let moments = recording.moments_from(start, 50.0, count, warm_up, &mut random);
                assert!(moments.is_sorted());
                let from = if warm_up == 0 {
                    0.0
                } else {
                    moments[warm_up - 1]
                };
                let rate = (count - warm_up) as f64 / (moments[count - 1] - from);
                assert!((rate - 50.0).abs() < 1e-6, "{count} from {start}: {rate}");
            }
        }
    }
}

#[test]
fn rates_hold_for_their_step() {
    let recording = RecordedArrivals::rates("rate\n0.4\n0.4\n0.4\n\n0\n3\n", 2.0).expect("valid");
    assert_eq!(
        recording,
        RecordedArrivals(ArrivalPattern::Counts(vec![1, 1, 0, 0, 6]))
    );
    for (text, words) in [
        (
            "1\n-1\n",
            "line 2: expected requests a second from 0, at most 1e9 in a step, got `-1`",
        ),
        ("1\nx\n", "line 2: expected requests a second"),
        ("0\n0.1\n", "two moments"),
    ] {
        let error = RecordedArrivals::rates(text, 1.0)
            .expect_err(text)
            .to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn each_seed_begins_elsewhere() {
    let recording = RecordedArrivals::parse("0\n1\n3\n7\n").expect("valid");
    let begin = |seed| {
        let moments = recording.moments(
            1.0,
            5,
            0,
            &mut RandomStream::new(seed, RandomPurpose::Arrivals),
        );
        assert_eq!(moments[0].to_bits(), 0f64.to_bits());
        // The last of five is a round, 28/3 seconds, after the first.
        (moments[1] / moments[4] * 28.0 / 3.0).round()
    };
    let mut gaps: Vec<f64> = (0..20).map(begin).collect();
    gaps.sort_by(f64::total_cmp);
    gaps.dedup();
    assert_eq!(gaps, [1.0, 2.0, 4.0]);
}

#[test]
fn counts_of_minutes_become_moments_in_them() {
    let text = "HashOwner,HashApp,HashFunction,Trigger,1,2,3\na,b,c,http,1000,0,500\na,b,d,queue,0,0,500\n";
    let moments = moments(text, 2000);
    assert!(moments.is_sorted());
    let last = moments[1999];
    assert!((last - 2000.0).abs() < 1e-9);
    let within = |from: f64, to: f64| {
        let range = from / 3.0 * last..to / 3.0 * last;
        moments.iter().filter(|at| range.contains(at)).count()
    };
    assert!((990..=1010).contains(&within(0.0, 1.0)));
    assert!(within(1.05, 1.95) == 0);
}

#[test]
fn invalid_recordings_are_refused() {
    let error = |text| {
        RecordedArrivals::parse(text)
            .expect_err("invalid")
            .to_string()
    };
    assert_eq!(
        error("1\nx\n"),
        format!("line 2: expected {MOMENT}, got `x`")
    );
    assert_eq!(
        error("5\n5.7\n5.6\n"),
        "line 3: `5.6` follows `5.7`, expected ascending moments in seconds, or a heading that names their column; a file of rates is read as rates:FILE:STEP_SECONDS"
    );
    assert!(RecordedArrivals::parse("time\n5.7\n5.6\n").is_ok());
    assert!(error("when,what\n1,a\n").starts_with("line 1: expected a number, or a date"));
    assert_eq!(
        error("TIMESTAMP\n2024-13-01 00:00:00\n"),
        format!("line 2: expected {MOMENT}, got `2024-13-01 00:00:00`")
    );
    assert!(error("app,func,end_timestamp,duration\na,b,1\n").contains("four columns"));
    let counts = "HashOwner,HashApp,HashFunction,Trigger,1\na,b,c,d,-1\n";
    assert!(error(counts).contains("a whole number a minute, got `a,b,c,d,-1`"));
    for text in ["", "1", "1\n1\n", "nan\n1", "1e300\n-1e300"] {
        assert!(RecordedArrivals::parse(text).is_err(), "{text:?}");
    }
}

#[test]
fn a_recording_is_stretched_over_a_span() {
    // Nothing in the first half, all in the second.
    let recording = RecordedArrivals::rates("0\n0\n3\n1\n", 1.0).expect("rates");
    let span = Duration::from_secs(400);
    let moments = recording.stretched(10.0, span, 1);
    assert_eq!(moments.len(), 4000);
    assert!(moments.is_sorted());
    let seconds = |at: &Time| at.since(Time::ZERO).as_secs_f64();
    assert!(moments.iter().all(|at| seconds(at) >= 200.0));
    let third = moments.iter().filter(|at| seconds(at) < 300.0).count();
    assert!((2900..=3100).contains(&third), "{third}");
    assert_eq!(moments, recording.stretched(10.0, span, 1));
}
