//! What holds for every allocator, whatever is asked of it.

use std::ops::Range;

use proptest::{prelude::*, sample::Index};

use super::{
    Allocator, AllocatorSpec, BlockRequest, CATALOGUE, CHUNK_ALIGNMENT, MemoryFigures, NotInUse,
    OutOfMemory, Source, ValidatedAllocator,
};

/// An imagined device. What allocators do with it is checked by a [`ValidatedAllocator`].
#[derive(Debug)]
pub(super) struct ImaginedSource {
    next: u64,
    limit: u64,
    pub(super) bytes: u64,
    pub(super) page: u64,
    pub(super) now: u64,
}

impl ImaginedSource {
    pub(super) fn new(limit: u64) -> Self {
        Self {
            next: 1 << 30,
            limit,
            bytes: 0,
            page: 4096,
            now: 0,
        }
    }

    fn addresses(&mut self, bytes: u64) -> u64 {
        let address = self.next;
        // Chunks of a device do not touch, and begin at odd multiples of what they are aligned to.
        self.next = (address + bytes).next_multiple_of(1 << 20) + (1 << 20) + CHUNK_ALIGNMENT;
        address
    }

    fn give(&mut self, bytes: u64) -> bool {
        let is_given = bytes <= self.limit - self.bytes;
        self.bytes += if is_given { bytes } else { 0 };
        is_given
    }
}

impl Source for ImaginedSource {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let is_given = self.give(bytes);
        is_given.then(|| self.addresses(bytes).next_multiple_of(CHUNK_ALIGNMENT))
    }

    fn give_back(&mut self, _: u64, bytes: u64) {
        self.bytes -= bytes;
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        let address = self.addresses(bytes + self.page);
        Some(address.next_multiple_of(self.page))
    }

    fn release(&mut self, _: u64, _: u64) {}

    fn commit(&mut self, pages: Range<u64>) -> bool {
        self.give(pages.end - pages.start)
    }

    fn decommit(&mut self, pages: Range<u64>) {
        self.bytes -= pages.end - pages.start;
    }

    fn page(&self) -> u64 {
        self.page
    }

    fn available(&self) -> Option<u64> {
        Some(self.limit - self.bytes)
    }

    fn wait(&mut self) {}

    fn now(&self) -> u64 {
        self.now
    }
}

#[derive(Clone, Debug)]
enum Step {
    Malloc {
        bytes: u64,
        alignment: u64,
        stream: u64,
    },
    Free(Index),
    Trim,
    Later(u64),
    /// The last sizes once more, each freed after the next.
    Repeat(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let bytes = prop_oneof![
        8 => 1_u64..3000,
        4 => 1_u64..200_000,
        2 => 1_u64..(12 << 20),
        1 => (1_u64 << 40)..u64::MAX,
    ];
    let alignment = prop_oneof![6 => Just(0), 2 => 0_u32..10, 1 => 10_u32..17];
    let malloc = (bytes, alignment, 0_u64..3).prop_map(|(bytes, shift, stream)| Step::Malloc {
        bytes,
        alignment: 1 << shift,
        stream,
    });
    let step = prop_oneof![
        12 => malloc,
        9 => any::<Index>().prop_map(Step::Free),
        1 => Just(Step::Trim),
        1 => (1_u64..20_000_000_000).prop_map(Step::Later),
        1 => (9_usize..40).prop_map(Step::Repeat),
    ];
    prop::collection::vec(step, 0..120)
}

/// An allocator under test, and its blocks.
struct Checked {
    allocator: ValidatedAllocator,
    source: ImaginedSource,
    live: Vec<u64>,
    sizes: Vec<u64>,
}

impl Checked {
    fn malloc(&mut self, request: BlockRequest) -> Result<Option<u64>, TestCaseError> {
        let before = self.allocator.figures();
        let placed = self.allocator.malloc(request, &mut self.source);
        self.check()?;
        match placed {
            Ok(address) => {
                self.live.push(address);
                self.sizes.push(request.bytes);
                Ok(Some(address))
            }
            Err(OutOfMemory { bytes }) => {
                prop_assert_eq!(bytes, request.bytes);
                let after = self.allocator.figures();
                prop_assert_eq!(
                    (after.in_use, after.padding),
                    (before.in_use, before.padding)
                );
                Ok(None)
            }
        }
    }

    fn free(&mut self, address: u64) -> Result<(), TestCaseError> {
        self.live.retain(|other| *other != address);
        prop_assert!(self.allocator.free(address, &mut self.source).is_ok());
        let again = self.allocator.inner.free(address, &mut self.source);
        prop_assert_eq!(again, Err(NotInUse { address }), "freed twice");
        self.check()
    }

