//! The traces of a server: begun at the edge, chosen by the settings, handed to the writer.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use skep_host::lock;
use skep_runtime::RequestTrace;

use crate::{
    file::TraceFile,
    ledger::{SamplerTable, SettingsLedger},
    otlp::{OtlpOptions, OtlpSink},
    parent::TraceParent,
    sampler::Sampler,
    settings::{TraceChange, TraceMode, TraceSettings},
    writer::{FinishedTrace, TraceCounts, TraceQueue, WAITING_TRACES},
};

/// How long a change of settings waits until earlier traces are written.
const SETTLE: Duration = Duration::from_secs(1);

/// Where traces go.
#[derive(Debug, Clone)]
pub enum TraceOutput {
    /// Triton's file; `None` if none was named, and then nothing can be traced.
    File(Option<PathBuf>),
    /// A collector of OpenTelemetry.
    Collector(OtlpOptions),
}

/// The options of a server's traces.
#[derive(Debug, Clone)]
pub struct TraceOptions {
    /// Where traces go.
    pub output: TraceOutput,
    /// The first settings.
    pub settings: TraceSettings,
}

impl Default for TraceOptions {
    /// Triton's defaults: nothing is traced.
    fn default() -> Self {
        Self {
            output: TraceOutput::File(None),
            settings: TraceSettings::default(),
        }
    }
}

/// The traces of a server.
#[derive(Debug)]
pub struct Tracer {
    /// Whether any request may be traced. All that a request costs while nothing is.
    is_on: AtomicBool,
    output: TraceOutput,
    table: ArcSwap<SamplerTable>,
    ledger: Mutex<SettingsLedger>,
    /// `None` if there is nowhere to write to.
    queue: Option<Arc<TraceQueue>>,
}

impl Tracer {
    /// Starts the thread that writes traces, if there is somewhere to write to.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start(options: TraceOptions) -> io::Result<Arc<Self>> {
        let queue = match &options.output {
            TraceOutput::File(None) => None,
            TraceOutput::File(Some(path)) => {
                let file = TraceFile::new(path.clone());
                Some(TraceQueue::start(Box::new(file), WAITING_TRACES)?)
            }
            TraceOutput::Collector(collector) => {
                let sink = OtlpSink::new(collector)?;
                Some(TraceQueue::start(Box::new(sink), collector.queue_size)?)
            }
        };
        let mut ledger = SettingsLedger::new(options.settings);
        let table = ledger.samplers();
        Ok(Arc::new(Self {
            is_on: AtomicBool::new(queue.is_some() && table.is_on()),
            output: options.output,
            table: ArcSwap::from_pointee(table),
            ledger: Mutex::new(ledger),
            queue,
        }))
    }

    /// Whether traces have somewhere to go.
    #[must_use]
    pub const fn has_output(&self) -> bool {
        self.queue.is_some()
    }

    /// Where traces go.
    #[must_use]
    pub const fn mode(&self) -> TraceMode {
        match self.output {
            TraceOutput::File(_) => TraceMode::Triton,
            TraceOutput::Collector(_) => TraceMode::OpenTelemetry,
        }
    }

    /// Whether any request may be traced now.
    #[inline]
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Where traces go, with what was given at the start.
    #[must_use]
    pub const fn output(&self) -> &TraceOutput {
        &self.output
    }

    /// Begins the trace of a request to a model, if it is to be traced. `parent` is only called for OpenTelemetry.
    #[inline]
    pub fn begin(
        &self,
        model: &str,
        parent: impl FnOnce() -> Option<TraceParent>,
    ) -> Option<TracedRequest> {
        if !self.is_on() {
            return None;
        }
        let parent = match self.mode() {
            TraceMode::Triton => None,
            TraceMode::OpenTelemetry => parent(),
        };
        self.choose(model, parent)
    }

    fn choose(&self, model: &str, parent: Option<TraceParent>) -> Option<TracedRequest> {
        let queue = self.queue.as_ref()?;
        let table = self.table.load();
        let sampler = table.of(model);
        let decision = parent.as_ref().map(|parent| parent.is_sampled);
        sampler.takes(decision).then(|| {
            TracedRequest(Arc::new(TraceUnderWay {
                trace: RequestTrace::new(sampler.levels.tensors),
                sampler: Arc::clone(sampler),
                parent,
                queue: Arc::clone(queue),
            }))
        })
    }

    /// The settings of a model, or of the server.
    #[must_use]
    pub fn settings(&self, model: Option<&str>) -> TraceSettings {
        let ledger = lock(&self.ledger);
        ledger.settings(model, &self.table.load())
    }

    /// Changes the settings of a model, or of the server. When it returns, the change is in effect, and the traces that
    /// had ended are written, if that does not take too long. Blocks.
    ///
    /// # Errors
    /// Why the settings would be invalid, in Triton's words. Nothing has then changed.
    pub fn change(&self, model: Option<&str>, change: &TraceChange) -> Result<(), String> {
        {
            let mut ledger = lock(&self.ledger);
            let check = |settings: &TraceSettings| self.check(settings);
            let table = ledger.change(model, change, &self.table.load(), check)?;
            self.is_on
                .store(self.has_output() && table.is_on(), Ordering::Relaxed);
            self.table.store(Arc::new(table));
        }
        if let Some(queue) = &self.queue {
            queue.finish(SETTLE);
        }
        Ok(())
    }

    /// Whether these settings can be had.
    fn check(&self, settings: &TraceSettings) -> Result<(), String> {
        if settings.levels.is_off() {
            return Ok(());
        }
        let reason = if settings.rate == 0 {
            "sample rate must be non-zero"
        } else if !self.has_output() {
            "trace file name is not given"
        } else if settings.levels.tensors && self.mode() == TraceMode::OpenTelemetry {
            "level TENSORS is not supported in mode opentelemetry"
        } else {
            return Ok(());
        };
        Err(reason.to_owned())
    }

    /// Waits until the traces so far are written or sent, for so long at most. Returns whether they are.
    #[must_use]
    pub fn finish(&self, limit: Duration) -> bool {
        let queue = self.queue.as_ref();
        queue.is_none_or(|queue| queue.finish(limit))
    }

    /// What became of traces; `None` if they have nowhere to go.
    #[must_use]
    pub fn counts(&self) -> Option<TraceCounts> {
        self.queue.as_ref().map(|queue| queue.counts())
    }
}

