//! The tensor store.

use skep_runtime::Runtime;
use skep_store::Stat;

use crate::metrics::text::{MetricLabels, MetricsText};

/// A metric's figure, from a store's.
type StoreFigure = fn(&Stat) -> u64;

/// Families: name, help, kind, label, figures by its value.
type Families = [(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [(&'static str, StoreFigure)],
); 5];

const FAMILIES: Families = [
    (
        "skep_store_bytes",
        "Weights in the tensor store, in bytes: stored, padding after them, total over leases",
        "gauge",
        "kind",
        &[
            ("stored", |stat| stat.bytes_stored),
            ("padding", |stat| stat.bytes_padding),
            ("leased", |stat| stat.bytes_leased),
        ],
    ),
    (
        "skep_store_entries",
        "Entries of the tensor store: segments, tensors in them, leases on tensors, holders of leases",
        "gauge",
        "kind",
        &[
            ("segments", |stat| stat.segments),
            ("tensors", |stat| stat.tensors),
            ("leases", |stat| stat.leases),
            ("holders", |stat| stat.holders),
        ],
    ),
    (
        "skep_store_asked_total",
        "Tensors that loads requested from the tensor store: present, filled by the load itself, or being filled by another load",
        "counter",
        "outcome",
        &[
            ("hit", |stat| stat.hits),
            ("miss", |stat| stat.misses),
            ("wait", |stat| stat.waits),
        ],
    ),
    (
        "skep_store_wait_us",
        "Cumulative time in which loads only waited for weights that another load was filling, in microseconds",
        "counter",
        "reason",
        &[("filling", |stat| stat.wait_ns / 1000)],
    ),
    (
        "skep_store_reclaimed_total",
        "Tensors that left the tensor store because no lease held them",
        "counter",
        "reason",
        &[("idle", |stat| stat.reclaimed)],
    ),
];

/// Writes the figures of this process's stores; nothing if it has none.
pub(super) fn render(text: &mut MetricsText, runtime: &Runtime) {
    let stores = runtime.stores();
    for (name, help, kind, label, figures) in FAMILIES {
        let mut family = text.family(name, help, kind);
        for (tenant, stat) in &stores {
            let tenant = MetricLabels::default().with("tenant", tenant.name().unwrap_or_default());
            for (value, figure) in figures {
                family.line(&tenant.with(label, value), figure(stat));
            }
        }
    }
}
