//! Cases of each allocator, worked by hand from its rules.

use std::ops::Range;

use super::{AllocatorSpec, BlockRequest, Source};

/// A device whose n-th chunk or range of addresses begins at n + 1 times 2^40.
#[derive(Default)]
struct NumberedSource {
    chunks: u64,
    given_back: Vec<u64>,
}

const APART: u64 = 1 << 40;

impl NumberedSource {
    fn next(&mut self) -> Option<u64> {
        self.chunks += 1;
        Some(self.chunks * APART)
    }
}

impl Source for NumberedSource {
    fn take(&mut self, _: u64) -> Option<u64> {
        self.next()
    }

    fn give_back(&mut self, address: u64, _: u64) {
        self.given_back.push(address / APART - 1);
    }

    fn reserve(&mut self, _: u64) -> Option<u64> {
        self.next()
    }

    fn release(&mut self, _: u64, _: u64) {}

    fn commit(&mut self, _: Range<u64>) -> bool {
        true
    }

    fn decommit(&mut self, _: Range<u64>) {}

    fn page(&self) -> u64 {
        4096
    }

    fn available(&self) -> Option<u64> {
        None
    }

    fn wait(&mut self) {}

    fn now(&self) -> u64 {
        0
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What is asked of an allocator.
enum Ask {
    /// A block of so many bytes, and where it has to lie: chunk and offset.
    Malloc(u64, u64, u64),
    /// Frees the n-th block.
    Free(usize),
    /// Gives back what it can: the chunks that have to go.
    Trim(&'static [u64]),
}

use Ask::{Free, Malloc, Trim};

/// Runs a case, and compares what is reserved at its end.
fn run(spec: &str, asks: &[Ask], reserved: u64) {
    let spec: AllocatorSpec = spec.parse().expect("valid");
    let mut allocator = spec.build();
    let mut source = NumberedSource::default();
    let mut blocks = Vec::new();
    for (number, ask) in asks.iter().enumerate() {
        match ask {
            Malloc(bytes, chunk, offset) => {
                let placed = allocator.malloc(BlockRequest::of(*bytes), &mut source);
                let address = placed.expect("there is memory");
                let place = (address / APART - 1, address % APART);
                assert_eq!(
                    place,
                    (*chunk, *offset),
                    "{spec}, step {number}: {bytes} bytes"
                );
                blocks.push(address);
            }
            Free(block) => {
                let freed = allocator.free(blocks[*block], &mut source);
                assert!(freed.is_ok(), "{spec}, step {number}");
            }
            Trim(chunks) => {
                source.given_back.clear();
                allocator.trim(&mut source);
                source.given_back.sort_unstable();
                assert_eq!(source.given_back, *chunks, "{spec}, step {number}");
            }
        }
    }
    assert_eq!(allocator.figures().reserved, reserved, "{spec}");
}

#[test]
fn bfc_splits_what_is_twice_as_large() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(300, 0, 512),
        Free(0),
        Malloc(100, 0, 0),
        Malloc(400, 0, 1024),
        // The next chunk has 4 MiB, and is not twice as large: all of it is the block's.
        Malloc(3 * MIB, 1, 0),
        Malloc(MIB, 0, 1536),
        // 8 MiB, doubled until it is enough.
        Malloc(9 * MIB, 2, 0),
        // Not twice as large either: nothing is left of it.
        Malloc(6 * MIB, 3, 0),
    ];
    run("bfc", &asks, 38 * MIB);
}

#[test]
fn bfc_without_growth_takes_all_at_once() {
    let asks = [Malloc(1, 0, 0), Malloc(30 * MIB, 0, 256), Trim(&[])];
    run("bfc:allow_growth=false,limit=64MiB", &asks, 64 * MIB);
}

#[test]
fn ort_arena_grows_by_doubling_or_by_what_is_asked() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(3 * MIB / 2, 1, 0),
        Malloc(5 * MIB, 2, 0),
        Free(1),
        Free(2),
        // The first chunk stays, whatever lies in it.
        Trim(&[1, 2]),
        Free(0),
        Trim(&[]),
    ];
    run("ort_arena", &asks, MIB);
    let asks = [
        Malloc(300, 0, 0),
        Malloc(300, 1, 0),
        Free(0),
        Malloc(100, 0, 0),
        Malloc(256, 0, 256),
        Free(1),
        Trim(&[1]),
    ];
    run("ort_arena:strategy=same_as_requested", &asks, 512);
}

