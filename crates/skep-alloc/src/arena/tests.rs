//! Tests of arenas: planned, recorded and deviating runs, and blocks that outlive them.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
};

use super::*;

fn free_of_charge() -> RunCharge {
    RunBound::default().begin(0)
}
use skep_tensor::{Limit, RunBound};

use crate::{free, malloc, region::is_mapped};

/// Allocates and frees as two tensors do that follow each other beside a third; fills what it gets.
fn run(sizes: [usize; 3]) {
    let fill = |block: *mut u8, size: usize, with: u8| {
        // SAFETY: the block has so many bytes, and nobody else has it.
        unsafe { block.write_bytes(with, size) };
    };
    let check = |block: *const u8, size: usize, with: u8| {
        // SAFETY: as above.
        let bytes = unsafe { std::slice::from_raw_parts(block, size) };
        assert!(bytes.iter().all(|byte| *byte == with));
    };
    let [a, b] = [malloc(sizes[0]), malloc(sizes[1])];
    fill(a, sizes[0], 1);
    fill(b, sizes[1], 2);
    check(a, sizes[0], 1);
    // SAFETY: live, and not used again; here and below.
    unsafe { free(a) };
    let c = malloc(sizes[2]);
    fill(c, sizes[2], 3);
    check(b, sizes[1], 2);
    check(c, sizes[2], 3);
    for block in [b, c] {
        assert_eq!(block as usize % 64, 0);
        // SAFETY: as above.
        unsafe { free(block) };
    }
}

const SIZES: [usize; 3] = [3000, 5000, 2000];

fn planned(arena: &mut Arena) -> Arc<RunPlan> {
    let ((), report) = arena.run(RunMode::Record, &mut free_of_charge(), || run(SIZES));
    let recording = report.recording.expect("a recording");
    assert_eq!((recording.peak(), report.peak), (8000, 8000));
    let places = [Some(0), Some(3008), Some(0)];
    Arc::new(RunPlan::new(&recording, &places).expect("a plan"))
}

#[test]
fn a_planned_run_takes_its_memory_from_the_region() {
    let mut arena = Arena::new();
    let plan = planned(&mut arena);
    assert_eq!(arena.reserved(), 0);
    for _ in 0..3 {
        let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || {
            run(SIZES);
            assert_eq!(malloc(0), std::ptr::null_mut());
        });
        let expected = RunReport {
            peak: 8000,
            ..RunReport::default()
        };
        assert_eq!(report, expected);
    }
    assert_eq!((plan.size(), arena.reserved()), (8008, 8192));
}

#[test]
fn a_run_gets_no_more_than_it_may_take() {
    let mut arena = Arena::new();
    let plan = planned(&mut arena);
    let bound = RunBound {
        limit_bytes: Some(7_999),
        budget: None,
    };
    for how in [RunMode::Heap, RunMode::Record, RunMode::Replay(&plan)] {
        let ((), report) = arena.run(how, &mut bound.begin(0), || {
            let first = malloc(3000);
            assert!(malloc(5000).is_null() && malloc(usize::MAX).is_null());
            let second = malloc(4999);
            assert!(!first.is_null() && !second.is_null(), "{how:?}");
            // SAFETY: live, and not used again.
            unsafe {
                free(first);
                free(second);
            }
        });
        let refused = report.refused.expect("refused");
        assert_eq!((refused.bytes, refused.limit), (8000, Limit::Model(7_999)));
        assert_eq!(report.peak, 7_999);
    }
    let ((), report) = arena.run(RunMode::Heap, &mut bound.begin(0), || {
        run([3000, 4999, 100])
    });
    assert_eq!(report.refused, None);
}

