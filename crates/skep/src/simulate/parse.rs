//! What the flags of a simulation say.

use std::{
    collections::HashSet, fmt, io, ops::RangeInclusive, path::Path, str::FromStr, time::Duration,
};

use anyhow::{Context, bail};
use skep_sim::{Arrivals, Contender, Jitter, LatencyTable, RecordedArrivals, UnknownContender};

use super::saved::Saved;

/// Where a latency table comes from. Shown as it was given.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    kind: TableKind,
}

#[derive(Debug, Clone)]
enum TableKind {
    Affine {
        base: f64,
        per_inference: f64,
    },
    File,
    /// These lines.
    Measured(String),
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = if let Some(numbers) = text.strip_prefix("affine:") {
            let numbers = numbers.split_once(',');
            let numbers = numbers.and_then(|(base, per)| Some((number(base)?, number(per)?)));
            let numbers = numbers.filter(|(base, per)| *base >= 0.0 && *per >= 0.0);
            let (base, per_inference) = numbers.ok_or(
                "expected affine:BASE,PER_INFERENCE with two numbers of milliseconds from 0, as in affine:1.87,0.087",
            )?;
            TableKind::Affine {
                base,
                per_inference,
            }
        } else if let Some(ms) = text.strip_prefix("flat:") {
            let ms = number(ms).filter(|ms| *ms > 0.0);
            let per_inference =
                ms.ok_or("expected flat:MS with milliseconds above 0 an inference, as in flat:10")?;
            TableKind::Affine {
                base: 0.0,
                per_inference,
            }
        } else {
            TableKind::File
        };
        let name = text.to_owned();
        Ok(Self { name, kind })
    }
}

impl Table {
    /// What was measured on a model.
    pub(crate) fn measured(name: String, lines: String) -> Self {
        Self {
            name,
            kind: TableKind::Measured(lines),
        }
    }

    /// The same with its file read, and what the file says beside the latencies.
    pub(super) fn read(&self) -> anyhow::Result<(Self, Saved)> {
        let TableKind::File = self.kind else {
            return Ok((self.clone(), Saved::default()));
        };
        let flag = || format!("--table {}", self.name);
        let text = read(&self.name).with_context(|| {
            let flag = flag();
            format!(
                "{flag}: expected affine:BASE,PER_INFERENCE, flat:MS, or a file of `batch,ms` lines"
            )
        })?;
        let saved = Saved::read(&text).with_context(flag)?;
        Ok((Self::measured(self.name.clone(), text), saved))
    }

    /// The table for batches of up to `max`.
    pub(crate) fn load(&self, max: usize) -> anyhow::Result<LatencyTable> {
        let flag = || format!("--table {}", self.name);
        let table = match &self.kind {
            TableKind::Affine {
                base,
                per_inference,
            } => LatencyTable::affine(*base, *per_inference, max),
            TableKind::Measured(lines) => LatencyTable::measured(lines, max),
            TableKind::File => return self.read()?.0.load(max),
        };
        table.with_context(flag)
    }
}

/// A latency objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Slo {
    /// Milliseconds.
    Ms(f64),
    /// So many times what a single request takes.
    Times(f64),
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, make): (_, fn(f64) -> Self) = match text.strip_suffix('x') {
            Some(times) => (times, Self::Times),
            None => (text, Self::Ms),
        };
        match number(digits).filter(|number| (1e-6..=1e9).contains(number)) {
            Some(number) => Ok(make(number)),
            None => Err("expected milliseconds above 0, as in 50, or a multiple of what a single request takes, as in 5x".to_owned()),
        }
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ms(ms) => write!(f, "{ms}"),
            Self::Times(times) => write!(f, "{times}x"),
        }
    }
}

impl Slo {
    pub(crate) fn resolve(self, single: Duration) -> Duration {
        match self {
            Self::Ms(ms) => Duration::from_secs_f64(ms / 1e3),
            Self::Times(times) => {
                Duration::try_from_secs_f64(single.as_secs_f64() * times).unwrap_or(Duration::MAX)
            }
        }
    }
}

/// A pattern of arrivals. Shown as it was given.
#[derive(Debug, Clone)]
pub(crate) struct Pattern {
    pub(crate) name: String,
    kind: PatternKind,
}

#[derive(Debug, Clone)]
enum PatternKind {
    Known(Arrivals),
    /// A file of recorded requests.
    Recorded,
    /// A file of rates, and how many seconds each holds.
    Rates {
        path: String,
        step: f64,
    },
}

