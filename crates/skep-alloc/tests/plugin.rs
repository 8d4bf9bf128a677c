//! Allocators in libraries: the example, and libraries that do not keep the contract.
#![allow(unsafe_code, reason = "freeing is unsafe")]

mod common;

use std::path::Path;

use common::{in_repository, library, library_of};
use skep_alloc::{
    Arena, RunAllocator, RunMode, RunReport, free, malloc,
    plugin::{PluginError, PluginLibrary},
};
use skep_layout::allocator::{Allocator, BlockRequest};
use skep_tensor::RunBound;
use tempfile::TempDir;

/// An allocator with one chunk that places every block at its beginning.
const OVERLAPPING: &str = r#"
#include <stdlib.h>
#include "skep_allocator.h"
struct state { const skep_source *source; uint64_t base, in_use; };
void *skep_allocator_create(uint32_t abi, const skep_source *source, const char *options) {
    struct state *self = calloc(1, sizeof *self);
    (void)abi; (void)options;
    self->source = source;
    return self;
}
uint64_t skep_allocator_malloc(void *me, uint64_t bytes, uint64_t alignment, uint64_t stream) {
    struct state *self = me;
    (void)alignment; (void)stream;
    if (!self->base) self->base = self->source->take(self->source->context, 1 << 20);
    self->in_use += bytes;
    return self->base;
}
uint64_t skep_allocator_free(void *me, uint64_t address) { (void)me; (void)address; return 0; }
void skep_allocator_stats(const void *me, skep_allocator_figures *figures) {
    const struct state *self = me;
    *figures = (skep_allocator_figures){ self->in_use, 0, self->base ? 1 << 20 : 0, 0 };
}
void skep_allocator_destroy(void *me) { free(me); }
"#;

fn folder() -> TempDir {
    TempDir::new().expect("a folder")
}

fn example(folder: &Path) -> PluginLibrary {
    let path = library(folder, &in_repository("examples/allocator/whole.c"));
    PluginLibrary::open(&path).expect("the example")
}

/// Runs with `own`: blocks of these sizes, each filled, the earlier one of two freed first.
fn run(own: &RunAllocator, sizes: &[usize]) -> RunReport {
    let charge = &mut RunBound::default().begin(0);
    let blocks = || {
        let filled: Vec<(*mut u8, usize)> = sizes
            .iter()
            .zip(1_u8..)
            .map(|(size, letter)| {
                let block = malloc(*size);
                assert!(!block.is_null());
                // SAFETY: the block has so many bytes.
                unsafe { block.write_bytes(letter, *size) };
                (block, *size)
            })
            .collect();
        for ((block, size), letter) in filled.into_iter().zip(1_u8..) {
            // SAFETY: the block was filled above, and is freed once.
            unsafe {
                let bytes = std::slice::from_raw_parts(block, size);
                assert!(
                    bytes.iter().all(|byte| *byte == letter),
                    "a block of its own"
                );
                free(block);
            }
        }
    };
    Arena::new().run(RunMode::Allocator(own), charge, blocks).1
}

#[test]
fn the_example_serves_runs() {
    let folder = folder();
    let own = example(folder.path()).build("").expect("an allocator");
    let own = RunAllocator::new(Box::new(own));
    let report = run(&own, &[100, 5000, 300_000, 100]);
    assert_eq!((report.peak, report.unplanned), (305_200, 0));
    let figures = own.figures();
    // Each block in a chunk of whole pages; the last one in a new chunk, since the first is in use.
    assert_eq!(
        (figures.in_use, figures.reserved),
        (0, 4096 + 8192 + 303_104 + 4096)
    );
    run(&own, &[200, 90, 4097]);
    assert_eq!(
        own.figures().reserved,
        figures.reserved,
        "chunks are used again"
    );
}

#[test]
fn what_a_library_lacks_is_named() {
    let folder = folder();
    let lacking = OVERLAPPING.replace("skep_allocator_stats", "skep_allocator_statistics");
    let lacking = library_of(
        folder.path(),
        "lacking",
        &format!("{lacking}\nint unused = 1;\n"),
    );
    let error = PluginLibrary::open(&lacking).expect_err("a function is missing");
    assert!(matches!(
        &error,
        PluginError::Symbol {
            symbol: "skep_allocator_stats",
            ..
        }
    ));
    let absent = folder.path().join("libabsent.so");
    let error = PluginLibrary::open(&absent).expect_err("there is no such file");
    assert!(
        error
            .to_string()
            .contains("libabsent.so` cannot be opened as a library: "),
        "{error}"
    );
    let library = example(folder.path());
    let error = library
        .build("size=1")
        .expect_err("the example has no options");
    assert!(
        error
            .to_string()
            .ends_with("version 1 of the interface and options `size=1`"),
        "{error}"
    );
    assert!(matches!(
        library.build("a\0b"),
        Err(PluginError::Options { .. })
    ));
}

#[test]
fn sizes_that_no_memory_has_are_refused() {
    let folder = folder();
    let mut own = example(folder.path()).build("").expect("an allocator");
    let mut source = skep_alloc::sources::MappedSource::default();
    for bytes in [u64::MAX, 1 << 63, 1 << 62, (1 << 62) - 1] {
        assert!(
            own.malloc(BlockRequest::of(bytes), &mut source).is_err(),
            "{bytes}"
        );
    }
    assert_eq!(own.fault(), None);
    assert!(own.malloc(BlockRequest::of(1), &mut source).is_ok());
}

#[test]
fn the_heap_serves_runs_whose_allocator_breaks_its_contract() {
    let folder = folder();
    let path = library_of(folder.path(), "overlapping", OVERLAPPING);
    let library = PluginLibrary::open(&path).expect("it has all functions");
    let own = RunAllocator::new(Box::new(library.build("").expect("an allocator")));
    let report = run(&own, &[100, 200, 300]);
    assert_eq!(
        (report.peak, report.unplanned),
        (600, 2),
        "the second block was the first fault"
    );
    let fault = own.fault().expect("a fault").to_string();
    assert!(fault.contains("block 1 (200 bytes at "), "{fault}");
    assert!(fault.contains("overlaps block 0 (100 bytes at "), "{fault}");
    let report = run(&own, &[100]);
    assert_eq!(report.unplanned, 1);
}
