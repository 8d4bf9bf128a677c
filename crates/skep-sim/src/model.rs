//! The simulated model: how long its executions take, on how many instances.

use std::time::Duration;

use thiserror::Error;

use crate::RandomStream;

/// How long an execution takes, by batch size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LatencyTable {
    /// Nanoseconds of batches of 1, 2, ...
    nanos: Vec<u64>,
    /// The largest batch that was measured; none of a formula.
    largest: Option<usize>,
}

/// Why a latency table is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidTable {
    /// Some batch would take no time, or more than the clock can represent.
    #[error("a batch of {batch} takes {ms} ms, expected more than 0 and at most 1e9")]
    Latency {
        /// Its size.
        batch: usize,
        /// The given latency in milliseconds.
        ms: String,
    },
    /// A line of a measured table cannot be read.
    #[error("line {line}: expected a batch size and milliseconds as in `8,2.5`, got `{text}`")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// Its text.
        text: String,
    },
    /// The table does not begin with a batch of 1.
    #[error("the table begins with a batch of {0}, expected 1")]
    First(usize),
    /// The table has no lines.
    #[error("the table is empty, expected lines of a batch size and milliseconds as in `8,2.5`")]
    Empty,
    /// Sizes that do not ascend.
    #[error("line {line}: batch {batch} follows {before}, expected ascending sizes")]
    Order {
        /// The line's number, from 1.
        line: usize,
        /// Its batch size.
        batch: usize,
        /// The size before.
        before: usize,
    },
}

impl LatencyTable {
    /// `base + per_inference * b`, both in milliseconds, for batches of up to `max`.
    ///
    /// # Errors
    ///
    /// If some batch would take no time.
    pub fn affine(base_ms: f64, per_inference_ms: f64, max: usize) -> Result<Self, InvalidTable> {
        Self::of(max, |batch| base_ms + per_inference_ms * batch as f64)
    }

    /// Measured points, `batch,ms` a line, interpolated in between and continued beyond by the slope of the last two
    /// (level where there is one alone). Blank lines, lines that begin with `#`, and a heading are left out.
    ///
    /// # Errors
    ///
    /// If a line has another form, or the points do not ascend from 1.
    pub fn measured(text: &str, max: usize) -> Result<Self, InvalidTable> {
        let mut points: Vec<(usize, f64)> = Vec::new();
        for (index, text) in text.lines().enumerate() {
            let text = text.trim();
            let heading = points.is_empty() && text.starts_with(|c: char| c.is_ascii_alphabetic());
            if text.is_empty() || text.starts_with('#') || heading {
                continue;
            }
            let line = index + 1;
            let Some((batch, ms)) = text.split_once(',').and_then(|(batch, ms)| {
                Some((batch.trim().parse().ok()?, ms.trim().parse().ok()?))
            }) else {
                let text = text.chars().take(80).collect();
                return Err(InvalidTable::Line { line, text });
            };
            match points.last() {
                None if batch != 1 => return Err(InvalidTable::First(batch)),
                Some(&(before, _)) if batch <= before => {
                    return Err(InvalidTable::Order {
                        line,
                        batch,
                        before,
                    });
                }
                _ => {}
            }
            // Where it would not be interpolated, too.
            nanos(batch, ms)?;
            points.push((batch, ms));
        }
        let Some(&first) = points.first() else {
            return Err(InvalidTable::Empty);
        };
        let largest = points.last().map(|(batch, _)| *batch);
        let table = Self::of(max, |batch| {
            let above = points.partition_point(|(size, _)| *size < batch);
            let above = above.clamp(1, points.len().max(2) - 1);
            let (x0, y0) = points[above - 1];
            let (x1, y1) = points.get(above).copied().unwrap_or((x0 + 1, first.1));
            y0 + (y1 - y0) * (batch as f64 - x0 as f64) / (x1 - x0) as f64
        })?;
        Ok(Self { largest, ..table })
    }