#[test]
fn small_blocks_beyond_the_first_thousand_count_for_more_than_their_bytes() {
    let mut arena = Arena::new();
    let bound = RunBound {
        limit_bytes: Some(1 << 20),
        budget: None,
    };
    for how in [RunMode::Heap, RunMode::Record] {
        let (blocks, report) = arena.run(how, &mut bound.begin(0), || {
            let blocks: Vec<_> = std::iter::repeat_with(|| malloc(4))
                .take(1 << 18)
                .take_while(|block| !block.is_null())
                .collect();
            for block in &blocks {
                // SAFETY: live, and not used again.
                unsafe { free(*block) };
            }
            // Freed blocks no longer count.
            let block = malloc(1 << 19);
            assert!(!block.is_null());
            // SAFETY: as above.
            unsafe { free(block) };
            blocks.len()
        });
        // 1 MiB is 1024 blocks of 4 bytes, and 4017 of 260.
        assert!((5000..5100).contains(&blocks), "{how:?}: {blocks}");
        assert_eq!(report.peak, 1 << 19);
        assert!(report.refused.is_some());
    }
}

#[test]
fn a_run_that_deviates_is_served_by_the_heap_and_says_so() {
    let mut arena = Arena::new();
    let plan = planned(&mut arena);
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || {
        run([3000, 5001, 2000])
    });
    assert_eq!((report.deviation, report.unplanned), (Some(1), 2));
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || {
        run(SIZES);
        run(SIZES);
    });
    assert_eq!((report.deviation, report.unplanned), (Some(3), 3));
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || ());
    assert_eq!((report.deviation, report.unplanned), (Some(0), 0));
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
    assert_eq!(report.deviation, None, "the next one is planned again");
}

#[test]
fn a_block_that_outlives_its_run_keeps_its_memory() {
    let mut arena = Arena::new();
    let plan = planned(&mut arena);
    let kept = |arena: &mut Arena| {
        let (block, report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || {
            let block = malloc(3000);
            // SAFETY: so many bytes are ours.
            unsafe { block.write_bytes(7, 3000) };
            block as usize
        });
        assert!(report.outlived);
        block
    };
    let (first, second) = (kept(&mut arena), kept(&mut arena));
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
    assert_eq!(report.deviation, None);
    drop(arena);
    for block in [first, second] {
        // SAFETY: the block is live, although its arena is gone.
        let bytes = unsafe { std::slice::from_raw_parts(block as *const u8, 3000) };
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert!(is_mapped(block));
        let freeing = thread::spawn(move || {
            // SAFETY: not used again.
            unsafe { free(block as *mut u8) };
        });
        freeing.join().expect("no panic");
        assert!(!is_mapped(block), "with its last block the region goes");
    }
}

#[test]
fn beside_a_block_that_outlives_its_run_no_memory_is_kept() {
    let page = rustix::param::page_size();
    let run = || {
        // The second one lies on a page of the first one, too.
        let [a, b] = [malloc(4 * page + 64), malloc(page)];
        for block in [a, b] {
            // SAFETY: so many bytes are ours.
            unsafe { block.write_bytes(7, page) };
        }
        // SAFETY: live, and not used again but to look at what is there instead.
        unsafe { free(a) };
        [a, b].map(|block| block as usize)
    };
    let of = |block: usize| {
        assert!(is_mapped(block));
        // SAFETY: the region is mapped, and nobody writes to it.
        unsafe { std::slice::from_raw_parts(block as *const u8, page) }
    };
    // SAFETY: live, and not used again.
    let end = |block: usize| unsafe { free(block as *mut u8) };

    let mut arena = Arena::new();
    let ((), report) = arena.run(RunMode::Record, &mut free_of_charge(), || end(run()[1]));
    let recording = report.recording.expect("a recording");
    let places = [Some(0), Some(4 * page as u64 + 64)];
    let plan = Arc::new(RunPlan::new(&recording, &places).expect("a plan"));
    for how in [RunMode::Record, RunMode::Replay(&plan)] {
        let ([freed, kept], _) = arena.run(how, &mut free_of_charge(), run);
        assert!(of(freed).iter().all(|byte| *byte == 0), "{how:?}");
        assert!(of(kept).iter().all(|byte| *byte == 7), "{how:?}");
        end(kept);
        assert!(!is_mapped(kept));
    }
}

#[test]
fn a_panic_ends_the_run() {
    let mut arena = Arena::new();
    let plan = planned(&mut arena);
    let left = catch_unwind(AssertUnwindSafe(|| {
        arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || {
            std::panic::panic_any(malloc(3000) as usize);
        })
    }));
    let block = *left
        .expect_err("a panic")
        .downcast::<usize>()
        .expect("an address");
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
    assert_eq!(report.deviation, None, "in a region of its own");
    // SAFETY: the block of the panic is live, and not used again.
    unsafe { free(block as *mut u8) };
    assert!(!is_mapped(block));
}