const PATTERNS: &str = "poisson, constant, bursty:VARIATION, periodic:AMPLITUDE:PERIOD_MS, rates:FILE:STEP_SECONDS, or a file of recorded requests";

/// How far a periodic rate swings unless told otherwise.
const AMPLITUDE: f64 = 0.5;

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.to_owned();
        if let Some(rates) = text.strip_prefix("rates:") {
            let parts = rates.rsplit_once(':').filter(|(path, _)| !path.is_empty());
            let parts = parts.and_then(|(path, step)| Some((path, number(step)?)));
            let (path, step) = parts
                .filter(|(_, step)| (0.001..=1e6).contains(step))
                .ok_or("expected rates:FILE:STEP_SECONDS with a file of requests a second and how long each holds, from 0.001 to 1e6 s, as in rates:day.txt:60")?;
            let path = path.to_owned();
            let kind = PatternKind::Rates { path, step };
            return Ok(Self { name, kind });
        }
        let mut parts = text.split(':');
        let head = parts.next().unwrap_or_default();
        let numbers: Vec<Option<f64>> = parts.map(number).collect();
        let kind = match (head, numbers.as_slice()) {
            ("poisson", []) => Some(Arrivals::Poisson),
            ("constant", []) => Some(Arrivals::Constant),
            ("bursty", [Some(variation)]) if (0.01..=100.0).contains(variation) => {
                let variation = *variation;
                Some(Arrivals::Bursty { variation })
            }
            ("periodic", []) => Some(periodic(AMPLITUDE, None)),
            ("periodic", [Some(amplitude), rest @ ..]) if (0.0..=1.0).contains(amplitude) => {
                match rest {
                    [] => Some(periodic(*amplitude, None)),
                    [Some(ms)] if (0.001..=1e9).contains(ms) => {
                        Some(periodic(*amplitude, Some(Duration::from_secs_f64(ms / 1e3))))
                    }
                    _ => return Err("expected periodic:AMPLITUDE:PERIOD_MS with a period above 0, as in periodic:0.5:500".to_owned()),
                }
            }
            ("bursty", _) => {
                return Err("expected bursty:VARIATION, the gaps' standard deviation over their mean from 0.01 to 100, as in bursty:4".to_owned());
            }
            ("periodic", _) => {
                return Err(
                    "expected periodic:AMPLITUDE:PERIOD_MS with an amplitude from 0 to 1, as in periodic:0.5:500"
                        .to_owned(),
                );
            }
            ("poisson" | "constant", _) => {
                return Err(format!("`{head}` takes no number, expected {PATTERNS}"));
            }
            _ => None,
        };
        let kind = kind.map_or(PatternKind::Recorded, PatternKind::Known);
        Ok(Self { name, kind })
    }
}

impl Pattern {
    /// The pattern, read from its file where it is one.
    pub(crate) fn load(&self) -> anyhow::Result<Arrivals> {
        let name = &self.name;
        let flag = || format!("--arrival {name}");
        let recording = match &self.kind {
            PatternKind::Known(arrivals) => return Ok(arrivals.clone()),
            PatternKind::Rates { path, step } => {
                RecordedArrivals::rates(&read(path).with_context(flag)?, *step)
            }
            PatternKind::Recorded => {
                let unknown = || {
                    if Path::new(name).exists() {
                        format!("--arrival {name}: expected {PATTERNS}")
                    } else {
                        format!(
                            "--arrival {name}: this is neither a pattern nor a file, expected {PATTERNS}"
                        )
                    }
                };
                RecordedArrivals::parse(&read(name).with_context(unknown)?)
            }
        };
        Ok(Arrivals::Recorded(recording.with_context(flag)?))
    }
}

fn periodic(amplitude: f64, period: Option<Duration>) -> Arrivals {
    Arrivals::Periodic { amplitude, period }
}

/// A load: a share of the model's capacity.
pub(crate) fn load(text: &str) -> Result<f64, String> {
    let load = number(text).filter(|load| (0.0001..=100.0).contains(load));
    load.ok_or_else(|| {
        "expected a share of what all instances carry with batches of the best size, from 0.0001 to 100, as in 0.8"
            .to_owned()
    })
}

/// Requests a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate = number(text).filter(|rate| (0.001..=1e9).contains(rate));
    rate.ok_or_else(|| "expected requests a second from 0.001 to 1e9, as in 250".to_owned())
}

/// Seeds: one, or a range with both of its ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seeds(RangeInclusive<u64>);

