//! Measured latencies, and what lies between them.
//!
//! Between measured batches latency grows evenly, as between measured numbers of instances, which take time from each
//! other. Between measured numbers of threads it follows their inverse: a part of the work is shared by the threads, the
//! rest is not (Amdahl). Where instances with so many threads were not measured in this number, they slow each other as
//! those with fewer threads do. Nothing is said of more threads or larger batches than were measured.

use std::{collections::BTreeMap, time::Duration};

/// What was measured of a configuration, with as many batches outstanding as it has instances.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProfilePoint {
    /// Instances.
    pub instances: u32,
    /// Threads of each.
    pub threads: u32,
    /// Inferences of a batch.
    pub batch: u32,
    /// The median of what a batch took.
    pub typical: Duration,
    /// What 95 of 100 batches took at most.
    pub late: Duration,
}

/// The median and the 95th percentile, in seconds.
pub(super) type Seconds = [f64; 2];

/// Latencies by batch, ascending.
type ByBatch = Vec<(u32, Seconds)>;

/// Measured latencies of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LatencyProfile {
    /// By threads, and by instances.
    rows: BTreeMap<u32, BTreeMap<u32, ByBatch>>,
}

impl LatencyProfile {
    /// A profile of these points. Of points for one configuration the last one counts; points with a number or a time of
    /// 0 do not. `None` if none is left.
    #[must_use]
    pub fn new(points: impl IntoIterator<Item = ProfilePoint>) -> Option<Self> {
        let mut rows: BTreeMap<u32, BTreeMap<u32, ByBatch>> = BTreeMap::new();
        for point in points {
            let counts = [point.instances, point.threads, point.batch];
            if counts.contains(&0) || point.typical.is_zero() || point.late.is_zero() {
                continue;
            }
            let typical = point.typical.as_secs_f64();
            let seconds = [typical, point.late.as_secs_f64().max(typical)];
            let row = rows.entry(point.threads).or_default();
            let batches = row.entry(point.instances).or_default();
            match batches.binary_search_by_key(&point.batch, |(batch, _)| *batch) {
                Ok(place) => batches[place].1 = seconds,
                Err(place) => batches.insert(place, (point.batch, seconds)),
            }
        }
        (!rows.is_empty()).then_some(Self { rows })
    }

    /// The most threads that were measured.
    #[must_use]
    pub fn most_threads(&self) -> u32 {
        self.rows
            .last_key_value()
            .map_or(0, |(threads, _)| *threads)
    }

    /// Batch sizes worth a look: those that were measured anywhere, up to the largest that the model takes.
    pub(super) fn batches(&self, max: u32) -> Vec<u32> {
        let rows = self.rows.values().flat_map(BTreeMap::values);
        let measured = rows.flat_map(|batches| batches.iter().map(|(batch, _)| *batch));
        let mut sizes: Vec<u32> = measured.filter(|batch| *batch <= max).collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    /// What a batch takes if so many run at once, both maybe between whole numbers; `None` beyond what was measured.
    pub(super) fn latency(&self, instances: f64, threads: u32, batch: f64) -> Option<Seconds> {
        if let Some(took) = self.within(instances, threads, batch) {
            return Some(took);
        }
        // With fewer threads more instances were measured: how they slow each other is taken from there.
        let most = self
            .rows
            .range(threads..)
            .filter_map(|(_, row)| most_instances(row, batch));
        let common = most.max()?;
        let few = self.within(f64::from(common), threads, batch)?;
        let fewer = self.rows.range(..threads).rev();
        let covering = fewer
            .map(|(_, row)| row)
            .find(|row| covers(row, instances, batch));
        // Nowhere: as the last ones of this number of threads go on.
        let row = covering.or_else(|| self.rows.get(&threads))?;
        let [at_few, at_all] = [f64::from(common), instances].map(|n| by_instances(row, n, batch));
        let (at_few, at_all) = (at_few?, at_all?);
        Some([0, 1].map(|figure| few[figure] * at_all[figure] / at_few[figure]))
    }

    /// The same, between rows that have as many instances.
    fn within(&self, instances: f64, threads: u32, batch: f64) -> Option<Seconds> {
        let mut below = self.rows.range(..=threads).rev();
        let (below, fewer) = below.find(|(_, row)| covers(row, instances, batch))?;
        if *below == threads {
            return by_instances(fewer, instances, batch);
        }
        let mut above = self.rows.range(threads..);
        let (above, more) = above.find(|(_, row)| covers(row, instances, batch))?;
        let inverse = |threads: u32| 1.0 / f64::from(threads);
        let part = (inverse(*below) - inverse(threads)) / (inverse(*below) - inverse(*above));
        let (slow, quick) = (
            by_instances(fewer, instances, batch)?,
            by_instances(more, instances, batch)?,
        );
        Some(between(slow, quick, part))
    }
}

/// The most instances for which a batch of this size, or a larger one, was measured.
fn most_instances(row: &BTreeMap<u32, ByBatch>, batch: f64) -> Option<u32> {
    let mut known = row.iter().rev();
    let known = known.find(|(_, batches)| by_batch(batches, batch).is_some());
    known.map(|(count, _)| *count)
}

fn covers(row: &BTreeMap<u32, ByBatch>, instances: f64, batch: f64) -> bool {
    most_instances(row, batch).is_some_and(|most| instances <= f64::from(most))
}

/// At a number of instances, of rows by that number.
fn by_instances(row: &BTreeMap<u32, ByBatch>, instances: f64, batch: f64) -> Option<Seconds> {
    let known: Vec<(f64, Seconds)> = row
        .iter()
        .filter_map(|(count, batches)| Some((f64::from(*count), by_batch(batches, batch)?)))
        .collect();
    let (first, last) = (known.first()?, known.last()?);
    if instances <= first.0 {
        return Some(first.1);
    }
    if instances >= last.0 {
        let Some(before) = known.len().checked_sub(2).map(|place| known[place]) else {
            return Some(last.1);
        };
        let part = (instances - before.0) / (last.0 - before.0);
        let further = between(before.1, last.1, part);
        // More instances never make a batch faster.
        return Some([further[0].max(last.1[0]), further[1].max(last.1[1])]);
    }
    let place = known.partition_point(|(count, _)| *count <= instances);
    let ((low, slow), (high, quick)) = (known[place - 1], known[place]);
    Some(between(slow, quick, (instances - low) / (high - low)))
}

fn by_batch(batches: &ByBatch, batch: f64) -> Option<Seconds> {
    let place = batches.partition_point(|(size, _)| f64::from(*size) <= batch);
    let at = |place: usize| {
        batches
            .get(place)
            .map(|(size, took)| (f64::from(*size), *took))
    };
    let Some((low, before)) = place.checked_sub(1).and_then(at) else {
        // No smaller one was measured.
        return at(0).map(|(_, took)| took);
    };
    match at(place) {
        Some((high, after)) => Some(between(before, after, (batch - low) / (high - low))),
        None => (batch <= low).then_some(before),
    }
}

fn between(a: Seconds, b: Seconds, part: f64) -> Seconds {
    [0, 1].map(|figure| a[figure] + (b[figure] - a[figure]) * part)
}
