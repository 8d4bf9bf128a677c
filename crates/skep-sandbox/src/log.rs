//! Passes on the log of a worker process, line by line and at a bounded rate.
//!
//! A process that writes without pause neither fills the server's log nor blocks: everything is read, and lines beyond
//! the rate are counted and dropped.

use std::{
    io::{BufRead, BufReader, Read},
    time::{Duration, Instant},
};

/// The longest line, in bytes.
const MAX_LINE_BYTES: u64 = 4096;

/// Lines that may come at once: a panic with its trace has a hundred.
const BURST: f64 = 200.0;

/// Lines a second after that. With half a KiB each, that is 440 MB a day.
const LINES_PER_SECOND: f64 = 10.0;

/// A line that is longer than this counts as several.
const BYTES_OF_A_LINE: usize = 512;

/// The shortest time between two reports of dropped lines.
const BETWEEN_REPORTS: Duration = Duration::from_secs(10);

/// A token bucket of log lines.
#[derive(Debug)]
struct Allowance {
    lines: f64,
    since: Instant,
    /// Lines dropped since the last report.
    left_out: u64,
    reported: Option<Instant>,
}

impl Allowance {
    const fn new(now: Instant) -> Self {
        Self {
            lines: BURST,
            since: now,
            left_out: 0,
            reported: None,
        }
    }

    /// Whether a line of `bytes` bytes is passed on. A dropped line is counted.
    fn take(&mut self, now: Instant, bytes: usize) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        self.since = now;
        self.lines = (self.lines + passed * LINES_PER_SECOND).min(BURST);
        let cost = u32::try_from(bytes.div_ceil(BYTES_OF_A_LINE).max(1)).unwrap_or(u32::MAX);
        let cost = f64::from(cost);
        if self.lines < cost {
            self.left_out += 1;
            return false;
        }
        self.lines -= cost;
        true
    }

    /// The number of dropped lines, if it is time to report it.
    fn report(&mut self, now: Instant) -> Option<u64> {
        let is_due = self
            .reported
            .is_none_or(|last| now.saturating_duration_since(last) >= BETWEEN_REPORTS);
        if self.left_out == 0 || !is_due {
            return None;
        }
        self.reported = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// A line, or a report of dropped lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogEntry<'a> {
    /// A line as the process wrote it.
    Line(&'a str),
    /// The number of dropped lines.
    LeftOut(u64),
}

/// Passes lines on until the log ends.
pub(crate) fn pass_on(
    log: impl Read,
    now: impl Fn() -> Instant,
    mut say: impl FnMut(LogEntry<'_>),
) {
    let mut log = BufReader::new(log);
    let mut allowance = Allowance::new(now());
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer line becomes several.
        let mut limited = log.by_ref().take(MAX_LINE_BYTES);
        match limited.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let time = now();
        if !allowance.take(time, line.len()) {
            continue;
        }
        if let Some(count) = allowance.report(time) {
            say(LogEntry::LeftOut(count));
        }
        say(LogEntry::Line(String::from_utf8_lossy(&line).trim()));
    }
    if allowance.left_out > 0 {
        say(LogEntry::LeftOut(allowance.left_out));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Passes on a log whose lines arrive `between` apart.
    fn passed_on(text: &str, between: Duration) -> (usize, Vec<u64>) {
        let (start, lines) = (Instant::now(), Cell::new(0));
        let now = || {
            lines.set(lines.get() + 1);
            start + between * lines.get()
        };
        let (mut count, mut left_out) = (0, Vec::new());
        pass_on(text.as_bytes(), now, |entry| match entry {
            LogEntry::Line(line) => {
                assert!(text.contains(line));
                count += 1;
            }
            LogEntry::LeftOut(number) => left_out.push(number),
        });
        (count, left_out)
    }

    #[test]
    fn a_slow_log_is_passed_on_completely() {
        let text = "WARN one\n".repeat(1000);
        assert_eq!(passed_on(&text, Duration::from_millis(100)), (1000, vec![]));
        // A trace of a panic, all at once.
        assert_eq!(
            passed_on(&"at\n".repeat(200), Duration::ZERO),
            (200, vec![])
        );
    }

    #[test]
    fn a_flood_is_passed_on_in_part_and_the_rest_counted() {
        let flood = "x\n".repeat(100_000);
        assert_eq!(passed_on(&flood, Duration::ZERO), (200, vec![99_800]));
        // A thousand lines a second for a hundred seconds.
        let (count, left_out) = passed_on(&flood, Duration::from_millis(1));
        assert_eq!(count, 200 + 100 * 10 - 1);
        assert_eq!(left_out.iter().sum::<u64>(), 100_000 - count as u64);
        assert!((9..=11).contains(&left_out.len()), "{left_out:?}");
        // Long lines count as several; a line without an end is cut.
        let (count, _) = passed_on(&"x".repeat(4096 * 100), Duration::ZERO);
        assert_eq!(count, 200 / 8);
    }
}
