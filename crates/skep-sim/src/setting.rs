//! Static settings of Triton's dynamic batcher: as a user writes them, and a grid of them.

use std::{fmt, str::FromStr, time::Duration};

use skep_scheduler::{Policy, SchedulerOptions, TritonPolicy};
use thiserror::Error;

use crate::{SimulatedModel, contender::options};

/// What a written setting begins with.
pub(crate) const TRITON: &str = "triton:";

/// A delay or a time-out beyond an hour is a mistake in the unit.
const MAX_MICROS: u64 = 3_600_000_000;

/// A static setting of Triton's dynamic batcher, as in `triton:preferred=4+8,delay=500`.
///
/// | key | field of `config.pbtxt` |
/// |---|---|
/// | `preferred` | `preferred_batch_size`, several joined by `+` |
/// | `delay` | `max_queue_delay_microseconds` |
/// | `max` | `max_batch_size`; the table's maximum without it |
/// | `timeout` | `default_timeout_microseconds` above 0, where the request is rejected; no time-out without it |
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StaticSetting {
    /// The text it was read from; empty for a setting of the grid.
    name: String,
    preferred: Vec<usize>,
    max_batch_size: Option<usize>,
    delay: Duration,
    timeout: Option<Duration>,
}

/// The text is not a static setting.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidSetting {
    /// A part without `=`, or with an unknown key.
    #[error(
        "`{0}` is not a setting of `triton:`, expected preferred=SIZE+SIZE, delay=MICROSECONDS, max=SIZE or timeout=MICROSECONDS"
    )]
    Key(String),
    /// A key's value is not a number, or is out of range.
    #[error("`{key}={value}`: expected {expected}")]
    Value {
        /// The key.
        key: &'static str,
        /// The given value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A repeated key.
    #[error("`{0}` is given twice")]
    Twice(&'static str),
    /// A batch size above the largest batch.
    #[error("`{name}`: a batch of {size} is above the largest, which is {max}")]
    TooLarge {
        /// The setting.
        name: String,
        /// The size.
        size: usize,
        /// The largest batch.
        max: usize,
    },
    /// Batches that no request fits.
    #[error("`{name}`: a request of {request} inferences does not fit batches of {size}")]
    TooSmall {
        /// The setting.
        name: String,
        /// Its largest batch.
        size: usize,
        /// The inferences of a request.
        request: usize,
    },
}

impl FromStr for StaticSetting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        const SIZE: &str = "batch sizes from 1 to 65536, as in preferred=4+8";
        const DIFFERENT: &str = "each batch size once, as in preferred=4+8";
        // Triton's 0 means no time-out; here it would read as the opposite.
        const TIMEOUT: &str = "whole microseconds from 1; leave `timeout` out for no time-out";
        const TIME: &str = "whole microseconds from 0 to 3600000000 (an hour), as in delay=500";
        let mut setting = Self {
            name: text.to_owned(),
            ..Self::default()
        };
        let mut seen: Vec<&'static str> = Vec::new();
        for part in text.strip_prefix(TRITON).unwrap_or(text).split(',') {
            let unknown = || InvalidSetting::Key(part.to_owned());
            let (key, value) = part.split_once('=').ok_or_else(unknown)?;
            let known = ["preferred", "delay", "max", "timeout"].into_iter();
            let key = known.into_iter().find(|known| *known == key.trim());
            let key = key.ok_or_else(unknown)?;
            if seen.contains(&key) {
                return Err(InvalidSetting::Twice(key));
            }
            seen.push(key);
            let expected = |expected| InvalidSetting::Value {
                key,
                value: value.to_owned(),
                expected,
            };
            let size = |text: &str| {
                let size = text.trim().parse().ok();
                size.filter(|size| (1..=65536).contains(size))
                    .ok_or_else(|| expected(SIZE))
            };
            let time = || {
                let micros = value.trim().parse().ok();
                let micros = micros.filter(|micros| *micros <= MAX_MICROS);
                micros
                    .map(Duration::from_micros)
                    .ok_or_else(|| expected(TIME))
            };
            match key {
                "preferred" => {
                    let sizes = value.split('+').map(size);
                    setting.preferred = sizes.collect::<Result<_, _>>()?;
                    setting.preferred.sort_unstable();
                    if setting.preferred.windows(2).any(|pair| pair[0] == pair[1]) {
                        return Err(expected(DIFFERENT));
                    }
                }
                "delay" => setting.delay = time()?,
                "max" => setting.max_batch_size = Some(size(value)?),
                _ => {
                    let timeout = Some(time()?).filter(|timeout| !timeout.is_zero());
                    setting.timeout = Some(timeout.ok_or_else(|| expected(TIMEOUT))?);
                }
            }
        }
        Ok(setting)
    }
}

