//! The figures of a store.

use std::{iter::Sum, ops, time::Duration};

use crate::{Description, Digest};

/// Figures of a tenant's store, or the sum over several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Sealed mappings.
    pub segments: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of these tensors.
    pub bytes_stored: u64,
    /// Bytes between the end of each tensor and the next page.
    pub bytes_padding: u64,
    /// Bytes of tensors, summed over leases: what the holders would use without the store.
    pub bytes_leased: u64,
    /// Leases of all holders.
    pub leases: u64,
    /// Holders: connections, and leases in process.
    pub holders: u64,
    /// Requests for tensors that were there, since the start.
    pub hits: u64,
    /// Requests for tensors that the holder then filled.
    pub misses: u64,
    /// Requests for tensors that another holder was filling.
    pub waits: u64,
    /// Idle tensors that were dropped.
    pub reclaimed: u64,
    /// Nanoseconds that acquires spent waiting for tensors that others were filling, summed over acquires.
    pub wait_ns: u64,
}

impl Stat {
    /// Bytes that sharing saves: those leased, summed over leases, minus those stored. Negative while idle tensors are
    /// kept.
    #[must_use]
    pub fn bytes_saved(&self) -> i64 {
        signed(self.bytes_leased) - signed(self.bytes_stored)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

impl ops::Add for Stat {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            segments: self.segments + other.segments,
            tensors: self.tensors + other.tensors,
            bytes_stored: self.bytes_stored + other.bytes_stored,
            bytes_padding: self.bytes_padding + other.bytes_padding,
            bytes_leased: self.bytes_leased + other.bytes_leased,
            leases: self.leases + other.leases,
            holders: self.holders + other.holders,
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            waits: self.waits + other.waits,
            reclaimed: self.reclaimed + other.reclaimed,
            wait_ns: self.wait_ns + other.wait_ns,
        }
    }
}

impl Sum for Stat {
    fn sum<I: Iterator<Item = Self>>(stats: I) -> Self {
        stats.fold(Self::default(), ops::Add::add)
    }
}

/// A tensor in a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its digest.
    pub digest: Digest,
    /// Its description.
    pub description: Description,
    /// Its size in bytes.
    pub length: u64,
    /// Its leases.
    pub leases: u64,
    /// How long it has been without a lease; `None` while it has one.
    pub idle: Option<Duration>,
}

/// How one [`acquire`](crate::Store::acquire) got its tensors; each distinct one counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acquired {
    /// Tensors that were there.
    pub hits: u64,
    /// Bytes of these.
    pub hit_bytes: u64,
    /// Tensors that this call filled.
    pub filled: u64,
    /// Bytes of these.
    pub filled_bytes: u64,
    /// Tensors that others were filling.
    pub waited: u64,
    /// Bytes of these.
    pub waited_bytes: u64,
    /// How long this call waited for them.
    pub wait: Duration,
}
