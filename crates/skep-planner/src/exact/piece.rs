//! One piece of a problem, prepared for the search: few sections, neighbours listed, sizes in units.

use std::ops::Range;

use crate::{
    budget::WorkMeter,
    problem::{Buffer, Problem},
    timeline::{self, Span},
};

/// A buffer of a piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PieceBuffer {
    /// Its number in the problem.
    pub(crate) buffer: usize,
    /// Units that it takes, padding up to the common alignment included.
    pub(crate) size: i64,
    /// Units without that padding.
    pub(crate) bare: i64,
    /// Units, a power of two times the common alignment.
    alignment: i64,
    fixed: Option<i64>,
    /// Sections of the piece.
    pub(crate) start: u32,
    pub(crate) end: u32,
}

impl PieceBuffer {
    pub(crate) fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }

    pub(crate) fn sections(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// The highest address at which it can begin.
    pub(crate) fn highest(&self, capacity: i64) -> i64 {
        let highest = capacity - self.bare;
        self.fixed.map_or(highest, |fixed| fixed.min(highest))
    }
}

/// Buffers that hang together in time, prepared for [`PieceSearch`](super::search::PieceSearch).
///
/// Of the problem's sections only those are kept whose live set is contained in no other's: two buffers are live
/// together exactly if they are in one of these, and the load of the others is no larger.
pub(crate) struct Piece {
    pub(crate) items: Vec<PieceBuffer>,
    pub(crate) sections: usize,
    /// How much of a section may be padding above its topmost buffer.
    pub(crate) padding: i64,
    /// Units that are live in each section.
    pub(crate) loads: Vec<i64>,
    meets: Lists,
    members: Lists,
    /// For each item, where its entries of [`Piece::entry`] begin.
    first_entry: Vec<usize>,
    /// Where in the lists of members each item stands, section by section.
    entries: Vec<u32>,
    /// Fixed items that each item meets, by offset.
    fixed: Vec<Vec<u32>>,
}

/// Lists of numbers, one behind the other.
struct Lists {
    bounds: Vec<usize>,
    entries: Vec<u32>,
}

impl Lists {
    /// `None` where the caller ends it.
    fn new(lists: impl Iterator<Item = Vec<u32>>, meter: &mut WorkMeter<'_>) -> Option<Self> {
        let mut bounds = vec![0];
        let mut entries = Vec::new();
        for list in lists {
            if meter.spend(list.len()) {
                return None;
            }
            entries.extend(list);
            bounds.push(entries.len());
        }
        Some(Self { bounds, entries })
    }

    fn get(&self, list: usize) -> &[u32] {
        &self.entries[self.bounds[list]..self.bounds[list + 1]]
    }
}

impl Piece {
    /// How many entries the lists of a piece of these buffers have, at most.
    pub(crate) fn entries(problem: &Problem, buffers: &[usize]) -> usize {
        let sections: usize = buffers
            .iter()
            .map(|&buffer| problem.span(buffer).sections().len())
            .sum();
        let mut ends: Vec<u32> = buffers
            .iter()
            .map(|&buffer| problem.span(buffer).end)
            .collect();
        ends.sort_unstable();
        let mut starts: Vec<u32> = buffers
            .iter()
            .map(|&buffer| problem.span(buffer).start)
            .collect();
        starts.sort_unstable();
        let meets: usize = starts
            .iter()
            .enumerate()
            .map(|(begun, start)| begun - ends.partition_point(|end| end <= start))
            .sum();
        sections + 2 * meets
    }

