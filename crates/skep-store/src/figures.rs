//! What a store says of itself.

use std::{iter::Sum, ops, time::Duration};

use crate::{Description, Digest};

/// Figures of a tenant's store, or of several together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stat {
    /// Sealed mappings.
    pub segments: u64,
    /// Tensors in them.
    pub tensors: u64,
    /// Bytes of these tensors.
    pub bytes_stored: u64,
    /// Bytes of segments behind tensors, up to the next page.
    pub bytes_padding: u64,
    /// Bytes of tensors summed over leases: what the holders would have without the store.
    pub bytes_leased: u64,
    /// Rights of holders to tensors.
    pub leases: u64,
    /// Connections, and leases in process.
    pub holders: u64,
    /// Tensors asked for that were there, since the start.
    pub hits: u64,
    /// Tensors asked for that whoever asked was to fill.
    pub misses: u64,
    /// Tensors asked for that somebody else was filling.
    pub waits: u64,
    /// Tensors that were dropped because nobody had a lease.
    pub reclaimed: u64,
    /// Nanoseconds that acquires did nothing but wait for tensors that somebody else was filling, summed over them.
    pub wait_ns: u64,
}

impl Stat {
    /// Bytes that sharing saves: those leased, summed over leases, less those stored; negative while tensors are kept
    /// that nobody has a lease to.
    #[must_use]
    pub fn bytes_saved(&self) -> i64 {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        signed(self.bytes_leased) - signed(self.bytes_stored)
    }
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
    /// What it is called.
    pub digest: Digest,
    /// What it is.
    pub description: Description,
    /// Bytes.
    pub length: u64,
    /// Holders.
    pub leases: u64,
    /// For how long it has had no holder; none while it has one.
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
    /// Tensors that somebody else was filling.
    pub waited: u64,
    /// Bytes of these.
    pub waited_bytes: u64,
    /// How long this call did nothing but wait for them.
    pub wait: Duration,
}