/// As many traces as a point may have.
const MAX_SEEDS: u64 = 10_000;

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let whole = |text: &str| text.trim().parse::<u64>().ok();
        let ends = match text.split_once('-') {
            Some((first, last)) => whole(first).zip(whole(last)),
            None => whole(text).map(|seed| (seed, seed)),
        };
        let ends = ends.filter(|(first, last)| first <= last && last - first < MAX_SEEDS);
        ends.map(|(first, last)| Self(first..=last)).ok_or_else(|| {
            format!("expected a whole number from 0, or a range of at most {MAX_SEEDS} with both ends, as in 7 or 10-19")
        })
    }
}

/// The seeds of all traces, in the order in which they are given.
pub(crate) fn seeds(chosen: &[Seeds], count: u64) -> anyhow::Result<Vec<u64>> {
    if chosen.is_empty() {
        return Ok((0..count).collect());
    }
    let mut seeds: Vec<u64> = Vec::new();
    for Seeds(range) in chosen {
        seeds.extend(range.clone());
    }
    let mut seen = HashSet::new();
    if let Some(twice) = seeds.iter().find(|seed| !seen.insert(**seed)) {
        bail!("--seed: {twice} is given twice: its trace would count twice");
    }
    if seeds.len() as u64 > MAX_SEEDS {
        bail!(
            "--seed: {} seeds, expected at most {MAX_SEEDS}",
            seeds.len()
        );
    }
    Ok(seeds)
}

/// Policies in a list: a comma followed by `key=value` belongs to the setting before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policies(pub(crate) Vec<Contender>);

impl FromStr for Policies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut names: Vec<String> = Vec::new();
        for piece in text.split(',') {
            match names.last_mut() {
                Some(setting)
                    if setting.starts_with("triton:")
                        && piece.contains('=')
                        && !piece.contains(':') =>
                {
                    *setting += &format!(",{piece}");
                }
                _ => names.push(piece.trim().to_owned()),
            }
        }
        let known = |name: &String| {
            name.parse::<Contender>().map_err(|error| match error {
                UnknownContender::Triton(error) => error.to_string(),
                other => format!("{other}, expected one or some of {}", policy_names()),
            })
        };
        names.iter().map(known).collect::<Result<_, _>>().map(Self)
    }
}

/// All policies, for help and errors.
pub(crate) fn policy_names() -> String {
    let names: Vec<String> = Contender::ALL.iter().map(|c| c.name().to_owned()).collect();
    format!("{}, triton:KEY=VALUE,...", names.join(", "))
}

/// A share from 0 to below 1, or the deviation of a log-normal factor.
pub(crate) fn jitter(text: &str) -> Result<Jitter, String> {
    let jitter = match text.strip_prefix("lognormal:") {
        Some(text) => number(text)
            .filter(|deviation| (0.001..=1.0).contains(deviation))
            .map(Jitter::LogNormal),
        None => number(text).and_then(|share| match share {
            0.0 => Some(Jitter::None),
            _ => (0.0..1.0)
                .contains(&share)
                .then_some(Jitter::Uniform(share)),
        }),
    };
    jitter.ok_or_else(|| {
        "expected a share from 0 to below 1, as in 0.1, or lognormal:DEVIATION, the factor's logarithm's standard deviation from 0.001 to 1, as in lognormal:0.2".to_owned()
    })
}

/// A factor from 0.
pub(crate) fn stretch(text: &str) -> Result<f64, String> {
    let stretch = number(text).filter(|stretch| (0.0..=100.0).contains(stretch));
    stretch.ok_or_else(|| "expected a share from 0 to 100, as in 0.3".to_owned())
}

fn number(text: &str) -> Option<f64> {
    let number: f64 = text.trim().parse().ok()?;
    // Not -0, which would be shown.
    number.is_finite().then_some(number + 0.0)
}

/// A text file; bounded, since any path may be given, of a device too.
fn read(path: &str) -> anyhow::Result<String> {
    const MAX_MIB: u64 = 256;
    match skep_host::read_named_text(path.as_ref(), MAX_MIB << 20) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            bail!("`{path}` is larger than {MAX_MIB} MiB")
        }
        outcome => outcome.with_context(|| format!("cannot read `{path}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
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
        let flat: Table = "flat:10".parse().expect("valid");
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
    fn what_makes_no_sense_is_refused() {
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
            assert!(text.parse::<Table>().is_err(), "{text}");
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
        let missing: Table = "nosuchfile".parse().expect("a file's name");
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
        let zero: Table = "affine:0,0".parse().expect("numbers");
        assert!(
            format!("{:#}", zero.load(4).expect_err("no time")).contains("a batch of 1 takes 0 ms")
        );
    }
}
