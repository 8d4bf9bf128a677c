//! Flags on the traces of requests: Triton's `--trace-config`, and its older flags for the same.

use std::{path::PathBuf, str::FromStr, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use skep_tracing::{
    CollectorUrl, OtlpOptions, TraceLevels, TraceMode, TraceOptions, TraceOutput, TraceSettings,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Traces")]
pub(super) struct TraceArgs {
    /// Trace requests: mode=triton or opentelemetry, level=TIMESTAMPS or TENSORS, rate=N, count=N, triton,file=PATH,
    /// triton,log-frequency=N, opentelemetry,url=URL, opentelemetry,resource=KEY=VALUE; may be given several times
    #[arg(long, value_name = "SETTING")]
    trace_config: Vec<TraceFlag>,
    /// Triton's older flag for --trace-config=triton,file=PATH
    #[arg(long, value_name = "PATH")]
    trace_file: Option<PathBuf>,
    /// Triton's older flag for --trace-config=level=LEVEL; may be given several times
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    trace_level: Vec<TraceLevels>,
    /// Triton's older flag for --trace-config=rate=N
    #[arg(long, value_name = "N", value_parser = number)]
    trace_rate: Option<u32>,
    /// Triton's older flag for --trace-config=count=N
    #[arg(long, value_name = "N", value_parser = count, allow_hyphen_values = true)]
    trace_count: Option<TraceCount>,
    /// Triton's older flag for --trace-config=triton,log-frequency=N
    #[arg(long, value_name = "N", value_parser = number)]
    trace_log_frequency: Option<u32>,
}

/// How many requests are traced; `None` for no bound.
type TraceCount = Option<u32>;

/// A value of `--trace-config`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TraceFlag {
    Mode(TraceMode),
    Level(TraceLevels),
    Rate(u32),
    Count(TraceCount),
    File(PathBuf),
    LogFrequency(u32),
    Collector(CollectorFlag),
}

/// A setting of mode opentelemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CollectorFlag {
    Url(CollectorUrl),
    Resource(String, String),
    QueueSize(u32),
    ScheduleDelay(u32),
    BatchSize(u32),
}

const EXPECTED: &str = "expected mode=, level=, rate=, count=, triton,file=, triton,log-frequency=, opentelemetry,url=, \
     opentelemetry,resource=KEY=VALUE, opentelemetry,bsp_max_queue_size=, opentelemetry,bsp_schedule_delay= or \
     opentelemetry,bsp_max_export_batch_size=";

impl FromStr for TraceFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or(EXPECTED)?;
        Ok(match key.trim() {
            "mode" => Self::Mode(match value {
                "triton" => TraceMode::Triton,
                "opentelemetry" => TraceMode::OpenTelemetry,
                _ => return Err("mode: expected triton or opentelemetry".to_owned()),
            }),
            "level" => Self::Level(level(value)?),
            "rate" => Self::Rate(number(value)?),
            "count" => Self::Count(count(value)?),
            "triton,file" => Self::File(value.into()),
            "triton,log-frequency" => Self::LogFrequency(number(value)?),
            other => match other.strip_prefix("opentelemetry,") {
                Some(key) => Self::Collector(CollectorFlag::read(key, value)?),
                None => return Err(format!("there is no setting `{other}`: {EXPECTED}")),
            },
        })
    }
}

impl CollectorFlag {
    fn read(key: &str, value: &str) -> Result<Self, String> {
        Ok(match key {
            "url" => Self::Url(value.parse().map_err(|error| format!("{error}"))?),
            "resource" => {
                let (key, value) = value
                    .split_once('=')
                    .filter(|(key, _)| !key.is_empty())
                    .ok_or("resource: expected KEY=VALUE, as in service.name=skep")?;
                Self::Resource(key.to_owned(), value.to_owned())
            }
            "bsp_max_queue_size" => Self::QueueSize(positive(value)?),
            "bsp_schedule_delay" => Self::ScheduleDelay(positive(value)?),
            "bsp_max_export_batch_size" => Self::BatchSize(positive(value)?),
            _ => {
                return Err(format!(
                    "there is no setting `opentelemetry,{key}`: {EXPECTED}"
                ));
            }
        })
    }
}

fn level(text: &str) -> Result<TraceLevels, String> {
    TraceLevels::OFF
        .with(text)
        .ok_or_else(|| format!("level `{text}`: expected OFF, TIMESTAMPS or TENSORS"))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| format!("`{text}`: expected a number from 0 to {}", u32::MAX))
}

