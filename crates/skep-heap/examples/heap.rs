//! What the heap costs: pairs of an allocation and a free, over threads, and how long an allocation waits at most while
//! memory is given back. A row of JSON a figure.
//!
//! ```text
//! heap [--rounds N [--waits]]
//! ```
//!
//! `--waits` measures waits alone: `chrt --fifo 10 heap --rounds 3 --waits` keeps the machine's other work out of them.
//!
//! Contenders, each in processes of its own, in turn: glibc's allocator with one arena (what large blocks came from
//! before) and with as many as it likes, mimalloc for all sizes, and the server's heap.
#![allow(unsafe_code, reason = "allocators are called directly")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    env,
    error::Error,
    hint::black_box,
    process::Command,
    ptr,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use mimalloc::MiMalloc;
use serde_json::json;
use skep_heap::SplitHeap;

const KIB: usize = 1 << 10;
const WINDOW: Duration = Duration::from_millis(300);
const CONTENDERS: [&str; 4] = ["one_arena", "arenas", "mimalloc", "skep"];
/// Tensors of usual requests.
const MIX: [usize; 8] = [
    32 * KIB,
    602_112,
    40 * KIB,
    96 * KIB,
    KIB * KIB,
    150_528,
    64 * KIB,
    4 * KIB * KIB,
];

struct Heap(&'static (dyn GlobalAlloc + Sync));

impl Heap {
    fn take(&self, bytes: usize) -> *mut u8 {
        // SAFETY: the size is not zero; the first byte is within the block.
        unsafe {
            let block = self.0.alloc(layout(bytes));
            assert!(!block.is_null());
            block.write(1);
            black_box(block)
        }
    }

    fn give(&self, block: *mut u8, bytes: usize) {
        // SAFETY: `take` gave the block for this size.
        unsafe { self.0.dealloc(block, layout(bytes)) };
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes, 64).expect("a layout")
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--contender", name, round, figures] => contender(name, round.parse()?, figures),
        ["--rounds", rounds, "--waits"] => rounds_of_all(rounds.parse()?, "waits"),
        ["--rounds", rounds] => rounds_of_all(rounds.parse()?, "all"),
        [] => rounds_of_all(5, "all"),
        _ => Err("usage: heap [--rounds N [--waits]]".into()),
    }
}

/// All contenders, in turn, a round after the other.
fn rounds_of_all(rounds: u32, figures: &str) -> Result<(), Box<dyn Error>> {
    for round in 0..rounds {
        for name in CONTENDERS {
            let mut command = Command::new(env::current_exe()?);
            command.args(["--contender", name, &round.to_string(), figures]);
            if name == "arenas" {
                // Settings of the environment win over the server's.
                command.env("MALLOC_ARENA_MAX", "16");
            }
            if !command.status()?.success() {
                return Err(format!("{name} failed").into());
            }
        }
    }
    Ok(())
}

fn contender(name: &str, round: u32, figures: &str) -> Result<(), Box<dyn Error>> {
    skep_heap::bound_kept_memory();
    let heap = match name {
        "one_arena" | "arenas" => Heap(&System),
        "mimalloc" => Heap(&MiMalloc),
        _ => {
            skep_heap::give_back_in_background()?;
            Heap(&SplitHeap)
        }
    };
    if figures == "all" {
        print_pairs(&heap, name, round);
    }
    print_waits(&heap, name, round);
    Ok(())
}

fn print_pairs(heap: &Heap, name: &str, round: u32) {
    let sizes: [(&str, &[usize]); 5] = [
        ("32 KiB", &[32 * KIB]),
        ("256 KiB", &[256 * KIB]),
        ("1 MiB", &[KIB * KIB]),
        ("4 MiB", &[4 * KIB * KIB]),
        ("mix", &MIX),
    ];
    for (label, sizes) in sizes {
        for threads in [1, 2] {
            let (per_second, per_cpu_second) = pairs_per_second(heap, sizes, threads);
            let row = json!({
                "heap": name, "round": round, "figure": "pairs", "size": label, "threads": threads,
                "million_pairs_per_second": per_second / 1e6,
                "million_pairs_per_cpu_second": per_cpu_second / 1e6,
            });
            println!("{row}");
        }
    }
    let per_second = handed_over_per_second(heap);
    let row = json!({
        "heap": name, "round": round, "figure": "handed over", "size": "mix", "threads": 2,
        "million_pairs_per_second": per_second / 1e6,
    });
    println!("{row}");
}

fn print_waits(heap: &Heap, name: &str, round: u32) {
    let (waits, given_back_ms) = waits_while_given_back(heap, name);
    let at = |below: usize, of: usize| {
        waits[(waits.len() * below / of).min(waits.len() - 1)].as_secs_f64() * 1e6
    };
    let row = json!({
        "heap": name, "round": round, "figure": "waits", "size": "mix", "threads": 2,
        "p99_us": at(99, 100), "p9999_us": at(9999, 10_000), "max_us": at(1, 1),
        "caller_ms": given_back_ms, "allocations": waits.len(),
    });
    println!("{row}");
}

