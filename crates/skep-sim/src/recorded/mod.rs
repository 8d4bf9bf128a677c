//! Recorded arrivals.
//!
//! The heading shows the kind of file:
//!
//! | heading | meaning |
//! |---|---|
//! | `app,func,end_timestamp,duration` | one request per line, which arrived its duration before its end (Azure Functions trace of 2021) |
//! | `HashOwner,HashApp,HashFunction,Trigger,1,2,...` | one function per line, its requests in each minute (Azure Functions trace of 2019) |
//! | with a column of [`COLUMNS`] | one request per line, whose moment is in that column (Azure LLM inference trace) |
//! | none | one request per line, whose moment is in the first column |
//!
//! A moment is a number, of any unit, since it is brought to a rate; or a date and time, `2023-11-16 18:17:03.9799600`.
//! Without a heading they have to ascend, since a list of rates or gaps looks like them. Rates have a form of their
//! own, [`RecordedArrivals::rates`].

use std::time::Duration;

use skep_types::Time;
use thiserror::Error;

use crate::{RandomPurpose, RandomStream};

/// The pattern of recorded arrivals; the rate is scaled to the load of a simulation.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordedArrivals(ArrivalPattern);

#[derive(Debug, Clone, PartialEq)]
enum ArrivalPattern {
    /// Seconds after the first, ascending; at least two that differ.
    Moments(Vec<f64>),
    /// Requests in each of equal spans, within which they arrive independently; not all zero.
    Counts(Vec<u64>),
}

/// Why a text is not a recording.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InvalidArrivals {
    /// A line cannot be read.
    #[error("line {line}: expected {expected}, got `{text}`")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What a line should have.
        expected: &'static str,
        /// The line.
        text: String,
    },
    /// Without a heading: numbers that are not ascending moments.
    #[error(
        "line {line}: `{text}` follows `{before}`, expected ascending moments in seconds, or a heading that names their column; a file of rates is read as rates:FILE:STEP_SECONDS"
    )]
    Descends {
        /// The line's number, from 1.
        line: usize,
        /// The line.
        text: String,
        /// The line before.
        before: String,
    },
    /// Too few moments for a rate.
    #[error("expected requests at two moments at least")]
    TooFew,
}

/// Names of a column of moments, in small letters.
const COLUMNS: [&str; 6] = [
    "timestamp",
    "time",
    "arrival",
    "arrival_time",
    "arrived_at",
    "seconds",
];
const MOMENT: &str = "a number, or a date and time as in `2023-11-16 18:17:03.97`, below a heading that names its column or in the first";
const FUNCTIONS_2021: &str = "app,func,end_timestamp,duration";
const FUNCTIONS_2019: &str = "HashOwner,HashApp,HashFunction,Trigger,";

impl RecordedArrivals {
    /// Reads the text of a recording.
    ///
    /// # Errors
    ///
    /// If a line has another form than the heading says, or there are fewer than two moments.
    pub fn parse(text: &str) -> Result<Self, InvalidArrivals> {
        let text = text.trim_start_matches('\u{feff}');
        let heading = text.lines().next().unwrap_or_default().trim();
        if heading.starts_with(FUNCTIONS_2019) {
            return Self::counts(text);
        }
        let column = heading.split(',').position(|name| {
            let name = name.trim().trim_matches('"').to_lowercase();
            COLUMNS.contains(&name.as_str())
        });
        let ended = heading == FUNCTIONS_2021;
        let expected = if ended {
            "four columns, the last two seconds"
        } else {
            MOMENT
        };
        let skipped = usize::from(ended || column.is_some());
        let ordered = !ended && column.is_none();
        let mut moments: Vec<f64> = Vec::new();
        let mut before = "";
        for (index, line) in text.lines().enumerate().skip(skipped) {
            if line.trim().is_empty() {
                continue;
            }
            let read = if ended {
                function_2021(line)
            } else {
                moment(line, column.unwrap_or(0))
            };
            let read = read.ok_or_else(|| invalid(index, expected, line))?;
            if ordered && moments.last().is_some_and(|last| read < *last) {
                return Err(InvalidArrivals::Descends {
                    line: index + 1,
                    text: start(line),
                    before: start(before),
                });
            }
            moments.push(read);
            before = line;
        }
        moments.sort_by(f64::total_cmp);
        match (moments.first().copied(), moments.last().copied()) {
            (Some(first), Some(last)) if last - first > 0.0 && (last - first).is_finite() => {
                moments.iter_mut().for_each(|moment| *moment -= first);
                Ok(Self(ArrivalPattern::Moments(moments)))
            }
            _ => Err(InvalidArrivals::TooFew),
        }
    }

