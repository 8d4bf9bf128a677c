//! Log lines: Triton's two formats, and JSON.
//!
//! ```text
//! default  I1120 13:14:52.382069 17842 server.rs:305] "loaded model `digits` in 12 ms"
//! ISO8601  2026-11-20T13:14:52Z I 17842 server.rs:305] "loaded model `digits` in 12 ms"
//! json     {"time":"2026-11-20T13:14:52.382069Z","level":"INFO","target":"skep_runtime","message":"..."}
//! ```

use std::{
    fmt::{self, Write},
    fs::OpenOptions,
    path::PathBuf,
};

use anyhow::Context;
use clap::ValueEnum;
use jiff::{Timestamp, Zoned};
use serde_json::{Map, Value, json};
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

impl LogOptions {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        match *metadata.level() {
            Level::ERROR => self.error,
            Level::WARN => self.warning,
            Level::INFO => self.info,
            Level::DEBUG => self.verbose >= 1,
            Level::TRACE => self.verbose >= 2,
        }
    }
}

/// Starts logging for the whole process.
pub(crate) fn start(options: LogOptions) -> anyhow::Result<()> {
    let lines = Lines(options.format);
    let file = options.file.clone();
    let filter = filter_fn(move |metadata| options.enabled(metadata));
    let layer = tracing_subscriber::fmt::layer().event_format(lines);
    if let Some(path) = file {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open log file `{}`", path.display()))?;
        tracing_subscriber::registry()
            .with(layer.with_writer(file).with_filter(filter))
            .try_init()?;
    } else {
        let layer = layer.with_writer(std::io::stderr).with_filter(filter);
        tracing_subscriber::registry().with(layer).try_init()?;
    }
    Ok(())
}

struct Lines(LogFormat);

impl<S, N> FormatEvent<S, N> for Lines
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
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        if self.0 == LogFormat::Json {
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
        if self.0 == LogFormat::Iso8601 {
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

fn json_line(metadata: &Metadata<'_>, fields: Fields) -> String {
    let mut object = Map::new();
    object.insert(
        "time".to_owned(),
        json!(
            Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
                .to_string()
        ),
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
struct Fields {
    message: String,
    rest: Vec<(String, String)>,
}

impl Fields {
    /// The message in quotes, as Triton writes it, control characters escaped; then `name=value`.
    fn text(&self) -> String {
        let mut text = json!(self.message).to_string();
        for (name, value) in &self.rest {
            write!(text, " {name}={}", json!(value)).expect("a string takes all");
        }
        text
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.rest.push((field.name().to_owned(), text));
        }
    }
}
