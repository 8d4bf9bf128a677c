//! Problems for the tests.
#![allow(dead_code)] // Each test program uses some of them.

use proptest::prelude::*;
use skep_planner::{Buffer, Problem};

/// A generator of numbers, splitmix: problems that are the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (value ^ (value >> 31)) % limit
    }
}

/// MiniMalloc's CSV: id, lower, upper, size.
pub(crate) fn read_csv(text: &str) -> Problem {
    let buffers = text.lines().skip(1).map(|line| {
        let mut fields = line
            .split(',')
            .skip(1)
            .map(|field| field.parse().expect("a number"));
        let mut next = || fields.next().expect("four fields");
        let (start, end, size) = (next(), next(), next());
        Buffer::new(size, start, end)
    });
    Problem::new(buffers.collect()).expect("a valid file")
}

/// A rectangle of `steps` by `bytes`, cut `cuts` times: a plan of `bytes` without any gap exists.
pub(crate) fn cut_rectangle(cuts: usize, steps: u64, bytes: u64, seed: u64) -> Problem {
    let mut random = Random(seed);
    let mut parts = vec![(0, steps, bytes)];
    for _ in 0..cuts {
        let chosen = usize::try_from(random.below(parts.len() as u64)).expect("small");
        let (start, end, size) = parts[chosen];
        let (width, height) = (end - start, size);
        let across = width > 1 && (height < 2 || random.below(2) == 0);
        if across {
            let middle = start + 1 + random.below(width - 1);
            parts[chosen] = (start, middle, size);
            parts.push((middle, end, size));
        } else if height > 1 {
            let lower = 1 + random.below(height - 1);
            parts[chosen] = (start, end, lower);
            parts.push((start, end, height - lower));
        }
    }
    let buffers = parts
        .into_iter()
        .map(|(start, end, size)| Buffer::new(size, start, end));
    Problem::new(buffers.collect()).expect("parts are valid")
}

/// A rectangle of 1 MiB by 2^20 steps, cut into parts in units of 1024 of which some are missing and others have become
/// smaller: a plan of 1 MiB exists, and the load leaves room. Like MiniMalloc's challenging problems.
pub(crate) fn loose_rectangle(cuts: usize, seed: u64) -> Problem {
    const UNIT: u64 = 1024;
    let whole = cut_rectangle(cuts, UNIT, UNIT, seed);
    let mut random = Random(seed ^ 0x5EED);
    let mut buffers = Vec::new();
    for &Buffer {
        size, start, end, ..
    } in whole.buffers()
    {
        let kind = random.below(100);
        let (less, sooner) = (
            random.below(1 + size / 3),
            random.below(1 + (end - start) / 2),
        );
        let size = if (6..45).contains(&kind) {
            size - less
        } else {
            size
        };
        let end = if (6..15).contains(&kind) {
            end - sooner
        } else {
            end
        };
        if kind >= 6 {
            buffers.push(Buffer::new(size * UNIT, start * UNIT, end * UNIT));
        }
    }
    Problem::new(buffers).expect("parts are valid")
}

/// A training run: weights, activations that live until their gradients, and many short-lived buffers.
pub(crate) fn training_like(count: u64, seed: u64) -> Problem {
    let mut random = Random(seed);
    let buffers = (0..count).map(|_| {
        let (kind, start) = (random.below(100), random.below(count));
        match kind {
            0..2 => Buffer::new(4096 * (1 + random.below(2000)), 0, count),
            2..30 => {
                let start = start / 2;
                Buffer::new(512 * (1 + random.below(3000)), start, count - start)
            }
            _ => {
                let end = count.min(start + 1 + random.below(60));
                Buffer::new(512 * (1 + random.below(20_000)), start, end)
            }
        }
    });
    Problem::new(buffers.collect()).expect("valid buffers")
}

/// Layers one after another, each of which reads the one before; every tenth is read again up to 200 layers later.
pub(crate) fn network_like(layers: u64, seed: u64) -> Problem {
    let mut random = Random(seed);
    let buffers = (0..layers).map(|step| {
        let width = if step % 10 == 0 {
            2 + random.below(200)
        } else {
            2
        };
        Buffer::new(64 * (1 + random.below(1000)), step, step + width).aligned(64)
    });
    Problem::new(buffers.collect()).expect("valid buffers")
}

/// Buffers of any size and at any time that live for up to `longest` steps.
pub(crate) fn at_random(count: u64, longest: u64, seed: u64) -> Problem {
    let mut random = Random(seed);
    let buffers = (0..count).map(|_| {
        let start = random.below(count);
        let size = 64 * (1 + random.below(1000));
        Buffer::new(size, start, start + 1 + random.below(longest))
    });
    Problem::new(buffers.collect()).expect("valid buffers")
}

/// Up to `most` buffers without further conditions.
pub(crate) fn plain(most: usize) -> impl Strategy<Value = Problem> {
    let buffer = (0..40_u64, 0..30_u64, 1..12_u64)
        .prop_map(|(size, start, width)| Buffer::new(size, start, start + width));
    prop::collection::vec(buffer, 0..=most)
        .prop_map(|buffers| Problem::new(buffers).expect("valid buffers"))
}

/// Up to `most` buffers with alignments, fixed offsets and in-place pairs.
pub(crate) fn conditioned(most: usize) -> impl Strategy<Value = Problem> {
    let buffer = (
        (0..24_u64, 0..9_u64, 1..6_u64),
        0..4_u32,
        prop::option::weighted(0.15, 0..6_u64),
        prop::option::weighted(0.3, any::<prop::sample::Index>()),
    );
    prop::collection::vec(buffer, 1..=most).prop_map(|list| {
        let mut buffers: Vec<Buffer> = Vec::new();
        for ((size, start, width), alignment, fixed, input) in list {
            let mut buffer = Buffer::new(size, start, start + width).aligned(1 << alignment);
            buffer.fixed = fixed.map(|multiple| multiple << alignment);
            buffer.in_place = input
                .filter(|_| !buffers.is_empty())
                .map(|index| index.index(buffers.len()))
                .filter(|&input| buffers[input].start < start);
            if let Some(input) = buffer.in_place.filter(|_| size % 2 == 0) {
                buffer.size = buffers[input].size;
            }
            buffers.push(buffer);
            // What contradicts a fixed buffer before it is not fixed.
            if Problem::new(buffers.clone()).is_err() {
                buffers.last_mut().expect("just pushed").fixed = None;
            }
        }
        Problem::new(buffers).expect("valid buffers")
    })
}