    /// Prepares `buffers` of `problem`, which hang together in time. `None` where the caller ends it.
    pub(crate) fn new(
        problem: &Problem,
        buffers: &[usize],
        meter: &mut WorkMeter<'_>,
    ) -> Option<Self> {
        let all = problem.buffers();
        let alignment = buffers
            .iter()
            .map(|&buffer| all[buffer].alignment)
            .min()
            .unwrap_or(1);
        let units = |bytes: u64| i64::try_from(bytes).expect("a problem's sizes stay below 2^62");
        let spans: Vec<Span> = buffers.iter().map(|&buffer| problem.span(buffer)).collect();
        let (sections, spans) = maximal_sections(&spans);
        let mut items: Vec<PieceBuffer> = buffers
            .iter()
            .zip(&spans)
            .map(|(&buffer, span)| {
                let Buffer {
                    size,
                    alignment: own,
                    fixed,
                    ..
                } = all[buffer];
                PieceBuffer {
                    buffer,
                    size: units(size.next_multiple_of(alignment)),
                    bare: units(size),
                    alignment: units(own),
                    fixed: fixed.map(units),
                    start: span.start,
                    end: span.end,
                }
            })
            .collect();
        items.sort_by_key(|item| (item.start, item.buffer));
        let padding = items.iter().map(|item| item.size - item.bare).max();
        let mut members = vec![Vec::new(); sections];
        for (number, item) in (0..).zip(&items) {
            if meter.spend(item.sections().len()) {
                return None;
            }
            for section in item.sections() {
                members[section].push(number);
            }
        }
        let members = Lists::new(members.into_iter(), meter)?;
        // What is live where an item begins, and what begins later while it is live: items are sorted by their start.
        let meets = (0..).zip(&items).map(|(own, item): (u32, &PieceBuffer)| {
            let live = members.get(item.start as usize).iter().copied();
            let after = items.partition_point(|other| other.start <= item.start);
            let until = items.partition_point(|other| other.start < item.end);
            live.filter(|other| *other != own)
                .chain((0..).take(until).skip(after))
                .collect()
        });
        let meets = Lists::new(meets, meter)?;
        let mut first_entry = vec![0];
        for item in &items {
            first_entry.push(first_entry[first_entry.len() - 1] + item.sections().len());
        }
        let mut entries = vec![0; members.entries.len()];
        let mut taken = first_entry.clone();
        for (place, &item) in (0..).zip(&members.entries) {
            entries[taken[item as usize]] = place;
            taken[item as usize] += 1;
        }
        let has_fixed = items.iter().any(|item| item.fixed.is_some());
        let loads = loads(&items, sections, |item| item.size);
        let fixed = (0..items.len())
            .map(|item| {
                if !has_fixed {
                    return Vec::new();
                }
                let mut fixed: Vec<u32> = meets
                    .get(item)
                    .iter()
                    .copied()
                    .filter(|&other| items[other as usize].fixed.is_some())
                    .collect();
                fixed.sort_by_key(|&other| items[other as usize].fixed);
                fixed
            })
            .collect();
        Some(Self {
            sections,
            padding: padding.unwrap_or(0),
            loads,
            meets,
            members,
            first_entry,
            entries,
            fixed,
            items,
        })
    }

    /// A lower bound of the piece's plans, and the step in which their sizes differ: a capacity between two multiples
    /// of the step is no better than the lower one.
    pub(crate) fn bound(&self) -> (i64, i64) {
        let highest = |loads: &[i64]| loads.iter().copied().max().unwrap_or(0);
        let bare = highest(&loads(&self.items, self.sections, |item| item.bare));
        let padded = highest(&self.loads) - self.padding;
        let fixed = self
            .items
            .iter()
            .map(|item| item.fixed.unwrap_or(0) + item.bare);
        let bound = bare.max(padded).max(fixed.max().unwrap_or(0));
        if self.padding > 0 {
            return (bound, 1);
        }
        let step = self.items.iter().fold(0, |step, item| {
            let aligned = if item.alignment > 1 {
                item.alignment
            } else {
                0
            };
            [item.size, aligned, item.fixed.unwrap_or(0)]
                .into_iter()
                .fold(step, greatest_common_divisor)
        });
        (bound, step.max(1))
    }

    /// Items that are live together with `item`.
    pub(crate) fn meets(&self, item: usize) -> &[u32] {
        self.meets.get(item)
    }

