//! The search itself: does a piece fit under a capacity?
//!
//! Sections are machines that work off one buffer after another from address 0 upwards, and a buffer occupies all
//! machines of its span at once. The state keeps, for each buffer without a place, the lowest address at which it can
//! still begin (`low`), and for each section the bytes that have yet to be placed in it (`rest`).
//!
//! One decision is: buffer `b` is below everything without a place that it meets, so it lies at its `low`; or it is
//! not, then it is *blocked* and rests on something that has no place yet, which raises its `low`. So each decision
//! that is taken back tightens the next ones, and no arrangement is visited twice.
//!
//! Conclusions are drawn from a decision until nothing more follows:
//! - a buffer lies above what it meets and is already placed;
//! - in a section whose rest fills the capacity from some address on, whatever cannot begin by then is not the lowest
//!   of the section, so it lies above the end of one that can; if none can, the decision was wrong;
//! - a blocked buffer lies above the lowest end of those that it meets.
//!
//! What is left falls apart where no unplaced buffer is live on both sides; the parts are solved one by one, and one
//! part that cannot be solved ends the search in all of them. A part whose state has failed before is not searched
//! again ([`FailedStates`]).

use crate::budget::WorkMeter;

use super::{
    failed::{FailedStates, StateHash},
    piece::{Piece, PieceBuffer},
};

/// A buffer that is not known.
const UNKNOWN: u32 = u32::MAX;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SearchEnd {
    /// Every buffer has a place.
    Fits,
    /// There is no plan of this size.
    Impossible,
    /// The node budget or the caller ended it.
    Stopped,
}

/// What to try first among the buffers with the lowest address.
#[derive(Clone, Copy)]
pub(crate) struct Preference<'a> {
    /// Which section they are in.
    pub(crate) section: SectionMeasure,
    /// Of equal ones, the smallest first.
    pub(crate) rank: &'a [u32],
}

/// The measure by which a search prefers sections, as far as it has got.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum SectionMeasure {
    /// None.
    Any,
    /// The fewest bytes to lose.
    Slack,
}

/// A step of the trail, which can be taken back.
#[derive(Clone, Copy)]
enum TrailEntry {
    Low(u32, i64),
    Blocked(u32, bool),
    Placed(u32),
}

/// Buffers that hang together in time, those with a place left out: a range of [`PieceSearch::parts`].
#[derive(Clone, Copy)]
struct TimePart {
    start: usize,
    end: usize,
    /// The hash of its state when it was opened.
    state: u64,
}

/// A buffer that has been placed for a try, and the state to return to.
struct SearchFrame {
    part: TimePart,
    item: usize,
    /// Lengths of the trail, of the parts and of the open parts before.
    trail: usize,
    parts: usize,
    open: usize,
}

/// A search for a plan of one piece under one capacity.
pub(crate) struct PieceSearch<'a> {
    piece: &'a Piece,
    capacity: i64,
    preference: Preference<'a>,
    low: Vec<i64>,
    placed: Vec<bool>,
    blocked: Vec<bool>,
    /// The one on which a blocked buffer could rest at its `low`: saves looking for another while it lasts.
    support: Vec<u32>,
    rest: Vec<i64>,
    sizes: Vec<i64>,
    /// The members of each section, those without a place first, and how many these are.
    members: Vec<u32>,
    entries: Vec<u32>,
    unplaced: Vec<u32>,
    /// In each section, the buffer with the lowest end of those that can be first; [`UNKNOWN`] where something that has
    /// been taken back since may have decided that.
    lowest_first: Vec<u32>,
    /// What a section can still lose to gaps, when it was looked at last.
    slack: Vec<i64>,
    /// How often a section has ended a try.
    failures: Vec<u64>,
    trail: Vec<TrailEntry>,
    queue: Vec<u32>,
    queued: Vec<bool>,
    /// Members of the parts on all levels of the search.
    parts: Vec<u32>,
    /// Parts that no try has begun with.
    open: Vec<TimePart>,
    failed: FailedStates,
    meter: WorkMeter<'a>,
    nodes: u64,
}

