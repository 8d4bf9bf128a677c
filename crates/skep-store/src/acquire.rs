//! Acquires tensors from a store in this process or in a daemon.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Instant,
};

use crate::{
    Acquired, Digest, FillError, LoadOrder, MAX_DIMS, MAX_LAYOUT_BYTES, StoreError, Wanted,
    availability::Availability,
    layout::room,
    ledger::SegmentId,
    order::{MAX_TENSORS, chunks},
    segment::{Segment, SegmentDraft},
};

/// What a holder asks of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Report what is there.
    Look,
    /// The same, and give me tickets for the rest, except what others fill.
    Claim,
    /// The same, and wait a while if others fill all of it.
    Wait,
}

/// Where a tensor lies.
#[derive(Debug, Clone)]
pub(crate) struct Spot {
    /// The store's number for the segment.
    pub(crate) id: SegmentId,
    pub(crate) segment: Arc<Segment>,
    pub(crate) offset: u64,
}

/// A tensor in a segment that a holder hands over.
#[derive(Debug)]
pub(crate) struct Offered<'a> {
    pub(crate) wanted: &'a Wanted,
    pub(crate) offset: u64,
}

/// What an acquire needs of a store.
pub(crate) trait StoreAccess {
    /// Says what is there of at most [`MAX_TENSORS`] tensors, and leases it.
    fn take(
        &mut self,
        wanted: &[&Wanted],
        mode: Mode,
    ) -> Result<Vec<Availability<Spot>>, StoreError>;

    /// Hands a sealed segment over. Leases each tensor: in this segment, or in the one that the store already has.
    fn publish(
        &mut self,
        segment: Arc<Segment>,
        offered: &[Offered<'_>],
    ) -> Result<Vec<Spot>, StoreError>;

    /// Gives tickets back, so that others can fill these tensors.
    fn give_back(&mut self, digests: &[Digest]);
}

/// The tensors of one acquire, each distinct one once.
#[derive(Debug)]
pub(crate) struct AcquiredTensors {
    /// The location of each distinct tensor.
    pub(crate) spots: Vec<Spot>,
    /// For each tensor that was asked for, its index in `spots`.
    pub(crate) distinct: Vec<usize>,
    pub(crate) figures: Acquired,
}

/// Writes the bytes of the tensor at an index of what was asked for.
pub type Fill<'a> = &'a mut dyn FnMut(usize, &mut [u8]) -> Result<(), FillError>;

/// Acquires all of these: first what is there, then chunk by chunk what nobody fills yet, last what others fill.
pub(crate) fn acquire(
    port: &mut impl StoreAccess,
    wanted: &[Wanted],
    order: LoadOrder,
    fill: Fill<'_>,
) -> Result<AcquiredTensors, StoreError> {
    let (mut run, distinct) = Acquiring::new(port, wanted, fill)?;
    run.get_all(order)?;
    run.end(distinct)
}

/// A filler for acquires that fill nothing.
fn no_fill(_: usize, _: &mut [u8]) -> Result<(), FillError> {
    Err(FillError::new("nothing is filled"))
}

/// Leases those tensors that are there, in their order. Also returns the index of each one among them.
pub(crate) fn look(
    port: &mut impl StoreAccess,
    wanted: &[Wanted],
) -> Result<(AcquiredTensors, Vec<Option<usize>>), StoreError> {
    let mut fill = no_fill;
    let (mut run, distinct) = Acquiring::new(port, wanted, &mut fill)?;
    run.look()?;
    let mut spots = Vec::new();
    let places: Vec<Option<usize>> = run
        .spots
        .into_iter()
        .map(|spot| {
            spots.push(spot?);
            Some(spots.len() - 1)
        })
        .collect();
    let mut distinct_of_present = Vec::new();
    let indices = distinct
        .into_iter()
        .map(|position| {
            distinct_of_present.push(places[position]?);
            Some(distinct_of_present.len() - 1)
        })
        .collect();
    let got = AcquiredTensors {
        spots,
        distinct: distinct_of_present,
        figures: run.figures,
    };
    Ok((got, indices))
}

/// Whether a tensor's description fits into messages, and into the memory that the store has for it.
fn check_description(wanted: &Wanted) -> Result<(), StoreError> {
    let checks = [
        (wanted.description.dims.len(), MAX_DIMS, "dims"),
        (
            wanted.description.layout.len(),
            MAX_LAYOUT_BYTES,
            "bytes of its layout's name",
        ),
    ];
    for (got, limit, what) in checks {
        if got > limit {
            return Err(StoreError::Oversized {
                digest: wanted.digest,
                what: format!("{got} {what}"),
                limit: limit as u64,
            });
        }
    }
    Ok(())
}

/// The index at which each distinct tensor is first asked for, and for each tensor its position among those.
fn distinct(wanted: &[Wanted]) -> Result<(Vec<usize>, Vec<usize>), StoreError> {
    let mut firsts = Vec::new();
    let mut known: HashMap<Digest, usize> = HashMap::new();
    let mut distinct = Vec::with_capacity(wanted.len());
    for (index, tensor) in wanted.iter().enumerate() {
        check_description(tensor)?;
        let position = *known.entry(tensor.digest).or_insert_with(|| {
            firsts.push(index);
            firsts.len() - 1
        });
        let first = &wanted[firsts[position]];
        if first != tensor {
            return Err(StoreError::description(first, tensor));
        }
        distinct.push(position);
    }
    Ok((firsts, distinct))
}

struct Acquiring<'a, 'f, P> {
    port: &'a mut P,
    /// Distinct tensors. Positions in the methods below index this list.
    wanted: Vec<&'a Wanted>,
    /// The index of each in what the caller asked for.
    firsts: Vec<usize>,
    spots: Vec<Option<Spot>>,
    /// Which of them others were filling.
    waits: Vec<bool>,
    fill: Fill<'f>,
    figures: Acquired,
}

impl<'a, 'f, P: StoreAccess> Acquiring<'a, 'f, P> {
    /// Starts for the distinct tensors. Also returns the position of each tensor among them.
    fn new(
        port: &'a mut P,
        wanted: &'a [Wanted],
        fill: Fill<'f>,
    ) -> Result<(Self, Vec<usize>), StoreError> {
        let (firsts, distinct) = distinct(wanted)?;
        let run = Self {
            port,
            wanted: firsts.iter().map(|index| &wanted[*index]).collect(),
            spots: vec![None; firsts.len()],
            waits: vec![false; firsts.len()],
            firsts,
            fill,
            figures: Acquired::default(),
        };
        Ok((run, distinct))
    }

