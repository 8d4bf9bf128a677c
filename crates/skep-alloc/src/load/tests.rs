//! Tests of loads: sequences, scratch pages, replaced blocks.

use rustix::io::pwrite;

use super::*;
use crate::{free as free_block, malloc as malloc_block};

const LARGE: usize = 3 * SCRATCH_BYTES + 100;

/// Takes three large blocks and a small one, writes to all, frees the second one.
fn pack(sizes: [usize; 3]) -> Vec<*mut u8> {
    let mut blocks = vec![malloc_block(100)];
    for (index, size) in sizes.into_iter().enumerate() {
        let block = malloc_block(size);
        assert!(!block.is_null());
        assert_eq!(block as usize % 64, 0);
        // SAFETY: the block has that many bytes.
        unsafe { block.write_bytes(index as u8 + 1, size) };
        blocks.push(block);
    }
    // SAFETY: live, and not used again.
    unsafe { free_block(blocks.remove(2)) };
    blocks
}

fn free_all(blocks: Vec<*mut u8>) {
    for block in blocks {
        // SAFETY: live, and not used again.
        unsafe { free_block(block) };
    }
}

const SIZES: [usize; 3] = [LARGE, LOADED_BYTES, 2 * LARGE];

fn recorded() -> Vec<LoadedBlock> {
    let block = |size: usize, kept| LoadedBlock {
        size: size as u64,
        kept,
    };
    vec![
        block(SIZES[0], true),
        block(SIZES[1], false),
        block(SIZES[2], true),
    ]
}

#[test]
fn a_load_on_files_leaves_what_it_packed_in_them() {
    let root = tempfile::tempdir().expect("a directory");
    let (blocks, loaded) = load(LoadMode::Files(root.path()), || pack(SIZES)).expect("memory");
    assert_eq!(loaded.sequence(), recorded());
    assert!(loaded.went_as_expected() && loaded.failure().is_none());
    for (index, value) in [(0, 1), (2, 3)] {
        let bytes = fs::read(root.path().join(index.to_string())).expect("there");
        assert_eq!(bytes.len() % rustix::param::page_size(), 0);
        let size = SIZES[index];
        assert!(bytes[..size].iter().all(|&byte| byte == value));
        // SAFETY: nobody writes.
        assert_eq!(unsafe { loaded.bytes(index) }, &bytes[..size]);
    }
    free_all(blocks);

    let nowhere = root.path().join("none");
    let (blocks, loaded) = load(LoadMode::Files(&nowhere), || pack(SIZES)).expect("memory");
    assert!(!loaded.went_as_expected());
    let failure = loaded.failure().map(io::Error::kind);
    assert_eq!(failure, Some(io::ErrorKind::NotFound));
    free_all(blocks);
}

#[test]
fn a_recorded_load_shows_what_it_packed() {
    let (blocks, loaded) = load(LoadMode::Record, || pack(SIZES)).expect("memory");
    assert_eq!(loaded.sequence(), recorded());
    assert!(loaded.went_as_expected());
    for (index, value) in [(0, 1), (2, 3)] {
        // SAFETY: nobody writes.
        let bytes = unsafe { loaded.bytes(index) };
        assert_eq!(bytes.len(), SIZES[index]);
        assert!(bytes.iter().all(|&byte| byte == value));
    }
    let addresses: Vec<usize> = blocks.iter().map(|&block| block as usize).collect();
    free_all(blocks);
    // The second one was unlisted when it was freed, the others now.
    assert!(addresses.iter().all(|&address| free(address).is_none()));
}

#[test]
fn replayed_blocks_lie_on_scratch_pages_until_they_are_replaced() {
    let expected = recorded();
    let (blocks, loaded) = load(LoadMode::Replay(&expected), || pack(SIZES)).expect("memory");
    assert!(loaded.went_as_expected());
    // SAFETY: nobody writes.
    let first = unsafe { loaded.bytes(0) };
    assert!(
        first[..SCRATCH_BYTES].iter().all(|&byte| byte == 3),
        "what the last block wrote is on the first one's pages"
    );

    let file = memfd_create(c"kept", MemfdFlags::CLOEXEC).expect("a file");
    let page = rustix::param::page_size();
    let kept = vec![9_u8; LARGE];
    pwrite(&file, &kept, page as u64).expect("written");
    // SAFETY: nobody uses the block during the call; nobody writes to the file any more.
    unsafe { loaded.replace(0, file.as_fd(), page as u64) }.expect("mapped");
    // SAFETY: nobody writes.
    assert_eq!(unsafe { loaded.bytes(0) }, kept);
    // SAFETY: nobody writes.
    let other = unsafe { loaded.bytes(2) };
    assert_eq!(other[0], 3, "the others are as they were");

    // The mapping outlives the block's end as long as somebody may look.
    free_all(blocks);
    // SAFETY: nobody writes.
    assert_eq!(unsafe { loaded.bytes(0) }[LARGE - 1], 9);
}