fn positive(text: &str) -> Result<u32, String> {
    let number = number(text).ok().filter(|number| *number > 0);
    number.ok_or_else(|| format!("`{text}`: expected a number from 1 to {}", u32::MAX))
}

fn count(text: &str) -> Result<TraceCount, String> {
    match text.parse::<i32>() {
        Ok(-1) => Ok(None),
        Ok(number) if number >= 0 => Ok(Some(number.unsigned_abs())),
        _ => Err(format!(
            "`{text}`: expected a number of traces, or -1 for no bound"
        )),
    }
}

impl TraceArgs {
    /// What is traced at the start, and where to.
    ///
    /// # Errors
    /// If flags contradict each other, or the file cannot be written.
    pub(super) fn options(&self) -> anyhow::Result<TraceOptions> {
        let flags = self.flags()?;
        let mode = flags.iter().rev().find_map(|flag| match flag {
            TraceFlag::Mode(mode) => Some(*mode),
            _ => None,
        });
        let mode = mode.unwrap_or(TraceMode::Triton);
        let mut settings = TraceSettings::default();
        let mut file = None;
        let mut collector = OtlpOptions::new(CollectorUrl::default());
        for flag in flags {
            match flag {
                TraceFlag::Mode(_) => {}
                TraceFlag::Level(levels) => settings.levels = added(settings.levels, levels),
                TraceFlag::Rate(rate) => settings.rate = rate,
                TraceFlag::Count(count) => settings.count = count,
                TraceFlag::File(_) | TraceFlag::LogFrequency(_)
                    if mode == TraceMode::OpenTelemetry =>
                {
                    say_without_effect("triton", mode);
                }
                TraceFlag::File(path) => file = Some(path),
                TraceFlag::LogFrequency(traces) => settings.log_frequency = traces,
                TraceFlag::Collector(_) if mode == TraceMode::Triton => {
                    say_without_effect("opentelemetry", mode);
                }
                TraceFlag::Collector(flag) => set_collector(&mut collector, flag),
            }
        }
        let output = match mode {
            TraceMode::Triton => {
                TraceOutput::File(file.filter(|path| !path.as_os_str().is_empty()))
            }
            TraceMode::OpenTelemetry => TraceOutput::Collector(collector),
        };
        check(&settings, &output)?;
        Ok(TraceOptions { output, settings })
    }

    /// All flags, the older ones as those that replace them.
    fn flags(&self) -> anyhow::Result<Vec<TraceFlag>> {
        let levels = self.trace_level.iter().copied().map(TraceFlag::Level);
        let older: Vec<TraceFlag> = levels
            .chain(self.trace_file.clone().map(TraceFlag::File))
            .chain(self.trace_rate.map(TraceFlag::Rate))
            .chain(self.trace_count.map(TraceFlag::Count))
            .chain(self.trace_log_frequency.map(TraceFlag::LogFrequency))
            .collect();
        if self.trace_config.is_empty() {
            return Ok(older);
        }
        if !older.is_empty() {
            bail!(
                "incompatible flags: --trace-config, and --trace-file, --trace-level, --trace-rate, --trace-count or --trace-log-frequency, expected --trace-config alone"
            );
        }
        Ok(self.trace_config.clone())
    }
}

fn added(levels: TraceLevels, more: TraceLevels) -> TraceLevels {
    TraceLevels {
        timestamps: levels.timestamps || more.timestamps,
        tensors: levels.tensors || more.tensors,
    }
}

fn say_without_effect(settings: &str, mode: TraceMode) {
    tracing::warn!(
        "accepted without effect: --trace-config={settings},...: the mode of traces is {mode}"
    );
}

fn set_collector(collector: &mut OtlpOptions, flag: CollectorFlag) {
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    match flag {
        CollectorFlag::Url(url) => collector.url = url,
        CollectorFlag::Resource(key, value) => collector.resource.push((key, value)),
        CollectorFlag::QueueSize(traces) => collector.queue_size = size(traces),
        CollectorFlag::ScheduleDelay(ms) => {
            collector.schedule_delay = Duration::from_millis(ms.into());
        }
        CollectorFlag::BatchSize(spans) => collector.batch_size = size(spans),
    }
}

