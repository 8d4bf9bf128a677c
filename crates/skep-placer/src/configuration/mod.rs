//! How a model runs now: so many instances, each with so many threads, and batches of up to so many inferences.
//!
//! ```text
//! profile.rs    measured latencies by instances, threads and batch; what lies between them
//! predict.rs    the latency of requests at a rate, with queueing
//! rate.rs       the rate to plan for: growth counts at once, decline after a while
//! decide        all configurations of the cores, the best one, and whether it is worth a change
//! ```
//!
//! After Packrat (Bhosale et al., "Automatic reconfiguration for latency minimization in CPU-based DNN serving", ICML
//! 2025): several instances with few threads often answer sooner than one with all cores, because operators do not scale;
//! which number does depends on the batch, and thereby on the rate. Packrat chooses for a given batch. Here the batch follows
//! from the rate: an instance that becomes free takes what waits, up to the cap.
//!
//! *Best* is the least latency that 95 of 100 requests keep; with an objective, the fewest cores with which they keep it.
//! If no configuration serves the rate, it is the one with the most throughput.
//!
//! *A change* costs a session and its warm-up, and figures are measured. So the present configuration stays unless it is
//! clearly worse, and for a while after each change; the while is short if it cannot serve the rate.

mod predict;
mod profile;
mod rate;
#[cfg(test)]
mod tests;

use std::{fmt, time::Duration};

use skep_types::Time;

pub use self::{
    predict::Prediction,
    profile::{LatencyProfile, ProfilePoint},
    rate::RateWatch,
};

/// A way to run a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RunConfiguration {
    /// Instances.
    pub instances: u32,
    /// Threads of each.
    pub threads: u32,
    /// Inferences of a batch at most.
    pub batch: u32,
}

/// What a configuration is chosen for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunTerms {
    /// Cores that the model may use; at least 1.
    pub cores: u32,
    /// Threads that an instance may have at most; at least 1.
    pub max_threads: u32,
    /// Inferences a second.
    pub rate: f64,
    /// The time in which a request has to be answered.
    pub objective: Option<Duration>,
    /// The largest batch that the model takes, at least 1.
    pub max_batch: u32,
    /// Whether batches are formed without a cap of ours: then only the largest one is looked at.
    pub is_batch_fixed: bool,
    /// How long a request waits for others at most before its batch leaves.
    pub batch_delay: Duration,
}

/// The configuration that a model has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresentRun {
    /// The configuration.
    pub configuration: RunConfiguration,
    /// Since when.
    pub since: Time,
}

/// What was chosen, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDecision {
    /// The configuration to have now: maybe the present one.
    pub configuration: RunConfiguration,
    /// What it brings.
    pub prediction: Prediction,
    /// Why, in words.
    pub why: String,
}

/// A change has to make the latency so much smaller.
const CLEAR_GAIN: f64 = 0.85;

/// Of configurations that are so close to the best one, the one with the fewest cores is taken, and of those the one with
/// the smallest batch that has [headroom](Candidate::has_headroom).
const AS_GOOD: f64 = 1.02;

/// A cap on batches leaves room for a burst: for so many times the rate, and for this part of what larger batches bring.
const BURST: f64 = 2.0;
const BURST_PART: f64 = 0.5;

/// How long a configuration stays that serves the rate.
const SLOW: Duration = Duration::from_secs(20);

/// How long one stays that does not, or that breaks the objective: the next one has to be warm, and measured.
const FAST: Duration = Duration::from_secs(3);

/// So many numbers of instances and threads are looked at with every batch size.
const REFINED: usize = 16;

/// A configuration with what it brings.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    configuration: RunConfiguration,
    prediction: Prediction,
    /// Whether a burst finds batches that are large enough.
    has_headroom: bool,
}

