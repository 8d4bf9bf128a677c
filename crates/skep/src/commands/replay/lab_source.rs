//! Where the allocators of a replay get their memory.

use std::time::Instant;

use anyhow::{Context, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use skep_alloc::sources::{CudaSource, HeapSource, MappedSource};
use skep_host::{EventCounts, ThreadCounters};
use skep_lab::{Bench, EventCounter, MeasuredSource, SourceOptions, UsableSource, UseEvents};
use skep_layout::allocator::Allocator;

/// A kind of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum SourceKind {
    /// An imagined device: no memory, calls by the cost model
    Simulated,
    /// This machine's memory from `mmap`: what calls really take
    Mmap,
    /// This machine's memory from the process's heap
    Heap,
    /// The memory of the first CUDA device, through its driver
    Cuda,
}

impl SourceKind {
    /// As the command line names it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Simulated => "simulated",
            Self::Mmap => "mmap",
            Self::Heap => "heap",
            Self::Cuda => "cuda",
        }
    }
}

/// The sources of a replay: one for each allocator, all alike.
#[derive(Debug, Clone)]
pub(super) struct SourceSetting {
    pub(super) kind: SourceKind,
    /// Of an imagined device; limit and failures are those of the others, too.
    pub(super) simulated: SourceOptions,
    /// Whether blocks are written and read as a program would.
    pub(super) use_blocks: bool,
}

/// Nanoseconds since it was made.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stopwatch(Instant);

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl SourceSetting {
    /// Refuses settings that contradict each other.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        if self.use_blocks && !matches!(self.kind, SourceKind::Mmap | SourceKind::Heap) {
            bail!(
                "--use-blocks needs memory of this machine, expected --source mmap or heap, got {}",
                self.kind.name()
            );
        }
        Ok(())
    }

    /// A bench of `allocator` over a source of its own.
    pub(super) fn bench<'a>(
        &self,
        allocator: Box<dyn Allocator>,
        clock: &'a dyn Fn() -> u64,
    ) -> anyhow::Result<Bench<'a>> {
        let real: Box<dyn UsableSource> = match self.kind {
            SourceKind::Simulated => return Ok(Bench::new(allocator, self.simulated.clone())),
            SourceKind::Mmap => Box::new(MappedSource::default()),
            SourceKind::Heap => Box::new(HeapSource::default()),
            SourceKind::Cuda => Box::new(CudaSource::open(0, None).context("--source cuda")?),
        };
        let SourceOptions {
            limit, fail_every, ..
        } = self.simulated;
        let mut source = MeasuredSource::new(real, clock, limit, fail_every);
        if self.use_blocks {
            source = source.with_use(Box::new(Counters(ThreadCounters::open())));
        }
        Ok(Bench::over(allocator, Box::new(source)))
    }
}

/// The counters of this thread.
#[derive(Debug)]
struct Counters(ThreadCounters);

impl EventCounter for Counters {
    fn read(&self) -> UseEvents {
        let EventCounts {
            cache_misses,
            tlb_misses,
            page_faults,
        } = self.0.read();
        UseEvents {
            cache_misses,
            tlb_misses,
            page_faults,
        }
    }
}