    fn end(self, distinct: Vec<usize>) -> Result<AcquiredTensors, StoreError> {
        let spots = self.spots.into_iter().collect::<Option<Vec<Spot>>>();
        Ok(AcquiredTensors {
            spots: spots
                .ok_or_else(|| StoreError::protocol("an answer is missing for a tensor"))?,
            distinct,
            figures: self.figures,
        })
    }

    /// Leases what is there, and returns the positions of the rest.
    fn look(&mut self) -> Result<Vec<usize>, StoreError> {
        let all: Vec<usize> = (0..self.wanted.len()).collect();
        let mut missing = Vec::new();
        for some in all.chunks(MAX_TENSORS) {
            missing.extend(self.ask(some, Mode::Look)?.left);
        }
        Ok(missing)
    }

    fn get_all(&mut self, order: LoadOrder) -> Result<(), StoreError> {
        let missing = self.look()?;
        let mut waiting = Vec::new();
        for chunk in chunks(&self.wanted, &missing, order) {
            let asked = self.ask(&chunk, Mode::Claim)?;
            self.fill(&asked.fills)?;
            waiting.push(asked.left);
        }
        for mut chunk in waiting {
            while !chunk.is_empty() {
                let begun = Instant::now();
                let asked = self.ask(&chunk, Mode::Wait)?;
                self.figures.wait += begun.elapsed();
                self.fill(&asked.fills)?;
                chunk = asked.left;
            }
        }
        Ok(())
    }

    /// Asks for some positions, and leases what is there.
    fn ask(&mut self, positions: &[usize], mode: Mode) -> Result<Remaining, StoreError> {
        let wanted: Vec<&Wanted> = positions.iter().map(|p| self.wanted[*p]).collect();
        let found = self.port.take(&wanted, mode)?;
        let mut asked = Remaining::default();
        for (position, found) in positions.iter().zip(found) {
            match found {
                Availability::Here(spot) => self.found(*position, spot),
                Availability::Fill => asked.fills.push(*position),
                Availability::Wait => {
                    self.waits[*position] = true;
                    asked.left.push(*position);
                }
                Availability::Absent => asked.left.push(*position),
            }
        }
        Ok(asked)
    }

    fn found(&mut self, position: usize, spot: Spot) {
        let bytes = self.wanted[position].length;
        if self.waits[position] {
            self.figures.waited += 1;
            self.figures.waited_bytes += bytes;
        } else {
            self.figures.hits += 1;
            self.figures.hit_bytes += bytes;
        }
        self.spots[position] = Some(spot);
    }

    /// Fills a segment with the tensors whose tickets this holder has, and hands it over. Gives the tickets back if
    /// that fails.
    fn fill(&mut self, positions: &[usize]) -> Result<(), StoreError> {
        if positions.is_empty() {
            return Ok(());
        }
        let filled = catch_unwind(AssertUnwindSafe(|| self.try_fill(positions)));
        if !matches!(filled, Ok(Ok(()))) {
            let digests: Vec<Digest> = positions.iter().map(|p| self.wanted[*p].digest).collect();
            self.port.give_back(&digests);
        }
        filled.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn try_fill(&mut self, positions: &[usize]) -> Result<(), StoreError> {
        let mut offered = Vec::with_capacity(positions.len());
        let mut size = 0_u64;
        for position in positions {
            let wanted = self.wanted[*position];
            offered.push(Offered {
                wanted,
                offset: size,
            });
            size = size.saturating_add(room(wanted.length));
        }
        let mut draft = SegmentDraft::new(size)?;
        for (position, tensor) in positions.iter().zip(&offered) {
            let bytes = draft.part(tensor.offset, tensor.wanted.length)?;
            let index = self.firsts[*position];
            (self.fill)(index, bytes).map_err(|cause| StoreError::Fill { index, cause })?;
        }
        let segment = Arc::new(draft.seal()?);
        let spots = self.port.publish(segment, &offered)?;
        for (position, spot) in positions.iter().zip(spots) {
            self.figures.filled += 1;
            self.figures.filled_bytes += self.wanted[*position].length;
            self.spots[*position] = Some(spot);
        }
        Ok(())
    }
}

/// What remains to be done after an answer.
#[derive(Debug, Default)]
struct Remaining {
    /// Positions to fill.
    fills: Vec<usize>,
    /// Positions that are not there.
    left: Vec<usize>,
}