    /// The members of all sections, one list behind the other, and where each of them stands.
    pub(crate) fn lists(&self) -> (&[u32], &[u32]) {
        (&self.members.entries, &self.entries)
    }

    /// Where in the lists of members that of `section` begins and ends.
    pub(crate) fn list(&self, section: usize) -> Range<usize> {
        self.members.bounds[section]..self.members.bounds[section + 1]
    }

    /// Which entry says where `item` stands in the list of `section`.
    pub(crate) fn entry(&self, item: usize, section: usize) -> usize {
        self.first_entry[item] + section - self.items[item].start as usize
    }

    /// The first address from `from` on at which `item` is aligned and clear of fixed items that have no place yet.
    pub(crate) fn lowest_from(&self, item: usize, from: i64, placed: &[bool]) -> i64 {
        let own = &self.items[item];
        let mut low = aligned(from, own.alignment);
        if let Some(fixed) = own.fixed {
            return low.max(fixed);
        }
        for &other in &self.fixed[item] {
            let fixed = &self.items[other as usize];
            let at = fixed.fixed.unwrap_or(0);
            if !placed[other as usize] && low + own.bare > at {
                low = low.max(aligned(at + fixed.size, own.alignment));
            }
        }
        low
    }
}

/// The units of `items` that are live in each of `sections` sections.
fn loads(items: &[PieceBuffer], sections: usize, size: fn(&PieceBuffer) -> i64) -> Vec<i64> {
    let sizes = items
        .iter()
        .map(|item| (item.span(), size(item).unsigned_abs()));
    timeline::loads(sections, sizes)
        .into_iter()
        .map(|load| i64::try_from(load).expect("sums of a problem stay below 2^62"))
        .collect()
}

/// `value`, up to the next multiple of `alignment`, a power of two.
fn aligned(value: i64, alignment: i64) -> i64 {
    (value + alignment - 1) & -alignment
}

fn greatest_common_divisor(first: i64, second: i64) -> i64 {
    let (mut first, mut second) = (first, second);
    while second != 0 {
        (first, second) = (second, first % second);
    }
    first
}

/// Keeps the sections in which something has begun since the last one kept, and something ends.
///
/// Returns how many there are, and the spans in their numbers.
fn maximal_sections(spans: &[Span]) -> (usize, Vec<Span>) {
    let last = spans.iter().map(|span| span.end).max().unwrap_or(0) as usize;
    let mut begins = vec![false; last + 1];
    let mut ends = vec![false; last + 1];
    for span in spans {
        begins[span.start as usize] = true;
        ends[span.end as usize] = true;
    }
    // Number of kept sections before each section.
    let mut before = vec![0_u32; last + 2];
    let mut begun = false;
    for section in 0..last {
        begun |= begins[section];
        let kept = begun && ends[section + 1];
        begun &= !kept;
        before[section + 1] = before[section] + u32::from(kept);
    }
    let spans = spans
        .iter()
        .map(|span| Span {
            start: before[span.start as usize],
            end: before[span.end as usize],
        })
        .collect();
    (before[last] as usize, spans)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_preparation_ends_when_told_to() {
        // A quarter of a million pairs that meet.
        let buffers = (0..500).map(|number| Buffer::new(8, number, 1_000 + number));
        let problem = Problem::new(buffers.collect()).expect("valid buffers");
        let all: Vec<usize> = (0..problem.len()).collect();
        let questions = |last: u64| {
            let asked = Cell::new(0);
            let should_stop = || {
                asked.set(asked.get() + 1);
                asked.get() >= last
            };
            let piece = Piece::new(&problem, &all, &mut WorkMeter::new(&should_stop));
            (piece.is_some(), asked.get())
        };
        let (is_prepared, asked) = questions(u64::MAX);
        assert!(is_prepared && asked > 10, "{asked}");
        for last in [1, asked / 2, asked] {
            assert_eq!(questions(last), (false, last));
        }
        assert!(Piece::entries(&problem, &all) >= 500 * 499);
    }
}
