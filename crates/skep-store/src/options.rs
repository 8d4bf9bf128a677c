//! What a store keeps and for how long, and the bounds on its holders.

use std::time::Duration;

/// The default budget: some large models. With little memory, half of it; the rest is for runs, and for weights in use.
const MAX_BUDGET_BYTES: u64 = 4 << 30;

/// Settings of a store. They hold for each tenant separately: what one tenant holds does not affect another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreOptions {
    /// Bytes of segments above which idle ones are dropped at once, the least recently used first; segments with a
    /// lease stay. Default: 4 GiB, at most half of the memory.
    pub budget_bytes: u64,
    /// How long an idle tensor stays while the budget allows it. Default: 10 minutes.
    pub keep_alive: Duration,
    /// Hard limit on the bytes of segments: what would exceed it is refused. Default: the memory, control groups
    /// included.
    pub max_tenant_bytes: u64,
    /// Bytes of tensors that one holder (a connection; in process, a lease) may have leased. Default: the memory.
    pub max_holder_bytes: u64,
    /// Tensors that one holder may have leased. Default: 65536.
    pub max_holder_leases: u64,
    /// Tickets that one holder may have; others wait for these tensors. Default: 8192, as many as four messages name:
    /// an acquire fills what it has tickets for before it asks for more, but a connection may serve several acquires.
    pub max_holder_tickets: u64,
    /// Bytes of the tensors that one holder has tickets for, if it has several: room is kept for them. Default: 1 GiB,
    /// a hundred segments of small tensors.
    pub max_holder_ticket_bytes: u64,
    /// Holders: connections; in process, leases. Default: 1024.
    pub max_holders: u64,
    /// Segments, each of which is an open descriptor. Default: 8192.
    pub max_segments: u64,
    /// Tensors. Default: 262144.
    pub max_tensors: u64,
    /// How long others wait for a holder to fill a tensor before they may fill it as well; the first publication
    /// counts. Default: 60 s.
    pub fill_patience: Duration,
    /// How long after its start a daemon gives out no tickets: holders of the last daemon hand their tensors back
    /// meanwhile. Without effect in process. Default: 2 s.
    pub adoption_window: Duration,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self::within(skep_host::memory().total)
    }
}

impl StoreOptions {
    /// The defaults for a machine with this much memory.
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
    fn defaults_follow_the_memory() {
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