    /// No fault, and the source agrees about what it has given.
    fn check(&self) -> Result<(), TestCaseError> {
        let fault = self.allocator.fault();
        prop_assert!(fault.is_none(), "{}", fault.expect("a fault"));
        prop_assert_eq!(self.allocator.figures().reserved, self.source.bytes);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Malloc {
                bytes,
                alignment,
                stream,
            } => {
                self.malloc(BlockRequest {
                    bytes: *bytes,
                    alignment: *alignment,
                    stream: *stream,
                })?;
            }
            Step::Free(which) if !self.live.is_empty() => {
                self.free(*which.get(&self.live))?;
            }
            Step::Free(_) => {
                let foreign = self.allocator.inner.free(4096, &mut self.source);
                prop_assert_eq!(foreign, Err(NotInUse { address: 4096 }));
            }
            Step::Trim => {
                self.allocator.trim(&mut self.source);
                self.check()?;
            }
            Step::Later(ns) => self.source.now += ns,
            Step::Repeat(count) => {
                let from = self.sizes.len().saturating_sub(*count);
                let sizes = self.sizes[from..].to_vec();
                for _ in 0..4 {
                    let mut last = None;
                    for bytes in &sizes {
                        let block = self.malloc(BlockRequest::of(*bytes))?;
                        if let Some(last) = last {
                            self.free(last)?;
                        }
                        last = block;
                    }
                    if let Some(last) = last {
                        self.free(last)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn follow(
    spec: &AllocatorSpec,
    (limit, page): (u64, u64),
    steps: &[Step],
) -> Result<(), TestCaseError> {
    let mut checked = Checked {
        allocator: ValidatedAllocator::new(spec.build()),
        source: ImaginedSource {
            page,
            ..ImaginedSource::new(limit)
        },
        live: Vec::new(),
        sizes: Vec::new(),
    };
    for step in steps {
        checked.step(step)?;
    }
    while let Some(address) = checked.live.last() {
        checked.free(*address)?;
    }
    let idle = checked.allocator.figures();
    prop_assert_eq!((idle.in_use, idle.padding), (0, 0));
    checked.allocator.trim(&mut checked.source);
    checked.check()
}

/// Specifications beside the defaults whose rules differ.
const VARIANTS: [&str; 11] = [
    "buddy:chunk=1KiB",
    "bfc:allow_growth=false,limit=64MiB",
    "bfc:garbage_collection=true",
    "ort_arena:strategy=same_as_requested",
    "pytorch_caching:max_split_size=1MiB",
    "pytorch_caching:roundup_power2_divisions=4",
    "pytorch_caching:garbage_collection_threshold=0.5,limit=64MiB",
    "pytorch_caching:expandable_segments=true",
    "rmm_pool:initial=1MiB,limit=64MiB",
    "dlmalloc:map_threshold=4KiB",
    "cuda_async:synchronise_every=3,chunk=2MiB",
];

fn specs() -> Vec<AllocatorSpec> {
    let variants = VARIANTS.iter().map(|text| text.parse().expect("valid"));
    AllocatorSpec::all().into_iter().chain(variants).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// No overlap, alignment, figures that are exact, errors that leave the state usable.
    #[test]
    fn every_allocator_keeps_its_contract(
        steps in steps(),
        shift in 20_u32..34,
        page in prop_oneof![Just(12), Just(16), Just(21)],
    ) {
        for spec in specs() {
            follow(&spec, (1 << shift, 1 << page), &steps)
                .map_err(|error| TestCaseError::fail(format!("{spec}: {error}")))?;
        }
    }
}

/// Those that may give memory back have none when all is freed.
#[test]
fn what_is_free_goes_back() {
    let keeps = ["bfc", "rmm_pool", "rmm_arena", "binning", "ort_arena"];
    for entry in CATALOGUE
        .iter()
        .filter(|entry| !keeps.contains(&entry.name))
    {
        let spec: AllocatorSpec = entry.name.parse().expect("valid");
        let mut source = ImaginedSource::new(1 << 34);
        let mut allocator = ValidatedAllocator::new(spec.build());
        let blocks: Vec<u64> = [100, 5000, 300_000, 3 << 20, 40 << 20, 100]
            .iter()
            .map(|bytes| {
                allocator
                    .malloc(BlockRequest::of(*bytes), &mut source)
                    .expect("memory")
            })
            .collect();
        for block in blocks {
            allocator.free(block, &mut source).expect("in use");
        }
        allocator.trim(&mut source);
        assert_eq!(
            (source.bytes, allocator.figures()),
            (0, MemoryFigures::default()),
            "{spec}"
        );
    }
}