    fn of(max: usize, ms: impl Fn(usize) -> f64) -> Result<Self, InvalidTable> {
        let nanos = (1..=max.max(1)).map(|batch| nanos(batch, ms(batch)));
        Ok(Self {
            nanos: nanos.collect::<Result<_, _>>()?,
            largest: None,
        })
    }

    /// The largest batch of a measured table; larger ones are extrapolated. None for a formula.
    #[must_use]
    pub fn largest_measured(&self) -> Option<usize> {
        self.largest
    }

    /// The largest batch.
    #[must_use]
    pub fn max(&self) -> usize {
        self.nanos.len()
    }

    /// What a batch of 1 to [`LatencyTable::max`] takes.
    ///
    /// # Panics
    ///
    /// For any other size.
    #[must_use]
    pub fn latency(&self, batch: usize) -> Duration {
        Duration::from_nanos(self.nanos[batch - 1])
    }
}

/// A positive number of milliseconds as nanoseconds.
fn nanos(batch: usize, ms: f64) -> Result<u64, InvalidTable> {
    // Twelve days are more than any execution, and far from where sums overflow.
    if !(ms * 1e6 >= 1.0 && ms <= 1e9) {
        let ms = ms.to_string();
        return Err(InvalidTable::Latency { batch, ms });
    }
    Ok(Duration::from_secs_f64(ms / 1e3)
        .as_nanos()
        .try_into()
        .unwrap_or(u64::MAX))
}

/// By how much executions vary: each takes the table's time times a random factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Jitter {
    /// Not at all.
    None,
    /// Uniform within one less and one more this share, which is above 0 and below 1.
    Uniform(f64),
    /// Log-normal of median 1, where this is the standard deviation of the factor's logarithm, above 0: as computers
    /// have it, seldom much faster and now and then much slower. Cut at three standard deviations.
    LogNormal(f64),
}

/// Where a log-normal factor is cut: without a cut no bound would exist.
const CUT: f64 = 3.0;

impl Jitter {
    /// The next execution's factor.
    pub(crate) fn factor(self, random: &mut RandomStream) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Uniform(share) => 1.0 + share * (2.0 * random.uniform() - 1.0),
            Self::LogNormal(deviation) => (deviation * random.normal().clamp(-CUT, CUT)).exp(),
        }
    }

    /// The least possible factor.
    pub(crate) fn least(self) -> f64 {
        match self {
            Self::None => 1.0,
            Self::Uniform(share) => 1.0 - share,
            Self::LogNormal(deviation) => (-CUT * deviation).exp(),
        }
    }
}

/// A model, and what runs it.
#[derive(Debug, Clone, PartialEq)]
pub struct SimulatedModel {
    /// What executions take.
    pub table: LatencyTable,
    /// How many can run at once, at least 1.
    pub instances: u32,
    /// The inferences of each request, from 1 to the table's maximum.
    pub request_size: usize,
    /// By how much executions vary.
    pub jitter: Jitter,
    /// How much instances slow each other down: an execution that begins while `k` others run takes `1 + stretch * k`
    /// times as long. At least 0.
    pub stretch: f64,
}

impl SimulatedModel {
    /// A model that executes requests of one inference on `instances` instances, without jitter or stretch.
    #[must_use]
    pub fn new(table: LatencyTable, instances: u32) -> Self {
        Self {
            table,
            instances,
            request_size: 1,
            jitter: Jitter::None,
            stretch: 0.0,
        }
    }

    /// The requests that fit a batch.
    #[must_use]
    pub fn requests_per_batch(&self) -> usize {
        (self.table.max() / self.request_size).max(1)
    }