#[test]
fn pytorch_has_two_pools_and_three_sizes_of_segments() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(MIB, 0, 512),
        // Above 1 MiB: the large pool, in a segment of 20 MiB.
        Malloc(MIB + 1, 1, 0),
        Malloc(12 * MIB, 1, MIB + 512),
        // A segment of its own, in multiples of 2 MiB.
        Malloc(11 * MIB, 2, 0),
        // What is left of it is not more than 1 MiB: it stays with the block.
        Malloc(512, 0, MIB + 512),
        Free(4),
        Trim(&[2]),
    ];
    run("pytorch_caching", &asks, 22 * MIB);
    // A small request gets no block that is never split.
    let asks = [
        Malloc(40 * MIB, 0, 0),
        Free(0),
        Malloc(5 * MIB, 1, 0),
        Malloc(36 * MIB, 0, 0),
    ];
    run("pytorch_caching:max_split_size=20MiB", &asks, 60 * MIB);
    // Between 1 MiB and 2 MiB there are four sizes.
    let asks = [
        Malloc(MIB + 1, 0, 0),
        Malloc(MIB + 300 * KIB, 0, MIB + 256 * KIB),
    ];
    run(
        "pytorch_caching:roundup_power2_divisions=4",
        &asks,
        20 * MIB,
    );
    // One range of addresses for each pool.
    let asks = [
        Malloc(5 * MIB, 0, 0),
        Malloc(18 * MIB, 0, 5 * MIB),
        Malloc(100, 1, 0),
        Free(1),
        Trim(&[]),
    ];
    run("pytorch_caching:expandable_segments=true", &asks, 22 * MIB);
}

#[test]
fn mxnet_reuses_equal_sizes_alone() {
    let asks = [
        Malloc(300, 0, 0),
        Free(0),
        Malloc(4000, 0, 0),
        Malloc(5000, 1, 0),
        Malloc(3 * MIB, 2, 0),
        Free(3),
        Trim(&[2]),
    ];
    run("mxnet_naive", &asks, 12 * KIB);
    let asks = [
        Malloc(5000, 0, 0),
        Malloc(17 * MIB, 1, 0),
        Malloc(300, 2, 0),
        Free(0),
        Malloc(8000, 0, 0),
    ];
    run("mxnet_rounded", &asks, 12 * KIB + 32 * MIB);
}

#[test]
fn rmm_pool_doubles_and_splits_exactly() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(300, 1, 0),
        Malloc(300, 2, 0),
        Malloc(100, 2, 512),
        Malloc(100, 2, 768),
        Free(0),
        Trim(&[]),
    ];
    run("rmm_pool", &asks, 2048);
    // Half of what remains.
    let asks = [Malloc(MIB, 0, 0), Malloc(40 * MIB, 1, 0)];
    run("rmm_pool:limit=64MiB,initial=4MiB", &asks, 44 * MIB);
}

#[test]
fn rmm_arena_takes_superblocks_of_the_global_arena() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(5 * MIB / 2, 0, MIB),
        Malloc(2049, 0, 512),
        Free(1),
        // The empty superblock went back.
        Malloc(MIB, 0, MIB),
    ];
    run("rmm_arena:arena_size=8MiB", &asks, 8 * MIB);
}

