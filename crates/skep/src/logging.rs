//! Log lines: Triton's two formats, and JSON.
//!
//! ```text
//! default  I1120 13:14:52.382069 17842 server.rs:305] "loaded model `digits` in 12 ms"
//! ISO8601  2026-11-20T13:14:52Z I 17842 server.rs:305] "loaded model `digits` in 12 ms"
//! json     {"time":"2026-11-20T13:14:52.382069Z","level":"INFO","target":"skep_runtime","message":"..."}
//! ```

use std::{
    fmt::{self, Write},
    fs::{File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use anyhow::Context;
use clap::ValueEnum;
use jiff::{Timestamp, Zoned};
use serde_json::{Map, Value, json};
use skep_server::{LogChange, LogControl, LogSettings, UnknownLogFormat};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::filter_fn,
    fmt::{FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{flag_values::boolean, progress::ErrorOutput};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Triton's default
    #[value(name = "default")]
    Default,
    /// Triton's second format
    #[value(name = "ISO8601")]
    Iso8601,
    /// One JSON object a line
    #[value(name = "json")]
    Json,
}

impl LogFormat {
    /// The format of a name, as it is written on the command line.
    fn named(name: &str) -> Option<Self> {
        Self::from_str(name, false).ok()
    }

    fn name(self) -> String {
        self.to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default()
    }
}

/// Triton's levels: a number, of which those below 0 are 0, or a boolean for 1 and 0.
pub(crate) fn verbose_level(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(level) => Ok(u32::try_from(level.max(0)).unwrap_or(u32::MAX)),
        Err(_) => boolean(text)
            .map(u32::from)
            .map_err(|_| format!("expected a level such as 1, got `{text}`")),
    }
}

/// What is logged, and where.
#[derive(Debug, Clone)]
pub(crate) struct LogOptions {
    pub(crate) verbose: u32,
    pub(crate) info: bool,
    pub(crate) warning: bool,
    pub(crate) error: bool,
    pub(crate) file: Option<PathBuf>,
    pub(crate) format: LogFormat,
}

/// The process's log; what is logged and how can be changed while it runs, where to cannot.
#[derive(Debug)]
pub(crate) struct Logs {
    options: RwLock<LogOptions>,
    /// What is written to; `None` for standard error.
    file: Option<RwLock<Arc<File>>>,
}

impl Logs {
    fn options(&self) -> RwLockReadGuard<'_, LogOptions> {
        // Each change is an assignment of a whole value.
        self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log file; without one, standard error.
    fn writer(&self) -> Box<dyn io::Write> {
        match &self.file {
            Some(file) => {
                let file = file.read().unwrap_or_else(PoisonError::into_inner);
                Box::new(Arc::clone(&file))
            }
            None => Box::new(ErrorOutput),
        }
    }

    /// Opens the log file again by its name, after it was moved away. Returns whether there is a log file. If it cannot
    /// be opened, the log stays in the old file.
    pub(crate) fn reopen(&self) -> anyhow::Result<bool> {
        let path = self.options().file.clone();
        let (Some(path), Some(file)) = (path, &self.file) else {
            return Ok(false);
        };
        let opened = Arc::new(open(&path)?);
        *file.write().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(true)
    }

    /// Asked once for each place that logs, and again after each change: what is off costs one look at a flag.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let options = self.options();
        match *metadata.level() {
            Level::ERROR => options.error,
            Level::WARN => options.warning,
            Level::INFO => options.info,
            Level::DEBUG => options.verbose >= 1,
            Level::TRACE => options.verbose >= 2,
        }
    }
}

impl LogControl for Logs {
    fn settings(&self) -> LogSettings {
        let options = self.options();
        let file = options.file.as_ref();
        LogSettings {
            file: file.map_or_else(String::new, |file| file.display().to_string()),
            info: options.info,
            warning: options.warning,
            error: options.error,
            verbose_level: options.verbose,
            format: options.format.name(),
        }
    }

    fn change(&self, change: &LogChange) -> Result<(), UnknownLogFormat> {
        let format = match &change.format {
            Some(name) => Some(LogFormat::named(name).ok_or(UnknownLogFormat)?),
            None => None,
        };
        {
            let mut options = self.options.write().unwrap_or_else(PoisonError::into_inner);
            let LogOptions {
                verbose,
                info,
                warning,
                error,
                file: _,
                format: current_format,
            } = &mut *options;
            *verbose = change.verbose_level.unwrap_or(*verbose);
            *info = change.info.unwrap_or(*info);
            *warning = change.warning.unwrap_or(*warning);
            *error = change.error.unwrap_or(*error);
            *current_format = format.unwrap_or(*current_format);
        }
        // Without the lock, which every place that logs is asked under.
        tracing::callsite::rebuild_interest_cache();
        Ok(())
    }
}