#[test]
fn scratch_pages_end_where_their_block_ends() {
    let block = |kept| LoadedBlock {
        size: LARGE as u64,
        kept,
    };
    // The system maps each block below the one before.
    let expected = [block(false), block(true)];
    let fill = || {
        let own = malloc_block(LARGE);
        // SAFETY: the block has that many bytes.
        unsafe { own.write_bytes(7, LARGE) };
        let scratch = malloc_block(LARGE);
        // SAFETY: as above.
        unsafe { scratch.write_bytes(1, LARGE) };
        // SAFETY: as above.
        let bytes = unsafe { slice::from_raw_parts(own, LARGE) };
        assert!(bytes.iter().all(|&byte| byte == 7));
        free_all(vec![own]);
        vec![scratch]
    };
    let (blocks, loaded) = load(LoadMode::Replay(&expected), fill).expect("memory");
    assert!(loaded.went_as_expected());
    free_all(blocks);
}

#[test]
fn blocks_are_found_wherever_the_system_maps_them() {
    let one = || {
        let (block, loaded) = load(LoadMode::Record, || malloc_block(LARGE)).expect("memory");
        (block, loaded)
    };
    let mut blocks: Vec<_> = (0..8).map(|_| one()).collect();
    // The next ones get the places between the others.
    for index in [1, 3, 5] {
        free_all(vec![blocks[index].0]);
        blocks[index] = one();
    }
    for (block, _) in blocks {
        assert_eq!(free(block as usize), Some(LARGE as u64));
    }
}

#[test]
fn a_block_that_nobody_has_is_mapped_no_more() {
    // Together more than there are addresses.
    const HUGE: usize = 1 << 40;
    for _ in 0..200 {
        let (block, loaded) = load(LoadMode::Record, || malloc_block(HUGE)).expect("memory");
        assert!(loaded.went_as_expected(), "{:?}", loaded.failure());
        free_all(vec![block]);
    }
}

#[test]
fn a_deviating_load_is_detected() {
    let expected = recorded();
    let deviating = |sizes| {
        let (blocks, loaded) = load(LoadMode::Replay(&expected), || pack(sizes)).expect("memory");
        free_all(blocks);
        !loaded.went_as_expected()
    };
    assert!(!deviating(SIZES));
    assert!(deviating([LARGE + 1, SIZES[1], SIZES[2]]), "another size");
    assert!(deviating([LARGE, SIZES[1], 100]), "one less");

    let more = || {
        let mut blocks = pack(SIZES);
        blocks.push(malloc_block(LARGE));
        blocks
    };
    let (blocks, loaded) = load(LoadMode::Replay(&expected), more).expect("memory");
    free_all(blocks);
    assert!(!loaded.went_as_expected(), "one more");

    let kept_all = || SIZES.map(malloc_block).to_vec();
    let (blocks, loaded) = load(LoadMode::Replay(&expected), kept_all).expect("memory");
    free_all(blocks);
    assert!(!loaded.went_as_expected(), "the second one is still in use");
}

#[test]
fn outside_of_a_load_and_on_other_threads_blocks_come_from_the_heap() {
    let is_heaps = |block: *mut u8| {
        let address = block as usize;
        let listed = BLOCKS
            .load()
            .iter()
            .any(|b| b.base.as_ptr() as usize == address);
        free_all(vec![block]);
        !listed
    };
    assert!(is_heaps(malloc_block(LARGE)));
    let elsewhere = || {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| is_heaps(malloc_block(LARGE)));
            thread.join().expect("no panic")
        })
    };
    let (there, loaded) = load(LoadMode::Record, elsewhere).expect("memory");
    assert!(there);
    assert_eq!(loaded.sequence(), []);
}

#[test]
fn a_load_that_panics_ends() {
    let panicking = || -> () { panic!("on purpose") };
    let outcome = std::panic::catch_unwind(|| load(LoadMode::Record, panicking));
    assert!(outcome.is_err());
    assert!(CURRENT.with_borrow(Option::is_none));
}