impl<'a> PieceSearch<'a> {
    /// `failed` is what earlier searches with this capacity have learned.
    pub(crate) fn new(
        piece: &'a Piece,
        capacity: i64,
        preference: Preference<'a>,
        failed: FailedStates,
        should_stop: &'a dyn Fn() -> bool,
    ) -> Self {
        let count = piece.items.len();
        Self {
            piece,
            capacity,
            preference,
            low: vec![0; count],
            placed: vec![false; count],
            blocked: vec![false; count],
            support: (0..).take(count).collect(),
            rest: piece.loads.clone(),
            sizes: piece.items.iter().map(|item| item.size).collect(),
            members: piece.lists().0.to_vec(),
            entries: piece.lists().1.to_vec(),
            unplaced: (0..piece.sections)
                .map(|section| number(piece.list(section).len()))
                .collect(),
            lowest_first: vec![UNKNOWN; piece.sections],
            slack: vec![0; piece.sections],
            failures: vec![0; piece.sections],
            trail: Vec::new(),
            queue: Vec::new(),
            queued: vec![false; piece.sections],
            parts: Vec::new(),
            open: Vec::new(),
            failed,
            meter: WorkMeter::new(should_stop),
            nodes: 0,
        }
    }

    /// Searches until a plan is found, all are ruled out, or a limit is reached. Call it once.
    pub(crate) fn run(&mut self, node_limit: u64) -> SearchEnd {
        let count = self.piece.items.len();
        self.parts = (0..).take(count).collect();
        let whole = TimePart {
            start: 0,
            end: count,
            state: 0,
        };
        for section in 0..self.piece.sections {
            self.enqueue(section);
        }
        if !(0..count).all(|item| self.raise(item, 0)) || !self.propagate(whole) {
            return self.end(SearchEnd::Impossible);
        }
        self.open.push(whole);
        let mut frames: Vec<SearchFrame> = Vec::new();
        loop {
            // What the last try has left open comes next; with nothing left, it has succeeded.
            let bottom = frames.last().map_or(0, |frame| frame.open);
            if self.open.len() == bottom {
                let Some(frame) = frames.pop() else {
                    return SearchEnd::Fits;
                };
                self.parts.truncate(frame.parts);
                continue;
            }
            let mut part = self.open.pop();
            // Until something has been placed: a wrong decision is taken back, and its opposite tried.
            while let Some(trying) = part {
                self.nodes += 1;
                // Each try looks through its part about four times.
                if self.nodes > node_limit || self.meter.spend(4 * (trying.end - trying.start)) {
                    return SearchEnd::Stopped;
                }
                let frame = self.choose(trying).map(|item| SearchFrame {
                    part: trying,
                    item,
                    trail: self.trail.len(),
                    parts: self.parts.len(),
                    open: self.open.len(),
                });
                let failed = match frame {
                    None => {
                        self.failed.insert(trying.state);
                        frames.pop()
                    }
                    Some(frame) => {
                        let follows = self.place(frame.item) && self.propagate(trying);
                        if follows && self.split(trying) {
                            frames.push(frame);
                            break;
                        }
                        Some(frame)
                    }
                };
                part = self.take_back(failed, &mut frames);
                if part.is_none() || self.meter.is_over() {
                    return self.end(SearchEnd::Impossible);
                }
            }
        }
    }

    /// What the search has found, if it was not ended meanwhile: then conclusions are missing.
    fn end(&self, found: SearchEnd) -> SearchEnd {
        if self.meter.is_over() {
            SearchEnd::Stopped
        } else {
            found
        }
    }

    /// Each buffer's address, once [`SearchEnd::Fits`].
    pub(crate) fn offsets(&self) -> &[i64] {
        &self.low
    }

