//! What a store keeps, for how long, and how much anybody may take of it.

use std::time::Duration;

/// What idle tensors may take at most unless somebody says otherwise: some large models. Where there is little memory, half
/// of it: the rest is for runs, and for weights that are in use beside them.
const MAX_BUDGET_BYTES: u64 = 4 << 30;

/// Settings of a store. Each tenant has these for itself: what one holds changes nothing for another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of segments above which idle ones go at once, the least recently used first; those with a lease stay.
    /// Default: 4 GiB, at most half of the memory there is.
    pub budget_bytes: u64,
    /// How long an idle tensor stays at least within the budget, and at most. Default: 10 minutes.
    pub keep_alive: Duration,
    /// Bytes of segments that are never exceeded; what would is refused. Default: the memory there is, control groups counted.
    pub max_tenant_bytes: u64,
    /// Bytes of tensors that one holder (a connection; in process, a lease) may have leased. Default: the memory there is.
    pub max_holder_bytes: u64,
    /// Tensors that one holder may have leased. Default: 65536.
    pub max_holder_leases: u64,
    /// Tensors that one holder may be about to fill; nobody else fills these meanwhile. Default: 8192, as many as four
    /// messages name: an acquire fills what it was told to before it asks for more, but a connection may have several.
    pub max_holder_tickets: u64,
    /// Bytes of the tensors that one holder may be about to fill, if these are several: room is kept for them. Default: 1
    /// GiB, a hundred segments of small tensors.
    pub max_holder_ticket_bytes: u64,
    /// Connections; in process, leases. Default: 1024.
    pub max_holders: u64,
    /// Segments; each is an open descriptor. Default: 8192.
    pub max_segments: u64,
    /// Tensors. Default: 262144.
    pub max_tensors: u64,
    /// How long others wait for whoever fills a tensor before they fill it, too; the first one published is taken.
    /// Default: 60 s.
    pub fill_patience: Duration,
    /// How long after its start a daemon lets nobody fill what is not there: whoever held it when the last daemon died is
    /// about to hand it back. Without effect in process. Default: 2 s.
    pub adoption_window: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self::within(skep_host::memory().total)
    }
}

impl StoreOptions {
    /// The defaults where there is so much memory.
    fn within(memory_bytes: u64) -> Self {
        Self {
            budget_bytes: MAX_BUDGET_BYTES.min(memory_bytes / 2),
            keep_alive: Duration::from_secs(600),
            max_tenant_bytes: memory_bytes,
            max_holder_bytes: memory_bytes,
            max_holder_leases: 1 << 16,
            max_holder_tickets: 1 << 13,
            max_holder_ticket_bytes: 1 << 30,
            max_holders: 1024,
            max_segments: 8192,
            max_tensors: 1 << 18,
            fill_patience: Duration::from_secs(60),
            adoption_window: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_follow_the_memory_there_is() {
        let large = StoreOptions::within(64 << 30);
        assert_eq!(large.budget_bytes, 4 << 30);
        let small = StoreOptions::within(1 << 30);
        assert_eq!(small.budget_bytes, 512 << 20);
        assert_eq!(
            (small.max_tenant_bytes, small.max_holder_bytes),
            (1 << 30, 1 << 30)
        );
    }
}
