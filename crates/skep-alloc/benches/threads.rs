//! What a malloc and its free take in runs of one instance and of two at once, by where the blocks come from.
//!
//! `cargo bench -p skep-alloc`. Each instance runs on a thread of its own: a recurring run of a thousand blocks from 256 B to
//! 8 MiB, of which 48 are live at once. No block is touched, so this is the allocators' own time, with the way from the
//! runtime's call to the run of its thread. Times are CPU times of the threads, which other work on the machine hardly
//! changes: what two instances take from each other (locks, cache lines) is in them. One instance and two take turns; the last
//! column is how many times as many pairs two threads do, the median of the rounds' ratios.
#![allow(unsafe_code, reason = "freeing is unsafe")]

use std::{
    sync::{Arc, Barrier},
    thread,
};

use rustix::time::{ClockId, clock_gettime};
use skep_alloc::{Arena, RunAllocator, RunMode, RunPlan, free, malloc};
use skep_layout::{allocator::AllocatorSpec, plan_recording};
use skep_planner::Budget;
use skep_tensor::RunBound;

/// Blocks of a run, and of these live at once.
const BLOCKS: usize = 1000;
const LIVE: usize = 48;
/// Runs of a measurement, and measurements of each kind.
const RUNS: usize = 200;
const ROUNDS: usize = 15;

/// The sizes of a run, the same in each.
fn sizes() -> Vec<usize> {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let size = |_| {
        let octave = 8 + next() % 15;
        ((1 << octave) + next() % (1 << octave)) as usize
    };
    (0..BLOCKS).map(size).collect()
}

/// The blocks of a run; each is freed when so many others have come, and all are at the end.
fn blocks(sizes: &[usize]) {
    let mut live = [std::ptr::null_mut(); LIVE];
    for (number, bytes) in sizes.iter().enumerate() {
        let slot = &mut live[number % LIVE];
        // SAFETY: the block is null or was handed out before, and is not used.
        unsafe { free(*slot) };
        *slot = malloc(*bytes);
    }
    for block in live {
        // SAFETY: as above.
        unsafe { free(block) };
    }
}

/// Where the blocks of an instance come from.
enum Way {
    Allocator(RunAllocator),
    Planned(Arena, Arc<RunPlan>),
}

impl Way {
    fn run(&mut self, sizes: &[usize]) {
        let charge = &mut RunBound::default().begin(0);
        match self {
            Self::Allocator(own) => {
                Arena::new().run(RunMode::Allocator(own), charge, || blocks(sizes))
            }
            Self::Planned(arena, plan) => {
                arena.run(RunMode::Replay(plan), charge, || blocks(sizes))
            }
        };
    }
}

/// CPU time of the calling thread, in nanoseconds.
fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Nanoseconds of a malloc and its free, in CPU time of a thread, with all instances at work.
fn measure(instances: &mut [Way], sizes: &[usize]) -> f64 {
    let barrier = Barrier::new(instances.len());
    let count = instances.len();
    let took = thread::scope(|scope| {
        let threads: Vec<_> = instances
            .iter_mut()
            .map(|way| {
                let barrier = &barrier;
                scope.spawn(move || {
                    barrier.wait();
                    let start = cpu_ns();
                    for _ in 0..RUNS {
                        way.run(sizes);
                    }
                    cpu_ns() - start
                })
            })
            .collect();
        let times = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        times.sum::<f64>()
    });
    took / (RUNS * BLOCKS * count) as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn report(name: &str, make: impl Fn() -> Way, sizes: &[usize]) {
    let mut instances = [make(), make()];
    for way in &mut instances {
        (0..4).for_each(|_| way.run(sizes));
    }
    let (mut one, mut two, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let alone = measure(&mut instances[..1], sizes);
        let together = measure(&mut instances, sizes);
        one.push(alone);
        two.push(together);
        ratios.push(2.0 * alone / together);
    }
    println!(
        "{name:24} {:8.1} ns {:8.1} ns {:8.2}",
        median(one),
        median(two),
        median(ratios)
    );
}

fn main() {
    let sizes = sizes();
    println!(
        "{:24} {:>11} {:>11} {:>8}",
        "a pair takes", "one", "two", "times"
    );
    let plan = {
        let charge = &mut RunBound::default().begin(0);
        let (_, report) = Arena::new().run(RunMode::Record, charge, || blocks(&sizes));
        let recording = report.recording.expect("a recording");
        Arc::new(plan_recording(&recording, &Budget::nodes(20_000)).expect("a plan"))
    };
    let planned = || Way::Planned(Arena::new(), Arc::clone(&plan));
    report("the planned arena", planned, &sizes);
    for spec in AllocatorSpec::all() {
        let own = || Way::Allocator(RunAllocator::new(spec.build()));
        report(spec.name(), own, &sizes);
    }
}
