//! The placed buffers, arranged so that a short-lived buffer looks only at those that it can meet.
//!
//! The time axis is covered by windows, each half over the next, a quarter as wide from level to level. A window lists
//! its live buffers by offset; a buffer asks the narrowest window that contains it. What lives long is in many
//! windows, so there are only widths that some buffer asks for, and only as many as entries can be afforded.

use crate::{
    problem::{Buffer, Problem},
    timeline::Span,
};

/// Entries of all windows together, a buffer: memory stays linear whatever the live ranges.
const ENTRIES_A_BUFFER: usize = 24;
/// Narrower windows than twice this many sections save nothing more.
const NARROWEST: usize = 16;
/// A window's list is in pieces of at most this many entries, so that an insertion moves no more.
const CHUNK: usize = 512;

#[derive(Clone, Copy)]
struct PlacedSpan {
    offset: u64,
    end: u64,
    span: Span,
}

/// Entries by offset, equal ones in the order of their insertion.
#[derive(Clone, Default)]
struct OffsetWindow(Vec<Vec<PlacedSpan>>);

impl OffsetWindow {
    fn insert(&mut self, entry: PlacedSpan) {
        let is_before = |chunk: &Vec<PlacedSpan>| {
            chunk
                .first()
                .is_some_and(|first| first.offset <= entry.offset)
        };
        let chunk = self.0.partition_point(is_before).saturating_sub(1);
        if self.0.is_empty() {
            self.0.push(Vec::new());
        }
        let entries = &mut self.0[chunk];
        let position = entries.partition_point(|other| other.offset <= entry.offset);
        entries.insert(position, entry);
        if entries.len() > CHUNK {
            let upper = entries.split_off(CHUNK / 2);
            self.0.insert(chunk + 1, upper);
        }
    }
}

pub(crate) struct PlacedBuffers<'p> {
    problem: &'p Problem,
    levels: Vec<WindowLevel>,
}

/// Windows of one width.
struct WindowLevel {
    /// Windows begin at multiples of this and are twice as wide.
    stride: usize,
    windows: Vec<OffsetWindow>,
}

impl WindowLevel {
    fn new(sections: usize, stride: usize) -> Self {
        Self {
            stride,
            windows: vec![OffsetWindow::default(); sections.div_ceil(stride)],
        }
    }

    /// Windows in which something with this span is live.
    fn windows_of(&self, span: Span) -> std::ops::Range<usize> {
        let first = (span.start as usize / self.stride).saturating_sub(1);
        first..(span.end as usize - 1) / self.stride + 1
    }

    /// The window that contains this span.
    fn window_around(&self, span: Span) -> Option<usize> {
        let window = span.start as usize / self.stride;
        (span.end as usize <= (window + 2) * self.stride).then_some(window)
    }
}

impl<'p> PlacedBuffers<'p> {
    pub(crate) fn new(problem: &'p Problem) -> Self {
        let sections = problem.timeline().sections().max(1);
        // How often the whole can be quartered and still be as wide as a buffer.
        let quarterings = |width: usize| (sections / width).max(1).ilog2() as usize / 2;
        let most = quarterings(NARROWEST);
        let mut is_asked_for = vec![false; most + 1];
        for buffer in problem.sized() {
            let own = quarterings(problem.span(buffer).sections().len());
            is_asked_for[own.min(most)] = true;
        }
        let mut levels = vec![WindowLevel::new(sections, sections)];
        let mut left = ENTRIES_A_BUFFER * problem.len();
        for quartering in (1..=most).filter(|&quartering| is_asked_for[quartering]) {
            let level = WindowLevel::new(sections, sections >> (2 * quartering));
            let entries: usize = problem
                .sized()
                .map(|buffer| level.windows_of(problem.span(buffer)).len())
                .sum();
            if entries > left {
                break;
            }
            left -= entries;
            levels.push(level);
        }
        // The widest level is never asked where the next narrower one covers the whole time.
        let contains_all = |level: &WindowLevel| {
            problem
                .sized()
                .all(|buffer| level.window_around(problem.span(buffer)).is_some())
        };
        if levels.get(1).is_some_and(contains_all) {
            levels.remove(0);
        }
        Self { problem, levels }
    }

    pub(crate) fn insert(&mut self, buffer: usize, offset: u64) {
        let span = self.problem.span(buffer);
        let entry = PlacedSpan {
            offset,
            end: offset + self.problem.buffers()[buffer].size,
            span,
        };
        for level in &mut self.levels {
            for window in level.windows_of(span) {
                level.windows[window].insert(entry);
            }
        }
    }

    /// Where the smallest gap that holds `buffer` begins, and how many entries that took to see.
    pub(crate) fn best_gap(&self, buffer: usize) -> (u64, usize) {
        let span = self.problem.span(buffer);
        let Buffer {
            size, alignment, ..
        } = self.problem.buffers()[buffer];
        let window = self
            .levels
            .iter()
            .rev()
            .find_map(|level| Some(&level.windows[level.window_around(span)?]));
        let mut best: Option<(u64, u64)> = None;
        let mut free = 0_u64;
        let mut looked_at = 0;
        for entry in window
            .into_iter()
            .flat_map(|window| window.0.iter().flatten())
        {
            looked_at += 1;
            if !entry.span.overlaps(span) {
                continue;
            }
            if entry.offset >= free + size {
                let gap = entry.offset - free;
                if best.is_none_or(|(smallest, _)| gap < smallest) {
                    best = Some((gap, free));
                }
            }
            free = free.max(entry.end.next_multiple_of(alignment));
        }
        (best.map_or(free, |(_, offset)| offset), looked_at)
    }
}
