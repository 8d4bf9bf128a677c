//! One trace, replayed over all chosen allocators in one pass.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use skep_lab::{Bench, BenchFigures, Lifetimes, OfflineOptimum, SourceOptions};
use skep_layout::{
    RunPlan,
    allocator::{AllocatorSpec, PlannedAllocator},
};
use skep_planner::Budget;
use skep_trace::{TraceEvent, TraceReader, Unmatched};

use super::PLANNED;
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
}

pub(super) struct AllocatorRow {
    pub(super) name: String,
    pub(super) figures: BenchFigures,
}

/// An allocator on its bench.
struct Named {
    name: String,
    bench: Bench,
}

impl TraceStudy {
    pub(super) fn new(
        path: &Path,
        specs: &[AllocatorSpec],
        with_plan: bool,
        source: &SourceOptions,
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
        let mut benches: Vec<Named> = specs
            .iter()
            .map(|spec| Named::new(spec.to_string(), Bench::new(spec.build(), source.clone())))
            .collect();
        let mut lifetimes = Lifetimes::default();
        // The plan is made of the whole trace: its replay is a second pass, over events that are kept for it.
        let mut kept: Option<Vec<TraceEvent>> = with_plan.then(Vec::new);
        let start = Instant::now();
        let clock = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        for event in &mut reader {
            let event = event.with_context(|| format!("cannot read `{name}`"))?;
            lifetimes.take(event);
            for named in &mut benches {
                named.bench.take(event, &clock);
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
            benches.push(replayed(plan, events, source, &clock));
        }
        let without_optimum = optimum.is_none().then(|| {
            format!(
                "no offline optimum: the trace has {} blocks, which are too many or too large to plan",
                lifetimes.block_count()
            )
        });
        Ok(Self {
            events: lifetimes.events(),
            blocks: lifetimes.block_count(),
            unmatched: *reader.unmatched(),
            peak_live: lifetimes.peak(),
            optimum,
            without_optimum,
            rows: benches.into_iter().map(Named::finish).collect(),
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

impl Named {
    fn new(name: String, bench: Bench) -> Self {
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
fn replayed(
    plan: &Arc<RunPlan>,
    events: &[TraceEvent],
    source: &SourceOptions,
    clock: &dyn Fn() -> u64,
) -> Named {
    let fallback: AllocatorSpec = "contiguous_best_fit"
        .parse()
        .expect("it is in the catalogue");
    let allocator = PlannedAllocator::new(Arc::clone(plan), &fallback);
    let mut bench = Bench::new(Box::new(allocator), source.clone());
    for event in events {
        bench.take(*event, clock);
    }
    Named::new(PLANNED.to_owned(), bench)
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