    /// The most load that all instances carry.
    ///
    /// Latency may grow faster than the batch, as convolutions' on a CPU: full batches are not always the best.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        let full = self.requests_per_batch();
        let mut best = self.carried(full);
        for requests in (1..full).rev() {
            let carried = self.carried(requests);
            // Of sizes that differ by the rounding of nanoseconds alone, the largest.
            if carried.rate > best.rate * (1.0 + 1e-6) {
                best = carried;
            }
        }
        best
    }

    /// What all instances carry in batches of this many requests.
    fn carried(&self, requests: usize) -> Capacity {
        let batch = requests * self.request_size;
        let seconds = self.table.latency(batch).as_secs_f64();
        let overlap = 1.0 + self.stretch * f64::from(self.instances - 1);
        Capacity {
            rate: f64::from(self.instances) * requests as f64 / (seconds * overlap),
            batch,
            is_full: requests == self.requests_per_batch(),
        }
    }
}

/// The most load that a model carries, and with which batches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Capacity {
    /// Requests a second of all instances.
    pub rate: f64,
    /// The inferences of the batches that carry them.
    pub batch: usize,
    /// Whether no more requests fit a batch.
    pub is_full: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(table: &LatencyTable) -> Vec<f64> {
        (1..=table.max())
            .map(|b| table.latency(b).as_secs_f64() * 1e3)
            .collect()
    }

    #[test]
    fn tables_are_interpolated_and_continued() {
        let affine = LatencyTable::affine(1.0, 0.5, 3).expect("valid");
        assert_eq!(ms(&affine), [1.5, 2.0, 2.5]);
        let text = "batch,ms\n# idle machine\n1,2\n3, 4\n5,10\n";
        let measured = LatencyTable::measured(text, 7).expect("valid");
        assert_eq!(ms(&measured), [2.0, 3.0, 4.0, 7.0, 10.0, 13.0, 16.0]);
        let level = LatencyTable::measured("1,2", 3).expect("valid");
        assert_eq!(ms(&level), [2.0, 2.0, 2.0]);
        let one = LatencyTable::measured("1,2\n4,8", 1).expect("valid");
        assert_eq!(ms(&one), [2.0]);
    }

    #[test]
    fn invalid_tables_say_what_is_wrong() {
        let error = |text| {
            LatencyTable::measured(text, 8)
                .expect_err("invalid")
                .to_string()
        };
        assert_eq!(
            error("1,2\nx"),
            "line 2: expected a batch size and milliseconds as in `8,2.5`, got `x`"
        );
        assert_eq!(
            error("2,2"),
            "the table begins with a batch of 2, expected 1"
        );
        assert_eq!(
            error("1,2\n4,5\n4,6"),
            "line 3: batch 4 follows 4, expected ascending sizes"
        );
        assert_eq!(
            error("1,0"),
            "a batch of 1 takes 0 ms, expected more than 0 and at most 1e9"
        );
        assert!(error("\n").starts_with("the table is empty"));
        // Falls below zero beyond the last point.
        assert!(error("1,2\n2,1").contains("a batch of 3 takes 0 ms"));
        assert!(LatencyTable::affine(f64::NAN, 1.0, 2).is_err());
    }

    #[test]
    fn capacity_is_that_of_the_best_batches_on_all_instances() {
        let best = |model: &SimulatedModel| {
            let Capacity {
                rate,
                batch,
                is_full,
            } = model.capacity();
            (rate.round(), batch, is_full)
        };
        let table = LatencyTable::affine(1.0, 1.0, 9).expect("valid");
        let mut model = SimulatedModel::new(table, 2);
        assert_eq!(best(&model), (1800.0, 9, true));
        model.request_size = 2;
        // Requests of two: eight inferences are all that fit.
        assert_eq!(best(&model), (889.0, 8, true));
        model.stretch = 0.5;
        assert_eq!(best(&model), (593.0, 8, true));
        let table = LatencyTable::measured("1,2\n2,3\n4,8\n8,24", 8).expect("valid");
        let mut model = SimulatedModel::new(table, 2);
        assert_eq!(best(&model), (1333.0, 2, false));
        model.request_size = 4;
        assert_eq!(best(&model), (250.0, 4, false));
        // Every size carries as much, to a nanosecond.
        let third = LatencyTable::affine(0.0, 1.0 / 3.0, 7).expect("valid");
        assert_eq!(best(&SimulatedModel::new(third, 1)), (3000.0, 7, true));
    }
}