    /// Tries that it took.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes
    }

    /// What it has learned, beside what it was given.
    pub(crate) fn into_failed(self) -> FailedStates {
        self.failed
    }

    /// How often each section has ended a try.
    pub(crate) fn failures(&self) -> &[u64] {
        &self.failures
    }

    /// Takes back a try and, while its opposite is no better, those before it. Returns the part to go on with.
    fn take_back(
        &mut self,
        failed: Option<SearchFrame>,
        frames: &mut Vec<SearchFrame>,
    ) -> Option<TimePart> {
        let mut failed = failed;
        while let Some(frame) = failed {
            self.undo(frame.trail);
            self.parts.truncate(frame.parts);
            self.open.truncate(frame.open);
            if self.block(frame.item) && self.propagate(frame.part) {
                return Some(frame.part);
            }
            if self.meter.is_over() {
                return None;
            }
            self.failed.insert(frame.part.state);
            failed = frames.pop();
        }
        None
    }

    /// The preferred one of the lowest of those that could be below all they meet.
    fn choose(&self, part: TimePart) -> Option<usize> {
        let Preference { section, rank } = self.preference;
        let mut best = None;
        let mut lowest = i64::MAX;
        for &item in &self.parts[part.start..part.end] {
            let item = item as usize;
            let low = self.low[item];
            if low > lowest || self.blocked[item] || self.placed[item] {
                continue;
            }
            let sections = self.piece.items[item].sections();
            let tightest = match section {
                SectionMeasure::Any => None,
                SectionMeasure::Slack => self.slack[sections].iter().min(),
            };
            let key = (low, tightest, rank[item]);
            if best.is_none_or(|(least, _)| key < least) {
                best = Some((key, item));
                lowest = low;
            }
        }
        best.map(|(_, item)| item)
    }

    /// Opens what is left of a part, split where nothing is live on both sides; false if the state of a part of it has
    /// failed before.
    ///
    /// A part that does not split and has lost little stays in use, members with a place and all: so the lists of all
    /// levels together stay linear.
    fn split(&mut self, part: TimePart) -> bool {
        let first = self.open.len();
        let bottom = self.parts.len();
        let mut start = bottom;
        let mut reach = 0;
        let mut state = StateHash::default();
        for position in part.start..part.end {
            let number = self.parts[position];
            if self.placed[number as usize] {
                continue;
            }
            let item = &self.piece.items[number as usize];
            let end = self.parts.len();
            if item.start >= reach && end > start {
                let state = std::mem::take(&mut state).finish();
                self.open.push(TimePart { start, end, state });
                start = end;
            }
            reach = reach.max(item.end);
            state.add(
                number,
                self.low[number as usize],
                self.blocked[number as usize],
            );
            self.parts.push(number);
        }
        let end = self.parts.len();
        let state = state.finish();
        if start == bottom && 8 * (end - bottom) > 7 * (part.end - part.start) {
            self.parts.truncate(bottom);
            self.open.push(TimePart { state, ..part });
        } else if end > start {
            self.open.push(TimePart { start, end, state });
        }
        let mut opened = self.open[first..].iter();
        !opened.any(|part| self.failed.contains(part.state))
    }

    /// Decides that `item` is below all that it meets and has no place yet.
    fn place(&mut self, item: usize) -> bool {
        let piece = self.piece;
        self.placed[item] = true;
        self.trail.push(TrailEntry::Placed(number(item)));
        let PieceBuffer { size, .. } = piece.items[item];
        let top = self.low[item] + size;
        for section in piece.items[item].sections() {
            self.rest[section] -= size;
            self.enqueue(section);
            // Behind those without a place.
            self.unplaced[section] -= 1;
            let entry = piece.entry(item, section);
            let place = self.entries[entry];
            let last = piece.list(section).start + self.unplaced[section] as usize;
            let other = self.members[last];
            self.members.swap(place as usize, last);
            self.entries[entry] = number(last);
            self.entries[piece.entry(other as usize, section)] = place;
        }
        let meets = piece.meets(item);
        if self.meter.spend(meets.len()) {
            return false;
        }
        for &other in meets {
            let other = other as usize;
            if self.placed[other] {
                continue;
            }
            if self.blocked[other] {
                self.blocked[other] = false;
                self.trail.push(TrailEntry::Blocked(number(other), true));
            }
            if self.low[other] < top && !self.raise(other, top) {
                return false;
            }
        }
        true
    }

    /// Decides that something without a place, which `item` meets, is below it.
    fn block(&mut self, item: usize) -> bool {
        self.blocked[item] = true;
        self.trail.push(TrailEntry::Blocked(number(item), false));
        self.rest_on_something(item)
    }

    /// Raises a blocked buffer to the lowest end of those that it meets.
    fn rest_on_something(&mut self, item: usize) -> bool {
        let piece = self.piece;
        let support = self.support[item] as usize;
        if support != item
            && !self.placed[support]
            && self.low[support] + piece.items[support].size <= self.low[item]
        {
            return true;
        }
        let meets = piece.meets(item);
        if self.meter.spend(meets.len()) {
            return false;
        }
        let lowest = meets
            .iter()
            .filter(|&&other| !self.placed[other as usize])
            .map(|&other| {
                let other_item = &piece.items[other as usize];
                (self.low[other as usize] + other_item.size, other)
            })
            .min();
        let Some((top, support)) = lowest else {
            return false;
        };
        self.support[item] = support;
        top <= self.low[item] || self.raise(item, top)
    }

    /// Raises what is known of where `item` can begin; false if that is too high.
    fn raise(&mut self, item: usize, to: i64) -> bool {
        let piece = self.piece;
        let low = piece.lowest_from(item, to, &self.placed);
        if low > piece.items[item].highest(self.capacity) {
            return false;
        }
        if low > self.low[item] {
            self.trail
                .push(TrailEntry::Low(number(item), self.low[item]));
            let before = std::mem::replace(&mut self.low[item], low);
            for section in piece.items[item].sections() {
                if self.matters(item, section, before) {
                    self.enqueue(section);
                }
            }
        }
        true
    }

    /// Whether something could follow in `section` from that `item` begins higher than `before`.
    fn matters(&self, item: usize, section: usize, before: i64) -> bool {
        let first = self.lowest_first[section];
        let floor = self.capacity - self.rest[section] - self.slack[section];
        let latest = self.capacity + self.piece.padding - self.rest[section];
        first == UNKNOWN
            || first as usize == item
            || before <= floor
            || (before <= latest && latest < self.low[item])
    }

    fn enqueue(&mut self, section: usize) {
        if !self.queued[section] {
            self.queued[section] = true;
            self.queue.push(number(section));
        }
    }

    /// Draws all conclusions within a part.
    fn propagate(&mut self, part: TimePart) -> bool {
        loop {
            while let Some(section) = self.queue.pop() {
                self.queued[section as usize] = false;
                if !self.first_of(section as usize) {
                    return false;
                }
            }
            for position in part.start..part.end {
                let item = self.parts[position] as usize;
                if self.blocked[item] && !self.placed[item] && !self.rest_on_something(item) {
                    return false;
                }
            }
            if self.queue.is_empty() {
                return true;
            }
        }
    }

    /// Finds which buffers can be the lowest in a section, and raises the others.
    fn first_of(&mut self, section: usize) -> bool {
        let piece = self.piece;
        let rest = self.rest[section];
        if rest == 0 {
            return true;
        }
        let list = piece.list(section).start;
        let list = list..list + self.unplaced[section] as usize;
        if self.meter.spend(list.len()) {
            return false;
        }
        let latest = self.capacity + piece.padding - rest;
        let mut lowest_top = i64::MAX;
        let mut lowest_first = UNKNOWN;
        let mut firsts = 0;
        // The lowest address of all, and of those that cannot be first.
        let mut floor = i64::MAX;
        let mut lowest_other = i64::MAX;
        for &item in &self.members[list.clone()] {
            let low = self.low[item as usize];
            floor = floor.min(low);
            // Without branches that depend on it: which ones can be first is hard to predict.
            let is_first = low <= latest;
            firsts += u32::from(is_first);
            lowest_other = lowest_other.min(if is_first { i64::MAX } else { low });
            let top = if is_first {
                low + self.sizes[item as usize]
            } else {
                i64::MAX
            };
            if top < lowest_top {
                (lowest_top, lowest_first) = (top, item);
            }
        }
        self.lowest_first[section] = lowest_first;
        self.slack[section] = self.capacity - rest - floor;
        if firsts == 0 {
            self.failures[section] += 1;
            return false;
        }
        if lowest_other >= lowest_top {
            return true;
        }
        for place in list {
            let item = self.members[place] as usize;
            let is_first = self.low[item] <= latest;
            if !is_first && self.low[item] < lowest_top && !self.raise(item, lowest_top) {
                return false;
            }
        }
        true
    }

    fn undo(&mut self, mark: usize) {
        while let Some(section) = self.queue.pop() {
            self.queued[section as usize] = false;
        }
        while self.trail.len() > mark {
            match self.trail.pop() {
                Some(TrailEntry::Low(item, low)) => {
                    self.low[item as usize] = low;
                    let sections = self.piece.items[item as usize].sections();
                    self.lowest_first[sections].fill(UNKNOWN);
                }
                Some(TrailEntry::Blocked(item, blocked)) => self.blocked[item as usize] = blocked,
                Some(TrailEntry::Placed(item)) => {
                    self.placed[item as usize] = false;
                    let item = &self.piece.items[item as usize];
                    for section in item.sections() {
                        self.rest[section] += item.size;
                        self.unplaced[section] += 1;
                    }
                    self.lowest_first[item.sections()].fill(UNKNOWN);
                }
                None => {}
            }
        }
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a piece has fewer than 2^31 buffers")
}
