//! What the flags of a simulation say.

mod pattern;
mod table;
#[cfg(test)]
mod tests;

use std::{collections::HashSet, fmt, io, ops::RangeInclusive, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use skep_sim::{Contender, Jitter, UnknownContender};

pub(crate) use pattern::Pattern;
pub(crate) use table::TableFlag;

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

/// Refuses what is given twice in a list: it would be simulated and shown twice.
pub(crate) fn refuse_repeats(
    flag: &str,
    names: impl IntoIterator<Item = String>,
) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if let Some(twice) = seen.replace(name) {
            bail!("{flag}: {twice} is given twice");
        }
    }
    Ok(())
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
pub(crate) fn read(path: &str) -> anyhow::Result<String> {
    const MAX_MIB: u64 = 256;
    match skep_host::read_named_text(path.as_ref(), MAX_MIB << 20) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            bail!("`{path}` is larger than {MAX_MIB} MiB")
        }
        outcome => outcome.with_context(|| format!("cannot read `{path}`")),
    }
}
