//! The program's version, and the resources of its process, under the names that Prometheus' own clients use.

use std::{env::consts, fs};

use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::text::{MetricLabels, MetricsText};
use crate::management::metadata::{PROTOCOL_VERSION, SKEP_VERSION};

/// The kernel's figures of a process; missing ones are left out.
#[derive(Debug, Clone, PartialEq, Default)]
struct ProcessReading {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<u64>,
    virtual_bytes: Option<u64>,
    /// Seconds since 1970.
    started: Option<f64>,
}

impl ProcessReading {
    /// Parses `/proc/self/stat`, and `/proc/stat` for the time at which the machine started.
    fn parse(own: &str, machine: &str, ticks_per_second: u64, page_bytes: u64) -> Self {
        // The second field is the program's name, which may hold any character; fields are numbered from 1.
        let fields: Vec<&str> = own
            .rsplit_once(')')
            .map(|(_, rest)| rest.split_ascii_whitespace().collect())
            .unwrap_or_default();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second as f64;
        let boot = machine
            .lines()
            .find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        Self {
            cpu_seconds: field(14)
                .zip(field(15))
                .map(|(user, system)| seconds(user + system)),
            started: boot
                .zip(field(22))
                .map(|(boot, since)| boot as f64 + seconds(since)),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * page_bytes),
        }
    }
}

/// Open descriptors of this process.
fn open_files() -> Option<u64> {
    let path = "/proc/self/fd";
    // Linux 6.2 and later tell the number without a listing.
    match fs::metadata(path).ok()?.len() {
        // The descriptor that reads the directory is one of them.
        0 => Some((fs::read_dir(path).ok()?.count() as u64).saturating_sub(1)),
        count => Some(count),
    }
}

fn bytes(bytes: Option<u64>) -> Option<f64> {
    bytes.map(|bytes| bytes as f64)
}

/// The metrics of this process. Reads files in /proc.
pub(super) fn render() -> String {
    let reading = ProcessReading::parse(
        &fs::read_to_string("/proc/self/stat").unwrap_or_default(),
        &fs::read_to_string("/proc/stat").unwrap_or_default(),
        clock_ticks_per_second(),
        page_size() as u64,
    );
    let mut text = MetricsText::default();
    let labels = MetricLabels::default()
        .with("version", SKEP_VERSION)
        .with("protocol", PROTOCOL_VERSION)
        .with("target", &format!("{}-{}", consts::ARCH, consts::OS));
    text.family(
        "skep_build_info",
        "Version and platform of this Skep; always 1",
        "gauge",
    )
    .line(&labels, 1);
    for (name, help, kind, value) in [
        (
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            "counter",
            reading.cpu_seconds,
        ),
        (
            "process_open_fds",
            "Number of open file descriptors.",
            "gauge",
            bytes(open_files()),
        ),
        (
            "process_max_fds",
            "Maximum number of open file descriptors.",
            "gauge",
            bytes(getrlimit(Resource::Nofile).current),
        ),
        (
            "process_virtual_memory_bytes",
            "Virtual memory size in bytes.",
            "gauge",
            bytes(reading.virtual_bytes),
        ),
        (
            "process_resident_memory_bytes",
            "Resident memory size in bytes.",
            "gauge",
            bytes(reading.resident_bytes),
        ),
        (
            "process_start_time_seconds",
            "Start time of the process since unix epoch in seconds.",
            "gauge",
            reading.started,
        ),
    ] {
        if let Some(value) = value {
            text.family(name, help, kind)
                .line(&MetricLabels::default(), value);
        }
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str =
        "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 9 0 3000 8192000 25 1844 1 1 0";

    #[test]
    fn fields_follow_the_name() {
        let reading = ProcessReading::parse(OWN, "cpu 1 2\nbtime 1000\nprocesses 7\n", 100, 4096);
        let expected = ProcessReading {
            cpu_seconds: Some(2.0),
            resident_bytes: Some(25 * 4096),
            virtual_bytes: Some(8_192_000),
            started: Some(1030.0),
        };
        assert_eq!(reading, expected);
    }

    #[test]
    fn missing_figures_are_left_out() {
        assert_eq!(
            ProcessReading::parse("", "", 100, 4096),
            ProcessReading::default()
        );
        assert_eq!(
            ProcessReading::parse("42 (a) S 1", "btime x", 100, 4096),
            ProcessReading::default()
        );
    }
}