/// Whether the calling thread is in a run.
fn is_in_a_run() -> bool {
    let current = scope::install(None);
    let is_in_one = current.is_some();
    scope::install(current);
    is_in_one
}

#[test]
fn after_a_run_or_a_panic_in_it_the_thread_is_where_it_was() {
    let mut outer = Arena::new();
    let mut inner = Arena::new();
    let ((), report) = outer.run(RunMode::Record, &mut free_of_charge(), || {
        run([300, 300, 300]);
        let ((), report) = inner.run(RunMode::Record, &mut free_of_charge(), || run(SIZES));
        assert_eq!(report.peak, 8000);
        assert!(is_in_a_run());
        let panicking = || {
            inner.run(RunMode::Record, &mut free_of_charge(), || {
                panic!("on purpose")
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(panicking)).is_err());
        run([100, 100, 100]);
    });
    assert_eq!(report.peak, 600, "of the outer run's blocks alone");
    let recording = report.recording.expect("a recording");
    assert_eq!(
        recording.events().len(),
        12,
        "three blocks before the inner runs, and three after them"
    );
    assert!(!is_in_a_run());
}

#[test]
fn runs_on_several_threads_do_not_mix() {
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                let mut arena = Arena::new();
                let plan = planned(&mut arena);
                for _ in 0..200 {
                    let ((), report) =
                        arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
                    assert_eq!((report.deviation, report.peak), (None, 8000));
                }
            });
        }
    });
}

/// While runs begin and end in their arenas, other threads look at and free what outlived earlier ones.
#[test]
fn what_other_threads_hold_of_earlier_runs_stays_theirs() {
    let [first, second, third] = SIZES;
    let kept = |how: RunMode<'_>, arena: &mut Arena, with: u8| {
        let (blocks, _) = arena.run(how, &mut free_of_charge(), || {
            let blocks = [first, second].map(|size| (malloc(size), size));
            for (block, size) in blocks {
                // SAFETY: so many bytes are ours.
                unsafe { block.write_bytes(with, size) };
            }
            run([third, first, second]);
            blocks
        });
        blocks.map(|(block, size)| (block as usize, size, with))
    };
    let (sender, receiver) = std::sync::mpsc::sync_channel::<(usize, usize, u8)>(16);
    let receiver = std::sync::Mutex::new(receiver);
    thread::scope(|threads| {
        for producer in 0..2 {
            let sender = sender.clone();
            threads.spawn(move || {
                let mut arena = Arena::new();
                let plan = planned(&mut arena);
                let hows = [RunMode::Record, RunMode::Replay(&plan), RunMode::Heap];
                for step in 0..300 {
                    for block in kept(hows[step % 3], &mut arena, step as u8 ^ producer) {
                        sender.send(block).expect("somebody listens");
                    }
                    let ((), report) =
                        arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
                    assert_eq!(report.deviation, None);
                }
            });
        }
        drop(sender);
        for _ in 0..2 {
            threads.spawn(|| {
                loop {
                    let next = receiver.lock().expect("no panic").recv();
                    let Ok((block, size, with)) = next else {
                        break;
                    };
                    // SAFETY: the block is live, and ours.
                    let bytes = unsafe { std::slice::from_raw_parts(block as *const u8, size) };
                    assert!(bytes.iter().all(|byte| *byte == with));
                    // SAFETY: not used again.
                    unsafe { free(block as *mut u8) };
                }
            });
        }
    });
}

#[test]
fn a_plan_that_no_memory_can_hold_is_served_by_the_heap() {
    let mut arena = Arena::new();
    let ((), report) = arena.run(RunMode::Record, &mut free_of_charge(), || run(SIZES));
    let recording = report.recording.expect("a recording");
    let far = [Some(0), Some(1 << 60), None];
    let plan = Arc::new(RunPlan::new(&recording, &far).expect("a plan"));
    let ((), report) = arena.run(RunMode::Replay(&plan), &mut free_of_charge(), || run(SIZES));
    assert_eq!(report.deviation, Some(0));
}