fn check(settings: &TraceSettings, output: &TraceOutput) -> anyhow::Result<()> {
    if let TraceOutput::File(Some(path)) = output {
        skep_tracing::probe(path)
            .with_context(|| format!("cannot write the trace file `{}`", path.display()))?;
    }
    if settings.levels.is_off() {
        return Ok(());
    }
    match output {
        _ if settings.rate == 0 => bail!("traces at a rate of 0, expected at least 1"),
        TraceOutput::File(None) => bail!(
            "requests are to be traced, but no trace file is given\n  try: --trace-config=triton,file=trace.json, or --trace-config=mode=opentelemetry"
        ),
        TraceOutput::Collector(_) if settings.levels.tensors => bail!(
            "level TENSORS is not supported in mode opentelemetry\n  try: level=TIMESTAMPS, or mode=triton with triton,file=PATH"
        ),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        traces: TraceArgs,
    }

    fn options(flags: &[&str]) -> Result<TraceOptions, String> {
        let command = Command::try_parse_from(["skep"].iter().chain(flags));
        let command = command.map_err(|error| error.to_string())?;
        command
            .traces
            .options()
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn tritons_settings_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("a,b=c.json");
        let file = format!("--trace-config=triton,file={}", path.display());
        let flags = [
            &file,
            "--trace-config=level=TIMESTAMPS",
            "--trace-config=level=TENSORS",
            "--trace-config=rate=5",
            "--trace-config=count=-1",
            "--trace-config=count=7",
            "--trace-config=triton,log-frequency=3",
        ];
        let read = options(&flags).expect("valid");
        assert!(matches!(read.output, TraceOutput::File(Some(found)) if found == path));
        let expected = TraceSettings {
            levels: TraceLevels {
                timestamps: true,
                tensors: true,
            },
            rate: 5,
            count: Some(7),
            log_frequency: 3,
        };
        assert_eq!(read.settings, expected);
        let older = format!("--trace-file={}", path.display());
        let flags = [
            &older,
            "--trace-level=TIMESTAMPS",
            "--trace-level=TENSORS",
            "--trace-rate=5",
            "--trace-count=7",
            "--trace-log-frequency=3",
        ];
        assert_eq!(options(&flags).expect("valid").settings, expected);
        assert_eq!(
            options(&[]).expect("valid").settings,
            TraceSettings::default()
        );
    }

    #[test]
    fn a_collector_is_read() {
        let read = options(&[
            "--trace-config=mode=opentelemetry",
            "--trace-config=opentelemetry,url=http://c:1/x",
            "--trace-config=opentelemetry,resource=service.name=a=b",
            "--trace-config=opentelemetry,bsp_schedule_delay=100",
            "--trace-config=opentelemetry,bsp_max_queue_size=9",
            "--trace-config=opentelemetry,bsp_max_export_batch_size=8",
        ]);
        let TraceOutput::Collector(collector) = read.expect("valid").output else {
            panic!("another output");
        };
        assert_eq!(collector.url.to_string(), "http://c:1/x");
        assert_eq!(
            collector.resource,
            [("service.name".to_owned(), "a=b".to_owned())]
        );
        assert_eq!(collector.schedule_delay, Duration::from_millis(100));
        assert_eq!((collector.queue_size, collector.batch_size), (9, 8));
    }

    #[test]
    fn contradictions_are_refused() {
        for (flags, part) in [
            (
                &["--trace-config=level=TIMESTAMPS"][..],
                "no trace file is given",
            ),
            (
                &["--trace-config=rate=1", "--trace-rate=1"],
                "expected --trace-config alone",
            ),
            (
                &["--trace-file=/nonexistent/t"],
                "cannot write the trace file `/nonexistent/t`",
            ),
            (
                &[
                    "--trace-config=mode=opentelemetry",
                    "--trace-config=level=TENSORS",
                ],
                "TENSORS is not supported",
            ),
            (
                &[
                    "--trace-config=mode=opentelemetry",
                    "--trace-config=level=TIMESTAMPS",
                    "--trace-config=rate=0",
                ],
                "rate of 0",
            ),
            (
                &["--trace-config=mode=jaeger"],
                "expected triton or opentelemetry",
            ),
            (&["--trace-config=triton,url=x"], "no setting `triton,url`"),
            (
                &["--trace-config=opentelemetry,file=x"],
                "no setting `opentelemetry,file`",
            ),
            (&["--trace-config=rate"], "expected mode="),
            (&["--trace-config=count=-2"], "-1 for no bound"),
            (
                &["--trace-level=SOME"],
                "expected OFF, TIMESTAMPS or TENSORS",
            ),
            (
                &["--trace-config=opentelemetry,bsp_max_queue_size=0"],
                "from 1 to",
            ),
        ] {
            let error = options(flags).expect_err(part);
            assert!(error.contains(part), "{flags:?}: {error}");
        }
    }
}
