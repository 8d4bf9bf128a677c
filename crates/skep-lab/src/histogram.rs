//! Durations in buckets an eighth of an octave wide: quantiles within 10 %.

/// Sub-buckets of an octave.
const PARTS: u64 = 8;

/// Counted durations, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: Vec<u64>,
    count: u64,
    sum: u64,
    most: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * PARTS as usize],
            count: 0,
            sum: 0,
            most: 0,
        }
    }
}

/// The bucket of a duration: exact below [`PARTS`].
const fn bucket(ns: u64) -> usize {
    if ns < PARTS {
        return ns as usize;
    }
    let octave = ns.ilog2() as u64;
    let part = (ns >> (octave - PARTS.ilog2() as u64)) - PARTS;
    ((octave - PARTS.ilog2() as u64 + 1) * PARTS + part) as usize
}

/// The largest duration of a bucket.
const fn end_of(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < PARTS {
        return bucket;
    }
    let (shift, part) = (bucket / PARTS - 1, bucket % PARTS);
    ((PARTS + part + 1) << shift) - 1
}

impl Histogram {
    pub(crate) fn add(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.count += 1;
        self.sum = self.sum.saturating_add(ns);
        self.most = self.most.max(ns);
    }

    /// The duration that this share of all does not exceed, from 0 to 1; 0 without any.
    pub(crate) fn quantile(&self, share: f64) -> u64 {
        #[expect(clippy::cast_sign_loss, reason = "a share is from 0 to 1")]
        let rank = ((self.count as f64 * share).ceil() as u64).max(1);
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if *count > 0 && seen >= rank {
                return end_of(bucket).min(self.most);
            }
        }
        0
    }

    pub(crate) fn mean(&self) -> f64 {
        self.sum as f64 / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_ascend_and_end_where_the_next_begins() {
        for ns in 0..100_000 {
            assert!(ns <= end_of(bucket(ns)), "{ns}");
            assert_eq!(bucket(end_of(bucket(ns)) + 1), bucket(ns) + 1, "{ns}");
        }
        assert!(bucket(u64::MAX) < Histogram::default().counts.len());
    }

    #[test]
    fn quantiles_are_those_of_the_buckets() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile(0.5), 0);
        for ns in 1..=100 {
            histogram.add(ns);
        }
        assert_eq!(histogram.quantile(0.5), 51);
        assert_eq!(histogram.quantile(1.0), 100);
        assert_eq!(histogram.mean(), 50.5);
    }
}
