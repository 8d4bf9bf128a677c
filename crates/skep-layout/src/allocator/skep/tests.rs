//! Skep's allocator: when it follows a plan, and what it does when a request differs.

use super::super::{Allocator, BlockRequest, conformance::ImaginedSource};
use super::*;

/// One step of a job: sizes, each freed when two more have come; returns where they lay.
fn step(allocator: &mut ProfileGuided, source: &mut ImaginedSource, sizes: &[u64]) -> Vec<u64> {
    let mut addresses = Vec::new();
    for (number, bytes) in sizes.iter().enumerate() {
        if number >= 2 {
            let freed = allocator.free(addresses[number - 2], source);
            assert!(freed.is_ok());
        }
        let placed = allocator.malloc(BlockRequest::of(*bytes), source);
        addresses.push(placed.expect("memory"));
    }
    for address in &addresses[sizes.len() - 2..] {
        assert!(allocator.free(*address, source).is_ok());
    }
    addresses
}

fn sizes() -> Vec<u64> {
    (0..20).map(|number| 1000 * (number * 7 % 20 + 1)).collect()
}

fn new() -> (ProfileGuided, ImaginedSource) {
    let allocator = ProfileGuided::new(SkepOptions::default());
    (allocator, ImaginedSource::new(1 << 30))
}

fn follows(allocator: &ProfileGuided) -> bool {
    let following = allocator.following.as_ref();
    following.is_some_and(|following| following.arena.is_some())
}

#[test]
fn the_third_period_is_placed_by_a_plan() {
    let (mut allocator, mut source) = new();
    for _ in 0..2 {
        step(&mut allocator, &mut source, &sizes());
        assert!(!follows(&allocator));
    }
    let third = step(&mut allocator, &mut source, &sizes());
    assert!(follows(&allocator));
    // All later ones lie at the same addresses, and ask nothing of the source.
    let bytes = source.bytes;
    for _ in 0..5 {
        assert_eq!(step(&mut allocator, &mut source, &sizes()), third);
    }
    assert_eq!(source.bytes, bytes);
    allocator.trim(&mut source);
    assert_eq!(source.bytes, 0);
    step(&mut allocator, &mut source, &sizes());
    assert!(follows(&allocator), "a plan outlives its memory");
}

#[test]
fn a_request_that_differs_ends_the_plan_and_the_period_is_learned_again() {
    let (mut allocator, mut source) = new();
    for _ in 0..3 {
        step(&mut allocator, &mut source, &sizes());
    }
    let mut other = sizes();
    other[10] += 1;
    step(&mut allocator, &mut source, &other);
    assert!(!follows(&allocator));
    // It has to repeat more often than at first.
    for _ in 0..7 {
        step(&mut allocator, &mut source, &sizes());
    }
    assert!(follows(&allocator));
}

#[test]
fn blocks_that_outlive_a_period_lie_on_the_heap() {
    let (mut allocator, mut source) = new();
    let weights = allocator.malloc(BlockRequest::of(5000), &mut source);
    let weights = weights.expect("memory");
    for _ in 0..4 {
        step(&mut allocator, &mut source, &sizes());
    }
    assert!(follows(&allocator));
    assert_eq!(allocator.free(weights, &mut source), Ok(5000));
}

#[test]
fn idle_memory_goes_back_after_its_delay() {
    let (mut allocator, mut source) = new();
    let block = allocator.malloc(BlockRequest::of(1 << 20), &mut source);
    let freed = allocator.free(block.expect("memory"), &mut source);
    assert!(freed.is_ok() && source.bytes >= 1 << 20);
    let mut touch = |seconds: u64| {
        source.now += seconds * 1_000_000_000;
        for _ in 0..CALLS {
            let block = allocator.malloc(BlockRequest::of(64), &mut source);
            let freed = allocator.free(block.expect("memory"), &mut source);
            assert!(freed.is_ok());
        }
        source.bytes
    };
    touch(1);
    assert!(touch(5) >= 1 << 20, "not yet");
    assert!(touch(20) < 1 << 20);
}
