//! Many models and the requests for them.

use std::time::Duration;

use skep_placer::residency::{ModelSize, TensorKey};
use skep_types::Time;

use crate::{RandomPurpose, RandomStream, RecordedArrivals};

/// What a fleet is generated from.
#[derive(Debug, Clone, PartialEq)]
pub struct FleetTerms {
    /// How many models; at least 1.
    pub models: usize,
    /// Requests a second, over all models.
    pub rate: f64,
    /// From the first request to the last.
    pub span: Duration,
    /// How unequal the models' rates are: the n-th has one over n to this power (Zipf). 0 for equal rates.
    pub skew: f64,
    /// The smallest and the largest model, in bytes; in between all orders of magnitude are as likely.
    pub sizes: (u64, u64),
    /// Models that share most of their tensors with the next ones, so many in a row; 1 for none.
    pub family: usize,
    /// The part of a model's bytes that its family shares, from 0 to 1.
    pub shared_part: f64,
    /// What any load takes.
    pub load_time: Duration,
    /// Bytes that a load brings in a second, beside that.
    pub load_rate: f64,
}

impl Default for FleetTerms {
    /// A thousand models of 4 to 512 MiB, 20 requests a second over four hours, popularity as that of web pages.
    fn default() -> Self {
        Self {
            models: 1000,
            rate: 20.0,
            span: Duration::from_secs(4 * 3600),
            skew: 1.0,
            sizes: (4 << 20, 512 << 20),
            family: 1,
            shared_part: 0.9,
            load_time: Duration::from_millis(10),
            load_rate: (1_u64 << 30) as f64,
        }
    }
}

/// A model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FleetModel {
    /// What it holds.
    pub size: ModelSize,
    /// What it holds, shared or not.
    pub bytes: u64,
    /// How long its load takes.
    pub load_time: Duration,
}

/// A request for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetRequest {
    /// When it comes.
    pub at: Time,
    /// The model's place in [`Fleet::models`].
    pub model: usize,
}

/// Models and requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fleet {
    /// The models.
    pub models: Vec<FleetModel>,
    /// The requests, in order of time.
    pub requests: Vec<FleetRequest>,
}

impl Fleet {
    /// A fleet whose models each get requests as recorded, at a rate of their own: drawn from the recording as a whole,
    /// which begins for each model at another of its moments. With `None` requests come independently of each other.
    ///
    /// # Panics
    /// When there is no model.
    #[must_use]
    pub fn generate(terms: &FleetTerms, recording: Option<&RecordedArrivals>, seed: u64) -> Self {
        assert!(terms.models > 0, "a fleet has models");
        let mut random = RandomStream::new(seed, RandomPurpose::Fleet);
        let models = models(terms, &mut random);
        let mut arrivals = RandomStream::new(seed, RandomPurpose::Arrivals);
        let weights: Vec<f64> = (1..=terms.models)
            .map(|rank| (rank as f64).powf(-terms.skew))
            .collect();
        let sum: f64 = weights.iter().sum();
        // Popular models are of any size.
        let mut ranks: Vec<usize> = (0..terms.models).collect();
        for index in (1..ranks.len()).rev() {
            ranks.swap(index, random.below(index + 1));
        }
        let span = terms.span.as_secs_f64();
        let mut requests = Vec::new();
        for (model, rank) in ranks.into_iter().enumerate() {
            let expected = terms.rate * span * weights[rank] / sum;
            let count = count(expected, &mut arrivals);
            let offset = arrivals.uniform();
            let shares: Vec<f64> = match recording {
                Some(recording) => recording.draw(count, &mut arrivals),
                None => (0..count).map(|_| arrivals.uniform()).collect(),
            };
            let moments = shares
                .into_iter()
                .map(|share| Duration::from_secs_f64((share + offset).fract() * span));
            requests.extend(moments.map(|at| FleetRequest {
                at: Time::ZERO + at,
                model,
            }));
        }
        requests.sort_by_key(|request| (request.at, request.model));
        Self { models, requests }
    }

    /// What all models hold together, each shared tensor once.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let mut seen = std::collections::BTreeSet::new();
        let mut sum = 0;
        for model in &self.models {
            sum += model.size.private_bytes;
            for (key, bytes) in &model.size.tensors {
                if seen.insert(*key) {
                    sum += bytes;
                }
            }
        }
        sum
    }
}

