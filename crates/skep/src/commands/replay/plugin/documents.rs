//! What passes between a replay and the process of a plug-in.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use skep_lab::{
    BenchFigures, BlockSpan, BlockUse, CallTimes, CostModel, Locality, SourceCalls, SourceOptions,
    UseEvents,
};

use crate::commands::replay::lab_source::{SourceKind, SourceSetting};

/// What a child is to do: its first line of input.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PluginOrder {
    pub(super) library: PathBuf,
    pub(super) options: String,
    pub(super) source: SourceDocument,
    /// Where the number of the current event is written.
    pub(super) progress: PathBuf,
}

/// What a child answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum PluginAnswer {
    Figures(Box<FiguresDocument>),
    Failed(String),
}

/// A [`SourceSetting`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SourceDocument {
    kind: SourceKind,
    use_blocks: bool,
    limit: Option<u64>,
    page: u64,
    fail_every: u64,
    /// Costs as `--cost` takes them.
    cost: Vec<String>,
}

impl From<&SourceSetting> for SourceDocument {
    fn from(setting: &SourceSetting) -> Self {
        let SourceSetting {
            kind,
            simulated,
            use_blocks,
        } = setting;
        let cost = simulated.cost.entries();
        Self {
            kind: *kind,
            use_blocks: *use_blocks,
            limit: simulated.limit,
            page: simulated.page,
            fail_every: simulated.fail_every,
            cost: cost.map(|(name, value)| format!("{name}={value}")).to_vec(),
        }
    }
}

impl SourceDocument {
    pub(super) fn setting(self) -> anyhow::Result<SourceSetting> {
        let mut cost = CostModel::default();
        for entry in &self.cost {
            cost.set(entry)?;
        }
        Ok(SourceSetting {
            kind: self.kind,
            simulated: SourceOptions {
                limit: self.limit,
                page: self.page,
                fail_every: self.fail_every,
                cost,
            },
            use_blocks: self.use_blocks,
        })
    }
}

/// [`BenchFigures`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct FiguresDocument {
    peak_reserved: u64,
    peak_in_use: u64,
    peak_padding: u64,
    fragmentation: [f64; 2],
    reserved_at_end: u64,
    reserved_after_trim: u64,
    out_of_memory: u64,
    /// Take, give back, commit, decommit, reserve, wait, refused.
    calls: [u64; 7],
    source_ns: f64,
    /// Simulated and measured: p50, p99, mean.
    times: [(u64, u64, f64); 2],
    mean_distance: f64,
    huge_pages: u64,
    /// Nanoseconds, bytes; cache misses, TLB misses, page faults.
    used: Option<(u64, u64, [Option<u64>; 3])>,
    curve: Vec<(u64, u64, u64)>,
    /// Start, end, address, bytes.
    spans: Vec<[u64; 4]>,
}

impl From<BenchFigures> for FiguresDocument {
    fn from(figures: BenchFigures) -> Self {
        let BenchFigures {
            peak_reserved,
            peak_in_use,
            peak_padding,
            fragmentation_tensorflow,
            fragmentation_pytorch,
            reserved_at_end,
            reserved_after_trim,
            out_of_memory,
            calls,
            source_ns,
            simulated,
            measured,
            locality,
            used,
            curve,
            spans,
        } = figures;
        let SourceCalls {
            take,
            give_back,
            commit,
            decommit,
            reserve,
            wait,
            refused,
        } = calls;
        let events =
            |events: UseEvents| [events.cache_misses, events.tlb_misses, events.page_faults];
        Self {
            peak_reserved,
            peak_in_use,
            peak_padding,
            fragmentation: [fragmentation_tensorflow, fragmentation_pytorch],
            reserved_at_end,
            reserved_after_trim,
            out_of_memory,
            calls: [take, give_back, commit, decommit, reserve, wait, refused],
            source_ns,
            times: [simulated, measured].map(|times| (times.p50, times.p99, times.mean)),
            mean_distance: locality.mean_distance,
            huge_pages: locality.huge_pages,
            used: used.map(|used| (used.ns, used.bytes, events(used.events))),
            curve,
            spans: spans
                .iter()
                .map(|span| [span.start, span.end, span.address, span.bytes])
                .collect(),
        }
    }
}

impl FiguresDocument {
    pub(super) fn figures(self) -> BenchFigures {
        let [take, give_back, commit, decommit, reserve, wait, refused] = self.calls;
        let [simulated, measured] = self
            .times
            .map(|(p50, p99, mean)| CallTimes { p50, p99, mean });
        let [fragmentation_tensorflow, fragmentation_pytorch] = self.fragmentation;
        let used = self.used.map(|(ns, bytes, events)| {
            let [cache_misses, tlb_misses, page_faults] = events;
            let events = UseEvents {
                cache_misses,
                tlb_misses,
                page_faults,
            };
            BlockUse { ns, bytes, events }
        });
        let spans = self.spans.into_iter();
        let spans = spans.map(|[start, end, address, bytes]| BlockSpan {
            start,
            end,
            address,
            bytes,
        });
        BenchFigures {
            peak_reserved: self.peak_reserved,
            peak_in_use: self.peak_in_use,
            peak_padding: self.peak_padding,
            fragmentation_tensorflow,
            fragmentation_pytorch,
            reserved_at_end: self.reserved_at_end,
            reserved_after_trim: self.reserved_after_trim,
            out_of_memory: self.out_of_memory,
            calls: SourceCalls {
                take,
                give_back,
                commit,
                decommit,
                reserve,
                wait,
                refused,
            },
            source_ns: self.source_ns,
            simulated,
            measured,
            locality: Locality {
                mean_distance: self.mean_distance,
                huge_pages: self.huge_pages,
            },
            used,
            curve: self.curve,
            spans: spans.collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use skep_lab::Bench;
    use skep_layout::allocator::AllocatorSpec;
    use skep_trace::{BlockId, TraceEvent};

    use super::*;

    #[test]
    fn figures_come_over_as_they_are() {
        let spec: AllocatorSpec = "bfc".parse().expect("valid");
        let mut bench = Bench::new(spec.build(), SourceOptions::default());
        for number in 0..20 {
            let block = BlockId(number);
            let bytes = 1000 * u64::from(number + 1);
            bench.take(
                TraceEvent::Malloc {
                    block,
                    bytes,
                    stream: 0,
                },
                &|| 7,
            );
            if number % 3 == 2 {
                bench.take(TraceEvent::Free { block }, &|| 9);
            }
        }
        let figures = bench.finish();
        assert!(figures.peak_reserved > 0 && figures.spans.len() == 20);
        let text = serde_json::to_string(&FiguresDocument::from(figures.clone())).expect("text");
        let read: FiguresDocument = serde_json::from_str(&text).expect("a document");
        assert_eq!(read.figures(), figures);
    }

    #[test]
    fn a_setting_comes_over_as_it_is() {
        let mut cost = CostModel::cuda();
        cost.set("byte_ns=0.0123").expect("a cost");
        let setting = SourceSetting {
            kind: SourceKind::Heap,
            simulated: SourceOptions {
                limit: Some(5),
                page: 8192,
                fail_every: 3,
                cost,
            },
            use_blocks: true,
        };
        let text = serde_json::to_string(&SourceDocument::from(&setting)).expect("text");
        let read: SourceDocument = serde_json::from_str(&text).expect("a document");
        let read = read.setting().expect("a setting");
        assert_eq!(read.simulated, setting.simulated);
        assert_eq!((read.kind, read.use_blocks), (SourceKind::Heap, true));
    }
}
