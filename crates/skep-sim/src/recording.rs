//! Recorded arrivals.
//!
//! What a file is shows in its heading:
//!
//! | heading | meaning |
//! |---|---|
//! | `app,func,end_timestamp,duration` | a request a line, which arrived its duration before its end (Azure Functions trace of 2021) |
//! | `HashOwner,HashApp,HashFunction,Trigger,1,2,...` | a function a line, its requests in each minute (Azure Functions trace of 2019) |
//! | with a column of [`COLUMNS`] | a request a line, whose moment is in that column (Azure LLM inference trace) |
//! | none | a request a line, whose moment is in the first column |
//!
//! A moment is a number, of any unit, since it is brought to a rate; or a date and time, `2023-11-16 18:17:03.9799600`.
//! Without a heading they have to ascend, since a list of rates or gaps looks like them. Rates have a form of their
//! own, [`RecordedArrivals::rates`].

use thiserror::Error;

use crate::RandomStream;

/// Recorded arrivals: how they lie, not how fast they follow each other.
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
    /// Nothing that could be brought to a rate.
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
    /// If a line has another form than the heading says, or there are less than two moments.
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

    /// Reads rates, one a line in requests a second, each of which holds for `step` seconds. A heading of letters is
    /// left out.
    ///
    /// # Errors
    ///
    /// If a line is not a number from 0, gives more than 1e9 requests, or all together are less than two requests.
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
        // Below the length, unless the draw is 1, which starts over.
        #[expect(clippy::cast_sign_loss, reason = "a share of a length")]
        let start = (random.uniform() * length as f64) as usize % length;
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
                // Between the last and the first of the next time lies what lies between two on average.
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
mod tests {
    use super::*;
    use crate::RandomPurpose;

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
        let recording =
            RecordedArrivals::rates("rate\n0.4\n0.4\n0.4\n\n0\n3\n", 2.0).expect("valid");
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
}