    /// Reads rates, one per line in requests per second, each of which holds for `step` seconds. A heading of letters
    /// is left out.
    ///
    /// # Errors
    ///
    /// If a line is not a number from 0, gives more than 1e9 requests, or gives fewer than two requests in all.
    pub fn rates(text: &str, step_seconds: f64) -> Result<Self, InvalidArrivals> {
        const EXPECTED: &str = "requests a second from 0, at most 1e9 in a step";
        let mut counts: Vec<u64> = Vec::new();
        let (mut exact, mut whole) = (0.0, 0.0);
        for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let letters = line.trim_start().starts_with(char::is_alphabetic);
            if line.trim().is_empty() || (letters && index == 0) {
                continue;
            }
            let requests = number(line).map(|rate| rate * step_seconds);
            let requests = requests.filter(|requests| (0.0..=1e9).contains(requests));
            exact += requests.ok_or_else(|| invalid(index, EXPECTED, line))?;
            // Rounded together, so that low rates do not vanish.
            let count = (exact - whole).round().max(0.0);
            whole += count;
            #[expect(clippy::cast_sign_loss, reason = "not below 0; saturates")]
            counts.push(count as u64);
        }
        if counts.iter().fold(0, |sum: u64, n| sum.saturating_add(*n)) < 2 {
            return Err(InvalidArrivals::TooFew);
        }
        Ok(Self(ArrivalPattern::Counts(counts)))
    }

    fn counts(text: &str) -> Result<Self, InvalidArrivals> {
        const EXPECTED: &str = "four names and a whole number a minute";
        let mut counts: Vec<u64> = Vec::new();
        for (index, line) in text.lines().enumerate().skip(1) {
            if line.trim().is_empty() {
                continue;
            }
            let numbers = line.split(',').skip(4).map(|count| count.trim().parse());
            let numbers: Vec<u32> = numbers
                .collect::<Result<_, _>>()
                .map_err(|_| invalid(index, EXPECTED, line))?;
            counts.resize(counts.len().max(numbers.len()), 0);
            for (sum, count) in counts.iter_mut().zip(numbers) {
                *sum = sum.saturating_add(u64::from(count));
            }
        }
        if counts.iter().sum::<u64>() < 2 {
            return Err(InvalidArrivals::TooFew);
        }
        Ok(Self(ArrivalPattern::Counts(counts)))
    }

    /// `count` moments, drawn independently of each other: each falls where the recording has requests, as a share of
    /// its span from 0 to 1. Not sorted.
    pub(crate) fn draw(&self, count: usize, random: &mut RandomStream) -> Vec<f64> {
        match &self.0 {
            ArrivalPattern::Moments(recorded) => {
                let span = recorded[recorded.len() - 1];
                let mut one = || {
                    let index = random.below(recorded.len());
                    recorded[index] / span
                };
                (0..count).map(|_| one()).collect()
            }
            ArrivalPattern::Counts(counts) => {
                let mut sum = 0_u64;
                let ends: Vec<u64> = counts
                    .iter()
                    .map(|requests| {
                        sum = sum.saturating_add(*requests);
                        sum
                    })
                    .collect();
                let mut one = || {
                    let request = random.uniform() * sum as f64;
                    let step = ends.partition_point(|end| (*end as f64) < request);
                    (step.min(counts.len() - 1) as f64 + random.uniform()) / counts.len() as f64
                };
                (0..count).map(|_| one()).collect()
            }
        }
    }

    /// Requests over this span at this mean rate a second, in order: as the recording has them, whose whole time is
    /// stretched over the span.
    #[must_use]
    pub fn stretched(&self, rate: f64, span: Duration, seed: u64) -> Vec<Time> {
        let mut random = RandomStream::new(seed, RandomPurpose::Arrivals);
        let seconds = span.as_secs_f64();
        #[expect(clippy::cast_sign_loss, reason = "a number of requests")]
        let count = (rate * seconds).round().max(0.0) as usize;
        let shares = self.draw(count, &mut random).into_iter();
        let mut moments: Vec<Time> = shares
            .map(|share| Time::ZERO + span.mul_f64(share))
            .collect();
        moments.sort_unstable();
        moments
    }

    /// `count` ascending moments in seconds, from anywhere in the recording on: so that seeds differ, and all of a long
    /// recording is seen. They are scaled so that those after the first `warm_up` come at this mean rate a second.
    pub(crate) fn moments(
        &self,
        rate: f64,
        count: usize,
        warm_up: usize,
        random: &mut RandomStream,
    ) -> Vec<f64> {
        let length = match &self.0 {
            ArrivalPattern::Moments(recorded) => recorded.len(),
            ArrivalPattern::Counts(counts) => counts.len(),
        };
        let start = random.below(length);
        self.moments_from(start, rate, count, warm_up, random)
    }

    /// The same from this request, or this span, on.
    fn moments_from(
        &self,
        start: usize,
        rate: f64,
        count: usize,
        warm_up: usize,
        random: &mut RandomStream,
    ) -> Vec<f64> {
        // The request after which time counts.
        let begin = warm_up.saturating_sub(1);
        let mut moments = Vec::with_capacity(count);
        match &self.0 {
            ArrivalPattern::Moments(recorded) => {
                // What counts needs a span.
                let length = recorded.len();
                let counted = (start + begin) % length;
                let later = start_with_span(recorded, counted, count - begin) - counted;
                let start = (start + later) % length;
                let span = recorded[recorded.len() - 1];
                // The gap between the last and the first of the next round is the mean gap.
                let round = span * recorded.len() as f64 / (recorded.len() - 1) as f64;
                let rounds = (0..).map(|index| f64::from(index) * round);
                let all = rounds.flat_map(|from| recorded.iter().map(move |at| from + at));
                let all = all.skip(start).map(|at| at - recorded[start]);
                moments.extend(all.take(count));
            }
            ArrivalPattern::Counts(counts) => {
                let minutes = counts.iter().cycle().skip(start);
                'minutes: for (index, requests) in minutes.enumerate() {
                    // Uniform moments in their order, one by one: the least of those that are left comes next.
                    let mut rest = 1.0;
                    for left in (1..=*requests).rev() {
                        if moments.len() == count {
                            break 'minutes;
                        }
                        rest *= random.uniform().powf(1.0 / left as f64);
                        moments.push(index as f64 + (1.0 - rest));
                    }
                }
            }
        }
        let last = moments.last().copied().unwrap_or_default();
        let from = warm_up.checked_sub(1).map_or(0.0, |index| moments[index]);
        if last > from {
            // Divided first: the recorded span may be close to nothing.
            let span = (count - warm_up) as f64 / rate;
            moments
                .iter_mut()
                .for_each(|moment| *moment = *moment / (last - from) * span);
        }
        moments
    }
}