/// The best configuration for these terms, and the present one unless the best is worth a change. `None` if the profile
/// has no configuration for these cores.
#[must_use]
pub fn decide(
    profile: &LatencyProfile,
    terms: &RunTerms,
    present: Option<PresentRun>,
    now: Time,
) -> Option<RunDecision> {
    let mut all = candidates(profile, terms);
    if !terms.is_batch_fixed {
        refine(&mut all, profile, terms);
    }
    let best = best(&all, terms)?;
    let predicted = present.and_then(|present| {
        let configuration = present.configuration;
        let prediction = profile.predict(configuration, terms)?;
        let cores = configuration
            .instances
            .saturating_mul(configuration.threads);
        let fits = cores <= terms.cores && configuration.threads <= terms.max_threads;
        let own = Candidate {
            configuration,
            prediction,
            has_headroom: true,
        };
        fits.then_some((present, own))
    });
    let kept = predicted.filter(|(present, own)| {
        !is_worth_it(own, &best, terms) || now.since(present.since) < patience(own, terms)
    });
    let chosen = kept.map_or(best, |(_, own)| own);
    Some(RunDecision {
        configuration: chosen.configuration,
        prediction: chosen.prediction,
        why: why(&chosen, &best, &all, terms),
    })
}

/// How long this configuration stays at least.
fn patience(own: &Candidate, terms: &RunTerms) -> Duration {
    match own.prediction.is_enough(terms) {
        true => SLOW,
        false => FAST,
    }
}

/// Whether a change to the best configuration is clearly better.
fn is_worth_it(own: &Candidate, best: &Candidate, terms: &RunTerms) -> bool {
    match (
        own.prediction.is_enough(terms),
        best.prediction.is_enough(terms),
    ) {
        (false, true) => true,
        // Both keep the objective: fewer cores are a clear gain.
        (true, true) if terms.objective.is_some() => best.cores() < own.cores(),
        (_, _) if own.prediction.serves != best.prediction.serves => best.prediction.serves,
        // Neither serves the rate.
        (_, _) if !best.prediction.serves => {
            own.prediction.throughput < CLEAR_GAIN * best.prediction.throughput
        }
        _ => seconds(best) < CLEAR_GAIN * seconds(own),
    }
}

/// Every configuration of the cores.
fn candidates(profile: &LatencyProfile, terms: &RunTerms) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut batches = profile.batches(terms.max_batch);
    if terms.is_batch_fixed {
        batches = batches.pop().into_iter().collect();
    }
    let most = terms
        .cores
        .min(terms.max_threads)
        .min(profile.most_threads());
    for threads in 1..=most {
        for instances in 1..=terms.cores / threads {
            all.extend(alike(profile, terms, (instances, threads), &batches));
        }
    }
    all
}

/// Adds batch sizes between the measured ones to what seems good: the step from 2 to 4 is a large one.
fn refine(all: &mut Vec<Candidate>, profile: &LatencyProfile, terms: &RunTerms) {
    let shape = |one: &Candidate| (one.configuration.instances, one.configuration.threads);
    let mut serving: Vec<&Candidate> = all.iter().filter(|one| one.prediction.serves).collect();
    serving.sort_by(|a, b| seconds(a).total_cmp(&seconds(b)));
    let mut good: Vec<(u32, u32)> = Vec::new();
    for one in serving {
        if good.len() < REFINED && !good.contains(&shape(one)) {
            good.push(shape(one));
        }
    }
    let largest = profile.batches(terms.max_batch).pop().unwrap_or(0);
    let batches: Vec<u32> = (1..=largest).collect();
    all.retain(|one| !good.contains(&shape(one)));
    for shape in good {
        all.extend(alike(profile, terms, shape, &batches));
    }
}

/// So many instances with so many threads, with each of these caps on batches.
fn alike(
    profile: &LatencyProfile,
    terms: &RunTerms,
    (instances, threads): (u32, u32),
    batches: &[u32],
) -> Vec<Candidate> {
    let predicted = batches.iter().filter_map(|batch| {
        let configuration = RunConfiguration {
            instances,
            threads,
            batch: *batch,
        };
        Some(Candidate {
            configuration,
            prediction: profile.predict(configuration, terms)?,
            has_headroom: false,
        })
    });
    let mut alike: Vec<Candidate> = predicted.collect();
    let throughputs = alike.iter().map(|one| one.prediction.throughput);
    let most = throughputs.fold(0.0, f64::max);
    let wanted = (BURST * terms.rate).max(BURST_PART * most).min(most);
    for one in &mut alike {
        one.has_headroom = one.prediction.throughput >= wanted;
    }
    alike
}