impl StaticSetting {
    /// As it was written.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether a model can have it whose largest batch is `largest`, with requests of `request` inferences.
    ///
    /// # Errors
    ///
    /// Which of its sizes is too large or too small.
    pub fn fits(&self, largest: usize, request: usize) -> Result<(), InvalidSetting> {
        let own = self.max_batch_size.unwrap_or(largest);
        let name = || self.name.clone();
        let sizes = self.max_batch_size.iter().map(|&size| (size, largest));
        let preferred = self.preferred.iter().map(|&size| (size, own));
        if let Some((size, max)) = sizes.chain(preferred).find(|(size, max)| size > max) {
            let name = name();
            return Err(InvalidSetting::TooLarge { name, size, max });
        }
        if own < request {
            return Err(InvalidSetting::TooSmall {
                name: name(),
                size: own,
                request,
            });
        }
        Ok(())
    }

    /// The grid: powers of two, what lies halfway between them, and the maximum for batches; shares of the objective
    /// for delays. Triton's default is the last batch size without a delay.
    pub(crate) fn grid(model: &SimulatedModel, objective: Duration, timeouts: bool) -> Vec<Self> {
        let max = model.table.max();
        let powers = (0..usize::BITS).map(|power| 1usize << power);
        let mut sizes: Vec<usize> = powers
            .flat_map(|size| [size, size + size / 2])
            .take_while(|size| *size < max)
            .filter(|size| *size >= model.request_size)
            .collect();
        sizes.push(max);
        sizes.dedup();
        let shares: &[f64] = if timeouts {
            &[0.0, 0.1, 0.35]
        } else {
            &[0.0, 0.05, 0.1, 0.2, 0.35, 0.5]
        };
        let mut grid = Vec::new();
        for max_batch_size in sizes {
            // One alone has nothing to wait for.
            let alone = max_batch_size < 2 * model.request_size;
            let shares = if alone { &shares[..1] } else { shares };
            let mut waits = vec![None];
            if timeouts {
                let left = |size| objective.checked_sub(model.table.latency(size));
                waits.extend([left(max_batch_size), left(model.request_size)]);
                waits.retain(|wait| wait.is_none_or(|wait| !wait.is_zero()));
                waits.dedup();
            }
            for share in shares {
                grid.extend(waits.iter().map(|&timeout| Self {
                    max_batch_size: Some(max_batch_size),
                    delay: objective.mul_f64(*share),
                    timeout,
                    ..Self::default()
                }));
            }
        }
        grid
    }

    /// Whether it is Triton's default.
    pub(crate) fn is_default(&self, model: &SimulatedModel) -> bool {
        let batches = self.max(model) == model.table.max() && self.delay.is_zero();
        batches && self.timeout.is_none() && self.preferred.is_empty()
    }

    fn max(&self, model: &SimulatedModel) -> usize {
        self.max_batch_size.unwrap_or(model.table.max())
    }

    pub(crate) fn scheduler(&self, model: &SimulatedModel) -> SchedulerOptions {
        let triton = TritonPolicy {
            preferred_batch_sizes: self.preferred.clone(),
            max_queue_delay: self.delay,
        };
        let mut options = options(Policy::Triton(triton), self.max(model));
        options.levels[0].timeout = self.timeout;
        options
    }
}

