//! What the flags of a simulation say.

use std::{fs, path::Path, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use skep_sim::{Arrivals, Jitter, LatencyTable, Recording};

/// Where a latency table comes from. Shown as it was given.
#[derive(Debug, Clone)]
pub(crate) struct Table {
    pub(crate) name: String,
    kind: TableKind,
}

#[derive(Debug, Clone)]
enum TableKind {
    Affine { base: f64, per_inference: f64 },
    File,
}

impl FromStr for Table {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = if let Some(numbers) = text.strip_prefix("affine:") {
            let numbers = numbers.split_once(',');
            let numbers = numbers.and_then(|(base, per)| Some((number(base)?, number(per)?)));
            let (base, per_inference) = numbers.ok_or(
                "expected affine:BASE,PER_INFERENCE with two numbers of milliseconds, as in affine:1.87,0.087",
            )?;
            TableKind::Affine {
                base,
                per_inference,
            }
        } else if let Some(ms) = text.strip_prefix("flat:") {
            let per_inference = number(ms)
                .ok_or("expected flat:MS with milliseconds an inference, as in flat:10")?;
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
    /// The table for batches of up to `max`.
    pub(crate) fn load(&self, max: usize) -> anyhow::Result<LatencyTable> {
        let flag = || format!("--table {}", self.name);
        let table = match self.kind {
            TableKind::Affine {
                base,
                per_inference,
            } => LatencyTable::affine(base, per_inference, max),
            TableKind::File => {
                let text = read(&self.name).with_context(|| {
                    let flag = flag();
                    format!("{flag}: expected affine:BASE,PER_INFERENCE, flat:MS, or a file of `batch,ms` lines")
                })?;
                LatencyTable::measured(&text, max)
            }
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
    kind: Option<Arrivals>,
}

/// How far a periodic rate swings unless told otherwise.
const AMPLITUDE: f64 = 0.5;

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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
            _ => None,
        };
        let name = text.to_owned();
        Ok(Self { name, kind })
    }
}

impl Pattern {
    /// The pattern, read from its file where it is one.
    pub(crate) fn load(&self) -> anyhow::Result<Arrivals> {
        if let Some(kind) = &self.kind {
            return Ok(kind.clone());
        }
        let name = &self.name;
        let text = read(name).with_context(|| {
            format!("--arrival {name}: expected poisson, constant, bursty:VARIATION, periodic:AMPLITUDE:PERIOD_MS, or a file of recorded requests")
        })?;
        let recording = Recording::parse(&text).with_context(|| format!("--arrival {name}"))?;
        Ok(Arrivals::Recorded(recording))
    }
}

fn periodic(amplitude: f64, period: Option<Duration>) -> Arrivals {
    Arrivals::Periodic { amplitude, period }
}

/// A load: a share of what full batches carry.
pub(crate) fn load(text: &str) -> Result<f64, String> {
    let load = number(text).filter(|load| (0.0001..=100.0).contains(load));
    load.ok_or_else(|| {
        "expected a share of what full batches on all instances carry, from 0.0001 to 100, as in 0.8"
            .to_owned()
    })
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
    number.is_finite().then_some(number)
}

/// A text file; bounded, since any path may be given.
fn read(path: &str) -> anyhow::Result<String> {
    const MAX_MIB: u64 = 256;
    let path = Path::new(path);
    let length = fs::metadata(path)
        .with_context(|| format!("cannot read `{}`", path.display()))?
        .len();
    if length > MAX_MIB << 20 {
        bail!(
            "`{}` has {length} bytes, expected at most {MAX_MIB} MiB",
            path.display()
        );
    }
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
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
        for text in ["affine:1", "affine:a,b", "flat:", "flat:x", "affine:inf,1"] {
            assert!(text.parse::<Table>().is_err(), "{text}");
        }
        for text in [
            "bursty",
            "bursty:0",
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
        let zero: Table = "flat:0".parse().expect("a number");
        assert!(
            format!("{:#}", zero.load(4).expect_err("no time")).contains("a batch of 1 takes 0 ms")
        );
    }
}