fn best(all: &[Candidate], terms: &RunTerms) -> Option<Candidate> {
    let enough = || all.iter().filter(|one| one.prediction.is_enough(terms));
    if terms.objective.is_some()
        && let Some(fewest) = enough().map(Candidate::cores).min()
    {
        return as_good(
            enough()
                .filter(|one| one.cores() == fewest)
                .copied()
                .collect(),
        );
    }
    let serving = all.iter().filter(|one| one.prediction.serves).copied();
    as_good(serving.collect()).or_else(|| {
        let busiest = all.iter().copied();
        busiest.max_by(|a, b| a.prediction.throughput.total_cmp(&b.prediction.throughput))
    })
}

/// Of those that are as good as the soonest one the cheapest.
fn as_good(of: Vec<Candidate>) -> Option<Candidate> {
    let least = of.iter().map(seconds).min_by(f64::total_cmp)?;
    let close = of.into_iter().filter(|one| seconds(one) <= AS_GOOD * least);
    close.min_by_key(|one| {
        let RunConfiguration {
            instances, batch, ..
        } = one.configuration;
        // Without headroom, the larger batch is closer to it.
        let batch = if one.has_headroom {
            batch
        } else {
            u32::MAX - batch
        };
        (one.cores(), !one.has_headroom, batch, instances)
    })
}

fn sooner(a: Candidate, b: Candidate) -> Candidate {
    if seconds(&b) < seconds(&a) { b } else { a }
}

fn seconds(one: &Candidate) -> f64 {
    one.prediction.late.as_secs_f64()
}

impl Candidate {
    const fn cores(&self) -> u32 {
        self.configuration.instances * self.configuration.threads
    }
}

/// What the choice brings, beside the best one with another number of instances or threads.
fn why(chosen: &Candidate, best: &Candidate, all: &[Candidate], terms: &RunTerms) -> String {
    let mut text = format!(
        "{}: predicted {}",
        chosen.configuration,
        outcome(&chosen.prediction, terms)
    );
    let is_same = |one: &Candidate, other: &Candidate| {
        (one.configuration.instances, one.configuration.threads)
            == (other.configuration.instances, other.configuration.threads)
    };
    if chosen.configuration != best.configuration {
        text += &format!(
            "; {} would take {}, which is not worth a change now",
            best.configuration,
            millis(best.prediction.late)
        );
        return text;
    }
    let others = all.iter().filter(|one| !is_same(one, chosen));
    let serving = others.clone().filter(|one| one.prediction.serves).copied();
    if let Some(next) = serving.reduce(sooner) {
        let RunConfiguration {
            instances, threads, ..
        } = next.configuration;
        text += &format!(
            "; {} x {} would take {}",
            counted(instances, "instance"),
            counted(threads, "thread"),
            millis(next.prediction.late)
        );
    } else if others.count() > 0 && terms.rate > 0.0 && chosen.prediction.serves {
        text += "; no other number of instances and threads serves that rate";
    }
    text
}

fn outcome(prediction: &Prediction, terms: &RunTerms) -> String {
    let rate = match terms.rate {
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => format!("{rate:.0}"),
    };
    if !prediction.serves {
        return format!(
            "{:.0} requests/s, and {rate} arrive: no configuration serves them",
            prediction.throughput
        );
    }
    let when = match terms.rate {
        0.0 => "at rest".to_owned(),
        _ => format!("at {rate} requests/s"),
    };
    let late = format!("p95 {} {when}", millis(prediction.late));
    match terms.objective {
        None => late,
        Some(objective) if prediction.late <= objective => {
            format!("{late}, within {}", millis(objective))
        }
        Some(objective) => {
            format!("{late}, more than the objective of {}", millis(objective))
        }
    }
}

fn millis(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    match millis {
        small if small < 10.0 => format!("{small:.2} ms"),
        middle if middle < 100.0 => format!("{middle:.1} ms"),
        large => format!("{large:.0} ms"),
    }
}

fn counted(count: u32, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

impl fmt::Display for RunConfiguration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instances = counted(self.instances, "instance");
        let threads = counted(self.threads, "thread");
        write!(f, "{instances} x {threads}")?;
        match self.batch {
            1 => f.write_str(", no batches"),
            batch => write!(f, ", batches of up to {batch}"),
        }
    }
}