/// Where to begin instead of at `start`, so that not all of `count` requests come at one moment, which no scaling
/// brings to a rate: as little later as it takes.
fn start_with_span(recorded: &[f64], start: usize, count: usize) -> usize {
    // The first that comes later; behind the last it is the next round's.
    let later = recorded.partition_point(|at| *at <= recorded[start]);
    start.max((later + 1).saturating_sub(count.max(2)))
}

fn invalid(index: usize, expected: &'static str, text: &str) -> InvalidArrivals {
    InvalidArrivals::Line {
        line: index + 1,
        expected,
        text: start(text),
    }
}

/// As much of a line as an error shows.
fn start(line: &str) -> String {
    line.trim().chars().take(80).collect()
}

fn number(text: &str) -> Option<f64> {
    // Nanoseconds since 1970 are below 1e19.
    text.trim().parse().ok().filter(|n: &f64| n.abs() <= 1e19)
}

/// What a column says.
fn moment(line: &str, column: usize) -> Option<f64> {
    let text = line.split(',').nth(column)?.trim().trim_matches('"');
    number(text).or_else(|| date(text))
}

fn function_2021(line: &str) -> Option<f64> {
    let mut columns = line.split(',').skip(2);
    let end = number(columns.next()?)?;
    Some(end - number(columns.next()?)?)
}

/// Seconds of `2023-11-16 18:17:03.9799600` since 1970; a zone behind it is left out, since it is that of all.
fn date(stamp: &str) -> Option<f64> {
    let (day, clock) = stamp.split_once([' ', 'T'])?;
    let mut day = day.splitn(3, '-').map(str::parse::<i32>);
    let (year, month, day) = (day.next()?.ok()?, day.next()?.ok()?, day.next()?.ok()?);
    let mut clock = clock.splitn(3, ':');
    let hours: u32 = clock.next()?.parse().ok()?;
    let minutes: u32 = clock.next()?.parse().ok()?;
    let seconds = number(clock.next()?.split(['Z', '+', '-']).next()?)?;
    let valid = (0..=9999).contains(&year)
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && (0.0..61.0).contains(&seconds);
    if !valid {
        return None;
    }
    // Days from 1 March of year 0, whose years end with the leap day (Hinnant's `days_from_civil`).
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1;
    let minutes = f64::from(days - 719_468) * 1440.0 + f64::from(hours * 60 + minutes);
    Some(minutes * 60.0 + seconds)
}

#[cfg(test)]
mod tests;