impl fmt::Display for StaticSetting {
    /// By the names of Triton's configuration, as far as a grid goes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let delay = self.delay.as_micros();
        if let Some(max) = self.max_batch_size {
            write!(f, "max_batch_size {max}, ")?;
        }
        write!(f, "max_queue_delay {delay} us")?;
        match self.timeout {
            Some(timeout) => write!(f, ", timeout {} us", timeout.as_micros()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LatencyTable;

    #[test]
    fn settings_are_read_as_triton_has_them() {
        let table = LatencyTable::affine(1.0, 0.1, 16).expect("valid");
        let model = SimulatedModel::new(table, 1);
        let text = "triton:preferred=8+4,delay=500,max=12,timeout=2000";
        let setting: StaticSetting = text.parse().expect("valid");
        assert_eq!(setting.name(), text);
        let options = setting.scheduler(&model);
        let triton = TritonPolicy {
            preferred_batch_sizes: vec![4, 8],
            max_queue_delay: Duration::from_micros(500),
        };
        assert_eq!(options.policy, Policy::Triton(triton));
        assert_eq!(options.max_batch_size, 12);
        assert_eq!(options.levels[0].timeout, Some(Duration::from_millis(2)));
        let setting: StaticSetting = "triton:delay=0".parse().expect("valid");
        let options = setting.scheduler(&model);
        assert_eq!(options.max_batch_size, 16);
        assert_eq!(options.levels[0].timeout, None);
    }

    #[test]
    fn settings_that_make_no_sense_are_named() {
        for (text, words) in [
            (
                "triton:",
                "`` is not a setting of `triton:`, expected preferred=SIZE+SIZE",
            ),
            ("triton:8", "`8` is not a setting"),
            ("triton:priority=1", "`priority=1` is not a setting"),
            (
                "triton:preferred=0",
                "`preferred=0`: expected batch sizes from 1",
            ),
            (
                "triton:preferred=4+x",
                "`preferred=4+x`: expected batch sizes",
            ),
            ("triton:max=-4", "`max=-4`: expected batch sizes"),
            (
                "triton:delay=0.5ms",
                "`delay=0.5ms`: expected whole microseconds",
            ),
            ("triton:delay=-1", "`delay=-1`: expected whole microseconds"),
            (
                "triton:timeout=3600000001",
                "expected whole microseconds from 0",
            ),
            ("triton:delay=1,delay=2", "`delay` is given twice"),
            (
                "triton:timeout=0",
                "`timeout=0`: expected whole microseconds from 1; leave `timeout` out",
            ),
            (
                "triton:preferred=4+8+4",
                "`preferred=4+8+4`: expected each batch size once",
            ),
        ] {
            let error = text.parse::<StaticSetting>().expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
        let fits = |text: &str| text.parse::<StaticSetting>().expect("valid").fits(16, 4);
        assert_eq!(fits("triton:preferred=4+16"), Ok(()));
        for (text, words) in [
            (
                "triton:preferred=17",
                "a batch of 17 is above the largest, which is 16",
            ),
            (
                "triton:max=32",
                "a batch of 32 is above the largest, which is 16",
            ),
            (
                "triton:max=2",
                "a request of 4 inferences does not fit batches of 2",
            ),
            (
                "triton:max=8,preferred=12",
                "a batch of 12 is above the largest, which is 8",
            ),
        ] {
            let error = fits(text).expect_err(text).to_string();
            assert!(error.ends_with(words), "{text}: {error}");
        }
    }

    #[test]
    fn the_grid_holds_the_default_and_fits_requests() {
        let table = LatencyTable::affine(1.0, 0.1, 24).expect("valid");
        let mut model = SimulatedModel::new(table, 1);
        model.request_size = 4;
        let model = &model;
        let objective = Duration::from_millis(2);
        for timeouts in [false, true] {
            let grid = StaticSetting::grid(model, objective, timeouts);
            let mut sizes: Vec<usize> = grid.iter().map(|s| s.max(model)).collect();
            sizes.dedup();
            assert_eq!(sizes, [4, 6, 8, 12, 16, 24]);
            let defaults = grid.iter().filter(|setting| setting.is_default(model));
            assert_eq!(defaults.count(), 1);
            // A batch of 24 takes longer than the objective, so that only one time-out makes sense with it.
            let waits = |size| {
                let of_size = grid.iter().filter(move |s| s.max(model) == size);
                let mut waits: Vec<_> = of_size.filter_map(|s| s.timeout).collect();
                waits.sort();
                waits.dedup();
                waits
            };
            let micros = |micros: &[u64]| -> Vec<Duration> {
                let waits = micros.iter().map(|&micros| Duration::from_micros(micros));
                waits.filter(|_| timeouts).collect()
            };
            assert_eq!(waits(24), micros(&[600]));
            assert_eq!(waits(8), micros(&[200, 600]));
        }
    }
}