/// Starts logging for the whole process.
pub(crate) fn start(options: LogOptions) -> anyhow::Result<Arc<Logs>> {
    let file = options.file.as_deref().map(open).transpose()?;
    let logs = Arc::new(Logs {
        options: RwLock::new(options),
        file: file.map(|file| RwLock::new(Arc::new(file))),
    });
    let filtered = Arc::clone(&logs);
    let filter = filter_fn(move |metadata| filtered.enabled(metadata));
    let layer = tracing_subscriber::fmt::layer()
        .event_format(LogLines(Arc::clone(&logs)))
        // It would report them on standard error, and panic if that has no reader.
        .log_internal_errors(false);
    let written = Arc::clone(&logs);
    let layer = layer.with_writer(move || written.writer());
    tracing_subscriber::registry()
        .with(layer.with_filter(filter))
        .try_init()?;
    Ok(logs)
}

fn open(path: &Path) -> anyhow::Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("cannot open log file `{}`", path.display()))
}

struct LogLines(Arc<Logs>);

impl<S, N> FormatEvent<S, N> for LogLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = LogFields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let format = self.0.options().format;
        if format == LogFormat::Json {
            return writeln!(writer, "{}", json_line(metadata, fields));
        }
        let level = match *metadata.level() {
            Level::ERROR => 'E',
            Level::WARN => 'W',
            _ => 'I',
        };
        let file = metadata
            .file()
            .and_then(|file| file.rsplit('/').next())
            .unwrap_or("skep");
        let place = format!(
            "{} {file}:{}",
            std::process::id(),
            metadata.line().unwrap_or(0)
        );
        let text = fields.text();
        if format == LogFormat::Iso8601 {
            let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ");
            return writeln!(writer, "{now} {level} {place}] {text}");
        }
        writeln!(
            writer,
            "{level}{} {place}] {text}",
            Zoned::now().strftime("%m%d %H:%M:%S.%6f")
        )
    }
}

/// A moment in lines of JSON, as `strftime` writes it of a timestamp.
pub(crate) const UTC: &str = "%Y-%m-%dT%H:%M:%S.%6fZ";

fn json_line(metadata: &Metadata<'_>, fields: LogFields) -> String {
    let mut object = Map::new();
    object.insert(
        "time".to_owned(),
        json!(Timestamp::now().strftime(UTC).to_string()),
    );
    object.insert("level".to_owned(), json!(metadata.level().as_str()));
    object.insert("target".to_owned(), json!(metadata.target()));
    object.insert("message".to_owned(), json!(fields.message));
    object.extend(
        fields
            .rest
            .into_iter()
            .map(|(name, value)| (name, Value::String(value))),
    );
    Value::Object(object).to_string()
}

/// An event's message and its other fields.
#[derive(Default)]
struct LogFields {
    message: String,
    rest: Vec<(String, String)>,
}

impl LogFields {
    /// The message in quotes, as Triton writes it, control characters escaped; then `name=value`.
    fn text(&self) -> String {
        let mut text = json!(self.message).to_string();
        for (name, value) in &self.rest {
            write!(text, " {name}={}", json!(value)).expect("a string takes all");
        }
        text
    }
}

impl Visit for LogFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.push((field.name().to_owned(), text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_numbers_or_booleans() {
        for (text, level) in [
            ("0", 0),
            ("2", 2),
            ("-1", 0),
            ("true", 1),
            ("false", 0),
            ("9999999999", u32::MAX),
        ] {
            assert_eq!(verbose_level(text), Ok(level), "{text}");
        }
        assert!(verbose_level("much").is_err());
    }

    #[test]
    fn a_change_is_whole_or_nothing() {
        let options = RwLock::new(LogOptions {
            verbose: 0,
            info: true,
            warning: true,
            error: true,
            file: Some("x.log".into()),
            format: LogFormat::Default,
        });
        let logs = Logs {
            options,
            file: None,
        };
        let before = logs.settings();
        assert_eq!(
            (before.file.as_str(), before.format.as_str()),
            ("x.log", "default")
        );
        let wrong = LogChange {
            info: Some(false),
            format: Some("iso8601".to_owned()),
            ..Default::default()
        };
        assert_eq!(logs.change(&wrong), Err(UnknownLogFormat));
        assert_eq!(logs.settings(), before);
        let right = LogChange {
            format: Some("ISO8601".to_owned()),
            verbose_level: Some(3),
            ..wrong
        };
        assert_eq!(logs.change(&right), Ok(()));
        let after = LogSettings {
            info: false,
            verbose_level: 3,
            format: "ISO8601".to_owned(),
            ..before
        };
        assert_eq!(logs.settings(), after);
    }
}