/// Pairs a second of all threads, and a second of CPU time of one: what the machine's other work takes does not count
/// there, nor do waits for locks.
fn pairs_per_second(heap: &Heap, sizes: &[usize], threads: usize) -> (f64, f64) {
    let cpu_ns = AtomicU64::new(0);
    let (start, stop, pairs) = (
        Barrier::new(threads + 1),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut done = 0;
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..64 / sizes.len() {
                        for &bytes in sizes {
                            heap.give(heap.take(bytes), bytes);
                        }
                    }
                    done += (64 / sizes.len() * sizes.len()) as u64;
                }
                pairs.fetch_add(done, Ordering::Relaxed);
                cpu_ns.fetch_add(thread_cpu_ns(), Ordering::Relaxed);
            });
        }
        start.wait();
        let began = Instant::now();
        thread::sleep(WINDOW);
        stop.store(true, Ordering::Relaxed);
        began.elapsed()
    });
    let pairs = pairs.into_inner() as f64;
    (
        pairs / WINDOW.as_secs_f64(),
        pairs / (cpu_ns.into_inner() as f64 / 1e9),
    )
}

/// CPU time of this thread, which does nothing else.
fn thread_cpu_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the place for the answer is this function's.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// One thread allocates, another one frees, as the reader of a request and the instance that ran it do.
fn handed_over_per_second(heap: &Heap) -> f64 {
    const PLACES: usize = 64;
    let places: [AtomicPtr<u8>; PLACES] = [const { AtomicPtr::new(ptr::null_mut()) }; PLACES];
    let stop = AtomicBool::new(false);
    let mut handed = 0_u64;
    thread::scope(|scope| {
        let freeing = scope.spawn(|| {
            let mut freed = 0_u64;
            for index in (0..PLACES).cycle() {
                let block = places[index].swap(ptr::null_mut(), Ordering::Acquire);
                if !block.is_null() {
                    heap.give(block, MIX[index % MIX.len()]);
                    freed += 1;
                } else if stop.load(Ordering::Relaxed) {
                    break;
                } else {
                    thread::yield_now();
                }
            }
            freed
        });
        let end = Instant::now() + WINDOW;
        'all: for index in (0..PLACES).cycle() {
            while !places[index].load(Ordering::Relaxed).is_null() {
                if Instant::now() > end {
                    break 'all;
                }
                thread::yield_now();
            }
            places[index].store(heap.take(MIX[index % MIX.len()]), Ordering::Release);
            if index == 0 && Instant::now() > end {
                break;
            }
        }
        stop.store(true, Ordering::Relaxed);
        handed = freeing.join().expect("no panic");
    });
    for (index, place) in places.iter().enumerate() {
        let block = place.load(Ordering::Acquire);
        if !block.is_null() {
            heap.give(block, MIX[index % MIX.len()]);
        }
    }
    handed as f64 / WINDOW.as_secs_f64()
}

/// How long allocations of one thread wait while another one has freed what loading a model takes and gives it back;
/// and how long the caller waited for that, in milliseconds. Half of what is freed is the heap's, half are blocks
/// of C++.
fn waits_while_given_back(heap: &Heap, name: &str) -> (Vec<Duration>, f64) {
    let stop = AtomicBool::new(false);
    let mut asked_ms = 0.0;
    let mut waits = thread::scope(|scope| {
        let measured = scope.spawn(|| {
            let mut waits = Vec::with_capacity(20_000_000);
            while !stop.load(Ordering::Relaxed) {
                for bytes in MIX {
                    let began = Instant::now();
                    let block = heap.take(bytes);
                    waits.push(began.elapsed());
                    heap.give(block, bytes);
                }
                // The kernel stops real-time threads that never rest, for 50 ms.
                if waits.len() % 40_000 == 0 {
                    thread::sleep(Duration::from_millis(1));
                }
            }
            waits
        });
        let sizes = [40 * KIB, 200 * KIB, 3 * KIB, 70 * KIB];
        let mut left = Vec::new();
        let heaps: [&Heap; 2] = [heap, &Heap(&System)];
        for heap in heaps {
            let blocks: Vec<(*mut u8, usize)> = (0..6000)
                .map(|index| sizes[index % sizes.len()])
                .map(|bytes| {
                    let block = heap.take(bytes);
                    // SAFETY: the block is this thread's, and of this size.
                    unsafe { block.write_bytes(1, bytes) };
                    (block, bytes)
                })
                .collect();
            // Holes, between what other models have.
            for (index, (block, bytes)) in blocks.into_iter().enumerate() {
                if index % 8 < 5 {
                    heap.give(block, bytes);
                } else {
                    left.push((heap, block, bytes));
                }
            }
        }
        let began = Instant::now();
        if name == "skep" {
            skep_heap::give_back_freed_memory();
        } else {
            trim();
        }
        asked_ms = began.elapsed().as_secs_f64() * 1e3;
        thread::sleep(Duration::from_millis(1500));
        stop.store(true, Ordering::Relaxed);
        for (heap, block, bytes) in left {
            heap.give(block, bytes);
        }
        measured.join().expect("no panic")
    });
    waits.sort_unstable();
    (waits, asked_ms)
}

/// What loads and unloads did before: all at once, where they were.
fn trim() {
    // SAFETY: both may be called from any thread at any time.
    unsafe {
        libmimalloc_sys::mi_collect(true);
        libc::malloc_trim(0);
    }
}
