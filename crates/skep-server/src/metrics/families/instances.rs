//! How busy instances and the device are.

use super::version::{NS_PER_US, VersionFigures};
use crate::metrics::{
    sampler::MetricsSample,
    text::{MetricLabels, MetricsText},
};

pub(super) fn busy(text: &mut MetricsText, rows: &[VersionFigures], sample: &MetricsSample) {
    let mut family = text.family(
        "skep_instance_busy_us",
        "Cumulative time in which an instance held a batch, in microseconds",
        "counter",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, instance.busy_ns / NS_PER_US);
        }
    }
    let mut family = text.family(
        "skep_instance_restarts_total",
        "Number of times an instance was restarted after a panic or the end of its process",
        "counter",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, instance.restarts);
        }
    }
    let mut family = text.family(
        "skep_instance_busy_fraction",
        "Share of the last interval in which an instance held a batch [0.0 - 1.0]",
        "gauge",
    );
    for row in rows {
        for instance in &row.figures.instances {
            let labels = row.labels.with("instance", &instance.name);
            family.line(&labels, sample.busy(&row.loaded, &instance.name));
        }
    }
    text.family(
        "skep_device_busy_fraction",
        "Share of the last interval in which the device's slots held a batch [0.0 - 1.0]",
        "gauge",
    )
    .line(
        &MetricLabels::default().with("device", "cpu"),
        sample.device_busy,
    );
}
