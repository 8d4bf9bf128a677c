//! What a malloc and its free take, by allocator: a recurring step of a thousand blocks, of which dozens are live at once.
//!
//! `cargo bench -p skep-lab`. The device is imagined and costs nothing, so this is the allocator's own time. After two steps
//! `skep` follows its plan; the others go on as always.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use skep_lab::{SimulatedSource, SourceOptions};
use skep_layout::allocator::{Allocator, AllocatorSpec, BlockRequest};

/// Blocks of a step, and of these live at once.
const BLOCKS: usize = 1000;
const LIVE: usize = 48;

/// The sizes of a step: tensors from a few hundred bytes to 8 MiB, the same in each.
fn sizes() -> Vec<u64> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..BLOCKS)
        .map(|_| {
            let octave = 8 + next() % 15;
            (1 << octave) + next() % (1 << octave)
        })
        .collect()
}

/// One step; each block is freed when so many others have come, and all are at the end.
fn step(allocator: &mut dyn Allocator, source: &mut SimulatedSource, sizes: &[u64]) {
    let mut live = [0; LIVE];
    for (number, bytes) in sizes.iter().enumerate() {
        let slot = &mut live[number % LIVE];
        if *slot != 0 {
            let freed = allocator.free(*slot, source);
            assert!(freed.is_ok());
        }
        let placed = allocator.malloc(BlockRequest::of(*bytes), source);
        *slot = placed.expect("the device has no limit");
    }
    for address in live {
        let freed = allocator.free(address, source);
        assert!(freed.is_ok());
    }
}

fn pairs(criterion: &mut Criterion) {
    let sizes = sizes();
    let mut group = criterion.benchmark_group("pair");
    group.throughput(Throughput::Elements(BLOCKS as u64));
    group.measurement_time(Duration::from_secs(2));
    for spec in AllocatorSpec::all() {
        let mut allocator = spec.build();
        let mut source = SimulatedSource::new(SourceOptions::default());
        for _ in 0..4 {
            step(&mut *allocator, &mut source, &sizes);
        }
        let id = BenchmarkId::from_parameter(&spec);
        group.bench_function(id, |bencher| {
            bencher.iter(|| step(black_box(&mut *allocator), &mut source, &sizes));
        });
    }
    group.finish();
}

criterion_group!(benches, pairs);
criterion_main!(benches);