/// A whole number of this mean: its whole part, and one more as often as the rest says.
#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "a number of requests"
)]
fn count(mean: f64, random: &mut RandomStream) -> usize {
    let more = random.uniform() < mean.fract();
    mean as usize + usize::from(more)
}

fn models(terms: &FleetTerms, random: &mut RandomStream) -> Vec<FleetModel> {
    let (smallest, largest) = (terms.sizes.0 as f64, terms.sizes.1 as f64);
    let mut family_bytes = 0.0;
    let one = |index: usize| {
        if index.is_multiple_of(terms.family.max(1)) {
            family_bytes = smallest * (largest / smallest).powf(random.uniform());
        }
        model(terms, index, family_bytes)
    };
    (0..terms.models).map(one).collect()
}

#[expect(
    clippy::cast_sign_loss,
    clippy::cast_possible_truncation,
    reason = "parts of a size"
)]
fn model(terms: &FleetTerms, index: usize, family_bytes: f64) -> FleetModel {
    let bytes = family_bytes as u64;
    let shared = if terms.family > 1 {
        (family_bytes * terms.shared_part) as u64
    } else {
        0
    };
    let mut tensors = Vec::new();
    if shared > 0 {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&((index / terms.family) as u64).to_le_bytes());
        tensors.push((TensorKey(key), shared));
    }
    FleetModel {
        size: ModelSize {
            private_bytes: bytes - shared,
            tensors,
        },
        bytes,
        load_time: terms.load_time + Duration::from_secs_f64(family_bytes / terms.load_rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> FleetTerms {
        FleetTerms {
            models: 100,
            rate: 10.0,
            span: Duration::from_secs(1000),
            ..FleetTerms::default()
        }
    }

    #[test]
    fn rates_and_sizes_are_as_asked() {
        let fleet = Fleet::generate(&terms(), None, 1);
        let count = fleet.requests.len();
        assert!((9_900..=10_100).contains(&count), "{count}");
        assert!(fleet.requests.is_sorted_by_key(|request| request.at));
        let mut counts = vec![0; 100];
        for request in &fleet.requests {
            counts[request.model] += 1;
        }
        counts.sort_unstable();
        // One over the sum of one over n up to 100 is 0.193.
        assert!((1_900..=1_960).contains(&counts[99]), "{}", counts[99]);
        assert!((960..=980).contains(&counts[98]), "{}", counts[98]);
        for model in &fleet.models {
            assert!((4 << 20..=512 << 20).contains(&model.bytes));
            assert_eq!(model.size.private_bytes, model.bytes);
        }
        assert_eq!(fleet, Fleet::generate(&terms(), None, 1));
        assert_ne!(fleet, Fleet::generate(&terms(), None, 2));
    }

    #[test]
    fn a_family_shares_its_part_and_counts_it_once() {
        let family = FleetTerms {
            family: 10,
            shared_part: 0.5,
            ..terms()
        };
        let fleet = Fleet::generate(&family, None, 1);
        let (first, tenth, next) = (&fleet.models[0], &fleet.models[9], &fleet.models[10]);
        assert_eq!(first.size, tenth.size);
        assert_ne!(first.size.tensors, next.size.tensors);
        let all: u64 = fleet.models.iter().map(|model| model.bytes).sum();
        let share = fleet.bytes() as f64 / all as f64;
        assert!((share - 0.55).abs() < 0.001, "{share}");
    }

    #[test]
    fn requests_come_where_the_recording_has_them() {
        // All in the second of four spans.
        let recording = RecordedArrivals::rates("0\n5\n0\n0\n", 1.0).expect("rates");
        let one = FleetTerms {
            models: 1,
            ..terms()
        };
        let fleet = Fleet::generate(&one, Some(&recording), 3);
        let seconds: Vec<f64> = fleet
            .requests
            .iter()
            .map(|request| request.at.since(Time::ZERO).as_secs_f64())
            .collect();
        // A quarter of the time, wherever it begins; it may go on at the start.
        let longest = seconds
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .fold(0.0, f64::max);
        let outside = 1000.0 - (seconds[seconds.len() - 1] - seconds[0]);
        assert!(longest.max(outside) > 745.0, "{longest} {outside}");
    }
}
