//! A holder's right to tensors, and access to their bytes.

use std::{fmt, os::fd::BorrowedFd, sync::Arc};

use bytes::Bytes;

use crate::{Acquired, StoreError, Wanted, acquire::AcquiredTensors, segment::Segment};

/// Those of some tensors that a store has.
#[derive(Debug, Clone)]
pub struct Present {
    /// A lease to those that are there, in their order.
    pub lease: Lease,
    /// For each tensor that was asked for, its index in the lease; `None` if it is not there.
    pub indices: Vec<Option<usize>>,
}

/// The lengths of the tensors that are there, in their order.
pub(crate) fn lengths(wanted: &[Wanted], indices: &[Option<usize>]) -> Vec<u64> {
    let present = wanted.iter().zip(indices);
    present
        .filter(|(_, index)| index.is_some())
        .map(|(wanted, _)| wanted.length)
        .collect()
}

/// A right to tensors. Their bytes neither move nor change while the lease, a clone of it or any [bytes](Self::bytes)
/// from it exist.
///
/// Indices are those of the request.
#[derive(Clone)]
pub struct Lease(Arc<LeaseInner>);

struct LeaseInner {
    parts: Vec<LeasedTensor>,
    /// For each tensor, its index in `parts`.
    distinct: Vec<usize>,
    figures: Acquired,
    /// Tells the store, when dropped, that the lease has ended.
    _hold: Box<dyn fmt::Debug + Send + Sync>,
}

struct LeasedTensor {
    segment: Arc<Segment>,
    offset: u64,
    length: u64,
}

/// The range of a file that holds a tensor, to map it elsewhere.
#[derive(Debug, Clone, Copy)]
pub struct FileRange<'a> {
    /// The file. A sealed memory file of the store can be mapped for reading, shared or (before Linux 6.7) private.
    /// Duplicate the descriptor to use it for longer than the lease.
    pub descriptor: BorrowedFd<'a>,
    /// Where the tensor begins, in bytes; a multiple of the page size.
    pub offset: u64,
    /// The tensor's length in bytes. The rest of its last page is zero.
    pub length: u64,
}

impl Lease {
    /// A lease to what an acquire got. Maps the segments.
    pub(crate) fn new(
        got: AcquiredTensors,
        lengths: impl Fn(usize) -> u64,
        hold: Box<dyn fmt::Debug + Send + Sync>,
    ) -> Result<Self, StoreError> {
        let mut lengths_of_parts = vec![0; got.spots.len()];
        for (index, part) in got.distinct.iter().enumerate() {
            lengths_of_parts[*part] = lengths(index);
        }
        let mut parts = Vec::with_capacity(got.spots.len());
        for (spot, length) in got.spots.into_iter().zip(lengths_of_parts) {
            spot.segment.mapped()?;
            if spot.segment.bytes(spot.offset, length).is_none() {
                return Err(StoreError::protocol(format!(
                    "{length} bytes from {} on are not in a segment of {} bytes",
                    spot.offset,
                    spot.segment.size()
                )));
            }
            parts.push(LeasedTensor {
                segment: spot.segment,
                offset: spot.offset,
                length,
            });
        }
        Ok(Self(Arc::new(LeaseInner {
            parts,
            distinct: got.distinct,
            figures: got.figures,
            _hold: hold,
        })))
    }

    /// The number of tensors; one that was asked for twice counts twice.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.distinct.len()
    }

    /// Whether nothing was asked for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.distinct.is_empty()
    }

    /// A tensor's bytes, without a copy; they begin at a page. They keep the lease alive.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[must_use]
    pub fn bytes(&self, index: usize) -> Bytes {
        Bytes::from_owner(LeasedBytes {
            lease: self.clone(),
            part: self.0.distinct[index],
        })
    }

    /// The range of the file that holds a tensor.
    ///
    /// # Panics
    /// If the index is out of bounds.
    #[must_use]
    pub fn file_range(&self, index: usize) -> FileRange<'_> {
        let part = &self.0.parts[self.0.distinct[index]];
        FileRange {
            descriptor: part.segment.descriptor(),
            offset: part.offset,
            length: part.length,
        }
    }

    /// How the tensors were acquired.
    #[must_use]
    pub fn figures(&self) -> Acquired {
        self.0.figures
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("tensors", &self.len())
            .field("figures", &self.0.figures)
            .finish_non_exhaustive()
    }
}

/// The owner of the bytes that [`Lease::bytes`] gives out.
struct LeasedBytes {
    lease: Lease,
    part: usize,
}

impl AsRef<[u8]> for LeasedBytes {
    fn as_ref(&self) -> &[u8] {
        let part = &self.lease.0.parts[self.part];
        // The lease checked the range when it was made, and mappings do not shrink.
        part.segment
            .bytes(part.offset, part.length)
            .unwrap_or_default()
    }
}
