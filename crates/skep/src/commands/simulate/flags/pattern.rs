//! `--arrival`: when requests arrive, by a name with numbers or by a file.

use std::{path::Path, str::FromStr, time::Duration};

use anyhow::Context;
use skep_sim::{Arrivals, RecordedArrivals};

use super::{number, read};

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
pub(super) const AMPLITUDE: f64 = 0.5;

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

pub(super) fn periodic(amplitude: f64, period: Option<Duration>) -> Arrivals {
    Arrivals::Periodic { amplitude, period }
}
