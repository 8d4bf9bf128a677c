//! One trace, replayed over all chosen allocators in one pass.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use skep_lab::{Bench, BenchFigures, Lifetimes, OfflineOptimum};
use skep_layout::{
    RunPlan,
    allocator::{AllocatorSpec, PlannedAllocator},
};
use skep_planner::Budget;
use skep_trace::{TraceEvent, TraceReader, Unmatched};

use super::{
    PLANNED,
    lab_source::{SourceSetting, Stopwatch},
    plugin::{PluginBench, PluginChoice},
};
use crate::{cores::AllCores, progress::Progress};

/// What came of a trace.
pub(super) struct TraceStudy {
    pub(super) name: String,
    pub(super) events: u64,
    pub(super) blocks: usize,
    pub(super) unmatched: Unmatched,
    pub(super) peak_live: u64,
    pub(super) optimum: Option<OfflineOptimum>,
    /// Why there is no optimum.
    pub(super) without_optimum: Option<String>,
    /// In the order in which they were chosen.
    pub(super) rows: Vec<AllocatorRow>,
    /// Plug-ins that did not get to the end.
    pub(super) failed: Vec<FailedRow>,
}

/// What is replayed.
pub(super) struct ChosenAllocators {
    pub(super) specs: Vec<AllocatorSpec>,
    pub(super) plugins: Vec<PluginChoice>,
    /// Whether the offline optimum is replayed as well.
    pub(super) with_plan: bool,
}

/// A plug-in that crashed, hung or broke its contract.
pub(super) struct FailedRow {
    pub(super) name: String,
    pub(super) why: String,
}

pub(super) struct AllocatorRow {
    pub(super) name: String,
    pub(super) figures: BenchFigures,
}

/// An allocator on its bench.
struct Named<'a> {
    name: String,
    bench: Bench<'a>,
}

impl TraceStudy {
    pub(super) fn new(
        path: &Path,
        chosen: &ChosenAllocators,
        source: &SourceSetting,
        budget: Duration,
    ) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).with_context(|| format!("cannot open `{name}`"))?;
        let bytes = file.metadata().map_or(0, |metadata| metadata.len());
        let progress = Progress::new("MiB", mib(bytes) + 1, true);
        progress.name(&*name);
        let progress = Arc::new(Mutex::new(progress));
        let input = Counted {
            file: BufReader::new(file),
            read: 0,
            progress: Arc::clone(&progress),
        };
        let mut reader =
            TraceReader::open(input).with_context(|| format!("cannot read `{name}`"))?;
        let stopwatch = Stopwatch::start();
        let clock = || stopwatch.ns();
        let mut benches: Vec<Named<'_>> = Vec::new();
        for spec in &chosen.specs {
            let bench = source.bench(spec.build(), &clock)?;
            benches.push(Named::new(spec.to_string(), bench));
        }
        let plugins = chosen.plugins.iter();
        let plugins = plugins.map(|plugin| PluginBench::start(plugin, source));
        let mut plugins: Vec<PluginBench> = plugins.collect::<Result<_, _>>()?;
        let mut lifetimes = Lifetimes::default();
        // The plan is made of the whole trace: its replay is a second pass, over events that are kept for it.
        let mut kept: Option<Vec<TraceEvent>> = chosen.with_plan.then(Vec::new);
        for event in &mut reader {
            let event = event.with_context(|| format!("cannot read `{name}`"))?;
            lifetimes.take(event);
            for named in &mut benches {
                named.bench.take(event, &clock);
            }
            for plugin in &mut plugins {
                plugin.take(event);
            }
            if let Some(events) = &mut kept {
                events.push(event);
                if events.len() > MAX_KEPT {
                    kept = None;
                }
            }
        }
        if lifetimes.block_count() == 0 {
            bail!("`{name}` has no allocation that can be followed");
        }
        let end = Instant::now() + budget;
        let stop = || Instant::now() >= end;
        let budget = Budget {
            nodes: u64::MAX,
            should_stop: &stop,
        };
        let optimum = lifetimes.optimum(&budget, &AllCores::new());
        if let (Some(events), Some(optimum)) = (&kept, &optimum)
            && let Some(plan) = &optimum.plan
        {
            benches.push(replayed(plan, events, source, &clock)?);
        }
        let without_optimum = optimum.is_none().then(|| {
            format!(
                "no offline optimum: the trace has {} blocks, which are too many or too large to plan",
                lifetimes.block_count()
            )
        });
        let mut rows: Vec<AllocatorRow> = benches.into_iter().map(Named::finish).collect();
        let mut failed = Vec::new();
        for plugin in plugins {
            let name = plugin.name.clone();
            match plugin.finish() {
                Ok(figures) => rows.push(AllocatorRow { name, figures }),
                Err(why) => failed.push(FailedRow { name, why }),
            }
        }
        Ok(Self {
            events: lifetimes.events(),
            blocks: lifetimes.block_count(),
            unmatched: *reader.unmatched(),
            peak_live: lifetimes.peak(),
            optimum,
            without_optimum,
            rows,
            failed,
            name,
        })
    }

    /// The denominator of ratios to the optimum: the offline optimum, or the peak if no optimum was computed.
    pub(super) fn floor(&self) -> u64 {
        self.optimum
            .as_ref()
            .map_or(self.peak_live, |optimum| optimum.bytes)
    }
}

/// Events that are kept for the second pass at most: 400 MB.
const MAX_KEPT: usize = 1 << 24;

impl<'a> Named<'a> {
    fn new(name: String, bench: Bench<'a>) -> Self {
        Self { name, bench }
    }

    fn finish(self) -> AllocatorRow {
        AllocatorRow {
            name: self.name,
            figures: self.bench.finish(),
        }
    }
}

/// The optimum's plan over the trace that it was made of.
fn replayed<'a>(
    plan: &Arc<RunPlan>,
    events: &[TraceEvent],
    source: &SourceSetting,
    clock: &'a dyn Fn() -> u64,
) -> anyhow::Result<Named<'a>> {
    let fallback: AllocatorSpec = "contiguous_best_fit"
        .parse()
        .expect("it is in the catalogue");
    let allocator = PlannedAllocator::new(Arc::clone(plan), &fallback);
    let mut bench = source.bench(Box::new(allocator), clock)?;
    for event in events {
        bench.take(*event, clock);
    }
    Ok(Named::new(PLANNED.to_owned(), bench))
}

fn mib(bytes: u64) -> usize {
    usize::try_from(bytes >> 20).unwrap_or(usize::MAX - 1)
}

/// A file that shows how far it was read.
struct Counted {
    file: BufReader<File>,
    read: u64,
    progress: Arc<Mutex<Progress>>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        let before = mib(self.read);
        self.read += count as u64;
        for _ in before..mib(self.read) {
            skep_host::lock(&self.progress).step();
        }
        Ok(count)
    }
}
