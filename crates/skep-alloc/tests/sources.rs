//! Every allocator over every source of memory that this machine has, and over a CUDA driver that only counts.
#![allow(
    unsafe_code,
    reason = "blocks are raw memory, and a library tells what it counted"
)]

mod common;

use common::{in_repository, library};
use skep_alloc::sources::{CudaError, CudaSource, HeapSource, MappedSource};
use skep_layout::allocator::Allocator as _;
use skep_layout::allocator::{AllocatorSpec, BlockRequest, Source, ValidatedAllocator};

/// The sizes of a made-up program, in the order in which it asks.
fn sizes() -> impl Iterator<Item = u64> {
    let mut state = 7_u64;
    std::iter::repeat_with(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        match state >> 61 {
            0..4 => 1 + (state >> 40) % 5000,
            4..7 => 1 + (state >> 40) % 200_000,
            _ => 1 + (state >> 40) % 3_000_000,
        }
    })
}

/// What a program does with a block's memory.
trait Memory {
    fn fill(&self, address: u64, bytes: u64, letter: u8);
    fn holds(&self, address: u64, bytes: u64, letter: u8) -> bool;
}

/// Memory of this machine.
struct Real;

impl Memory for Real {
    fn fill(&self, address: u64, bytes: u64, letter: u8) {
        // SAFETY: the block is in use and checked to lie in the source's memory.
        unsafe {
            std::ptr::with_exposed_provenance_mut::<u8>(address as usize)
                .write_bytes(letter, bytes as usize);
        }
    }

    fn holds(&self, address: u64, bytes: u64, letter: u8) -> bool {
        // SAFETY: as above. The kernel of a quantized matrix reads behind its block, too.
        let block = unsafe {
            let start = std::ptr::with_exposed_provenance::<u8>(address as usize);
            std::hint::black_box(start.add(bytes as usize + 30).read_volatile());
            std::slice::from_raw_parts(start, bytes as usize)
        };
        block.iter().all(|byte| *byte == letter)
    }
}

/// Memory of an imagined device.
struct Imagined;

impl Memory for Imagined {
    fn fill(&self, _: u64, _: u64, _: u8) {}

    fn holds(&self, _: u64, _: u64, _: u8) -> bool {
        true
    }
}

/// A program of 600 blocks, of which about 40 are in use at a time.
fn use_blocks(spec: &AllocatorSpec, source: &mut dyn Source, memory: &dyn Memory) {
    let mut allocator = ValidatedAllocator::new(spec.build());
    let mut live: Vec<(u64, u64, u8)> = Vec::new();
    for (number, bytes) in sizes().take(600).enumerate() {
        let letter = (number % 251) as u8;
        let request = BlockRequest {
            alignment: 64,
            ..BlockRequest::of(bytes)
        };
        let address = allocator.malloc(request, source);
        let address = address.unwrap_or_else(|_| panic!("{spec}: {:?}", allocator.fault()));
        memory.fill(address, bytes, letter);
        live.push((address, bytes, letter));
        if live.len() > 40 {
            let (address, bytes, letter) = live.swap_remove(number * 7 % 40);
            assert!(memory.holds(address, bytes, letter), "{spec}");
            allocator.free(address, source).expect("in use");
        }
        if number % 100 == 99 {
            allocator.trim(source);
        }
    }
    for (address, bytes, letter) in live {
        assert!(memory.holds(address, bytes, letter), "{spec}");
        allocator.free(address, source).expect("in use");
    }
    allocator.trim(source);
    assert_eq!(allocator.fault(), None, "{spec}");
}

fn specs() -> Vec<AllocatorSpec> {
    let more = [
        "pytorch_caching:expandable_segments=true",
        "cuda_async:chunk=2MiB",
    ];
    let more = more.iter().map(|text| text.parse().expect("valid"));
    AllocatorSpec::all().into_iter().chain(more).collect()
}

#[test]
fn allocators_share_out_memory_of_the_system() {
    for spec in specs() {
        use_blocks(&spec, &mut MappedSource::default(), &Real);
    }
}

#[test]
fn allocators_share_out_memory_of_the_heap() {
    for spec in specs() {
        use_blocks(&spec, &mut HeapSource::default(), &Real);
    }
}

/// Bytes that are used, contexts, waits and broken rules.
fn state(driver: &std::path::Path) -> [u64; 4] {
    let mut state = [0; 4];
    // SAFETY: the function writes four numbers.
    unsafe {
        let driver = libloading::Library::new(driver).expect("the driver");
        let read = driver.get::<unsafe extern "C" fn(*mut u64)>(b"fake_state\0");
        read.expect("the function")(state.as_mut_ptr());
    }
    state
}

/// The calls of a driver, by the rules of its documentation. One test, since the driver counts for the whole process.
#[test]
fn a_cuda_driver_gets_every_call_by_its_rules() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let driver = library(
        folder.path(),
        &in_repository("crates/skep-alloc/tests/fake_cuda.c"),
    );
    // Kept open, so that its counts stay.
    let mut source = CudaSource::open(0, Some(&driver)).expect("a device");
    assert_eq!(
        (source.page(), source.available()),
        (2 << 20, Some(1 << 38))
    );
    for spec in specs() {
        use_blocks(&spec, &mut source, &Imagined);
    }
    let [_, contexts, waits, faults] = state(&driver);
    assert_eq!((contexts, faults), (1, 0));
    assert!(waits > 0, "pages go back only when queued work is done");
    assert_eq!(source.take(1 << 39), None, "more than the device has");
    drop(source);
    assert_eq!(state(&driver)[..2], [0, 0], "all memory went back");

    let error = CudaSource::open(3, Some(&driver)).expect_err("one device");
    assert_eq!(
        error.to_string(),
        "`cuDeviceGet` for CUDA device 3 failed with error 101 (invalid device ordinal)"
    );
    let other = library(folder.path(), &in_repository("examples/allocator/whole.c"));
    let error = CudaSource::open(0, Some(&other)).expect_err("no driver");
    assert!(matches!(
        error,
        CudaError::Symbol {
            symbol: "cuInit",
            ..
        }
    ));
    let error = CudaSource::open(0, Some(&folder.path().join("none.so"))).expect_err("no file");
    assert!(matches!(error, CudaError::Driver { .. }));
}