#[test]
fn bins_take_many_equal_blocks_at_once() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(256 * KIB, 0, 256 * KIB),
        Malloc(300 * KIB, 1, 0),
        Malloc(5 * MIB, 2, 0),
        Free(3),
    ];
    run("binning", &asks, 96 * MIB);
}

#[test]
fn buddies_join_again() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(100, 1, 0),
        Free(0),
        Malloc(100, 0, 0),
        Malloc(100, 0, 256),
        Free(2),
        Free(3),
        Malloc(512, 0, 0),
        Free(1),
        Trim(&[1]),
    ];
    run("buddy:chunk=256", &asks, 512);
    // One range of addresses, with memory for the pages up to the highest block.
    let asks = [
        Malloc(5000, 0, 0),
        Malloc(300, 0, 8 * KIB),
        Malloc(2000, 0, 10 * KIB),
        Free(2),
        Free(0),
        Trim(&[]),
    ];
    run("buddy", &asks, 12 * KIB);
}

#[test]
fn dlmalloc_prefers_gaps_to_the_end_and_maps_large_blocks() {
    let asks = [
        // 8 bytes for tags, in multiples of 16.
        Malloc(100, 0, 0),
        Malloc(100, 0, 112),
        Malloc(1000, 0, 224),
        Free(0),
        Malloc(50, 0, 0),
        // The remainder of that.
        Malloc(24, 0, 64),
        Malloc(300_000, 1, 0),
        Free(5),
        // Smaller than the chunk that was freed: on the heap from now on.
        Malloc(300_000, 0, 1232),
    ];
    run("dlmalloc", &asks, 5 * 64 * KIB);
}

#[test]
fn first_fit_and_best_fit_differ() {
    let begin = || {
        [
            Malloc(1024, 0, 0),
            Malloc(256, 0, 1024),
            Malloc(512, 0, 1280),
            Malloc(256, 0, 1792),
            Free(0),
            Free(2),
        ]
    };
    let mut asks = Vec::from(begin());
    asks.push(Malloc(512, 0, 0));
    run("first_fit", &asks, 4096);
    let mut asks = Vec::from(begin());
    asks.push(Malloc(512, 0, 1280));
    run("contiguous_best_fit", &asks, 4096);
}

#[test]
fn slabs_hold_one_class_and_extents_whole_pages() {
    let asks = [
        // Class 112, in slabs of seven pages.
        Malloc(100, 0, 0),
        Malloc(110, 0, 112),
        Malloc(20_000, 0, 28_672),
        Free(0),
        Malloc(97, 0, 0),
    ];
    run("slab", &asks, 28_672 + 20_480);
}

#[test]
fn tlsf_takes_a_class_whose_pieces_all_fit() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(300, 0, 512),
        Free(0),
        Malloc(256, 0, 0),
        // Pieces of 65 KiB are in the class from 64 KiB to 66 KiB, in which not all have 65 KiB.
        Malloc(65 * KIB, 0, 1024),
        Malloc(256, 0, 256),
        Malloc(256, 0, 1024 + 65 * KIB),
        Free(3),
        Malloc(65 * KIB, 0, 1280 + 65 * KIB),
    ];
    run("tlsf", &asks, 2 * MIB);
}

#[test]
fn the_model_of_cuda_gives_free_chunks_back_when_it_waits() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(40 * MIB, 1, 0),
        Malloc(513, 0, 512),
        Free(1),
        Trim(&[1]),
    ];
    run("cuda_async", &asks, 32 * MIB);
}

#[test]
fn skep_has_memory_behind_its_blocks_alone() {
    let asks = [
        Malloc(300, 0, 0),
        Malloc(300, 0, 320),
        Malloc(100 * KIB, 1, 0),
        Malloc(50 * KIB, 1, 100 * KIB),
        Free(2),
        // It does not fit into the gap, whose pages pay for it: 100 KiB of the 120 KiB that have no memory yet.
        Malloc(120 * KIB, 1, 150 * KIB),
    ];
    run("skep", &asks, 4 * KIB + 172 * KIB);
}