/// A request that is traced. Its trace is handed to the writer when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct TracedRequest(Arc<TraceUnderWay>);

#[derive(Debug)]
struct TraceUnderWay {
    trace: Arc<RequestTrace>,
    sampler: Arc<Sampler>,
    parent: Option<TraceParent>,
    queue: Arc<TraceQueue>,
}

impl TracedRequest {
    /// The trace, for the request.
    #[must_use]
    pub fn trace(&self) -> &Arc<RequestTrace> {
        &self.0.trace
    }
}

impl Drop for TraceUnderWay {
    fn drop(&mut self) {
        self.queue.offer(FinishedTrace {
            record: self.trace.take(),
            sampler: Arc::clone(&self.sampler),
            parent: self.parent.take(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{SettingChange, TraceLevels};

    fn on(rate: u32) -> TraceChange {
        let levels = TraceLevels {
            timestamps: true,
            tensors: false,
        };
        TraceChange {
            levels: SettingChange::Set(levels),
            rate: SettingChange::Set(rate),
            ..TraceChange::default()
        }
    }

    #[test]
    fn nothing_can_be_traced_without_a_file() {
        let tracer = Tracer::start(TraceOptions::default()).expect("no thread is needed");
        assert_eq!(
            tracer.change(None, &on(1)),
            Err("trace file name is not given".to_owned())
        );
        let rate = TraceChange {
            rate: SettingChange::Set(7),
            ..TraceChange::default()
        };
        assert_eq!(tracer.change(None, &rate), Ok(()));
        assert_eq!(tracer.settings(Some("m")).rate, 7);
        assert!(tracer.begin("m", || None).is_none());
        assert_eq!(tracer.counts(), None);
    }

    #[test]
    fn a_traced_request_is_handed_over_once() {
        // Nobody listens there any more.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        drop(listener);
        let url = url.parse().expect("an address");
        let tracer = Tracer::start(TraceOptions {
            output: TraceOutput::Collector(OtlpOptions::new(url)),
            settings: TraceSettings::default(),
        });
        let tracer = tracer.expect("a thread");
        assert!(tracer.begin("m", || panic!("nothing is traced")).is_none());
        assert!(tracer.change(None, &on(0)).is_err());
        assert_eq!(tracer.change(Some("m"), &on(1)), Ok(()));
        assert!(tracer.begin("other", || None).is_none());
        let traced = tracer.begin("m", || None).expect("chosen");
        let kept = traced.clone();
        drop(traced);
        let failed = || {
            assert!(tracer.finish(Duration::from_secs(60)));
            tracer.counts().map(|counts| counts.failed)
        };
        assert_eq!(failed(), Some(0));
        drop(kept);
        assert_eq!(failed(), Some(1));
    }
}
