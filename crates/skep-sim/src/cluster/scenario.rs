//! What runs on a cluster, and on what.

use std::time::Duration;

use skep_placer::{packing::Resources, residency::TensorKey, selection::Configuration};
use skep_types::Time;
use thiserror::Error;

use crate::Jitter;

/// Applications, their models, and the nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterScenario {
    /// How many nodes.
    pub nodes: usize,
    /// What each node has.
    pub node: Resources,
    /// The models.
    pub models: Vec<ClusterModel>,
    /// What sends requests.
    pub applications: Vec<Application>,
    /// From the first moment to the last that counts.
    pub span: Duration,
    /// What a start takes.
    pub costs: StartCosts,
    /// How much execution times vary.
    pub jitter: Jitter,
    /// How long instances stay that nothing needs.
    pub keep_alive: Duration,
    /// Bytes that a CPU is worth where memory and CPUs are weighed against each other.
    pub bytes_per_cpu: u64,
    /// The largest share of a model's instances that one node takes, as long as another one has room.
    pub spread: f64,
    /// The seed of execution times, and of routes.
    pub seed: u64,
}

/// A model with its profile.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterModel {
    /// Its name.
    pub name: String,
    /// The time in which a request has to be answered.
    pub objective: Duration,
    /// Its tensors with their bytes; models that have the same one can share it.
    pub tensors: Vec<(TensorKey, u64)>,
    /// The ways to run it. Private bytes are those beyond the process's.
    pub configurations: Vec<Configuration>,
}

/// A chain of models that answers requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Application {
    /// Its name.
    pub name: String,
    /// Models, by their index, one after another.
    pub stages: Vec<usize>,
    /// When requests come, ascending.
    pub arrivals: Vec<Time>,
}

/// What it takes to start an instance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StartCosts {
    /// The start of a process, with its runtime.
    pub process: Duration,
    /// What a process holds beside models.
    pub process_bytes: u64,
    /// Making an instance in a running process.
    pub instance: Duration,
    /// Bytes of tensors that are read in a second.
    pub bytes_per_second: f64,
}

/// Why a scenario cannot be simulated.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum InvalidScenario {
    /// There is nothing to simulate.
    #[error("the scenario has no {0}")]
    Empty(&'static str),
    /// An application without stages, or with one that is no model.
    #[error("application `{0}`: expected stages that are models of the scenario")]
    Stages(String),
    /// No configuration of a model keeps its objective.
    #[error(
        "model `{model}`: no configuration that `{platform}` may use keeps its objective of {objective_ms} ms{closest}"
    )]
    Objective {
        /// The model.
        model: String,
        /// The platform.
        platform: &'static str,
        /// The objective in milliseconds.
        objective_ms: f64,
        /// The closest, as a sentence.
        closest: String,
    },
    /// An instance of a model fits no node.
    #[error("model `{model}`: an instance takes {needs}, a node has {has}")]
    Node {
        /// The model.
        model: String,
        /// What it needs.
        needs: String,
        /// What there is.
        has: String,
    },
}

impl ClusterScenario {
    /// Requests of all applications.
    #[must_use]
    pub fn requests(&self) -> usize {
        let requests = self.applications.iter();
        requests.map(|application| application.arrivals.len()).sum()
    }

    pub(super) fn check(&self) -> Result<(), InvalidScenario> {
        for (is_empty, what) in [
            (self.nodes == 0, "nodes"),
            (self.models.is_empty(), "models"),
            (self.applications.is_empty(), "applications"),
        ] {
            if is_empty {
                return Err(InvalidScenario::Empty(what));
            }
        }
        for application in &self.applications {
            let stages = &application.stages;
            let is_known = stages.iter().all(|stage| *stage < self.models.len());
            if stages.is_empty() || !is_known {
                return Err(InvalidScenario::Stages(application.name.clone()));
            }
        }
        Ok(())
    }
}

impl ClusterModel {
    /// Bytes of its tensors.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, bytes)| *bytes).sum()
    }
}

/// The usual form of a profile: affine in the batch, Amdahl's law in the CPUs, and batches that run at the same time
/// share the CPUs.
///
/// ```text
/// l(c, p, b) = fixed + b * item * (1 - parallel + parallel * p / c)
/// ```
///
/// With a fixed part of 82 ms, 270 ms for each item and a parallel part of 0.94 this is within 10 % of most figures that
/// the authors of Tetris (USENIX ATC'22) published of ResNet-50.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LatencyFormula {
    /// Milliseconds of a batch, whatever its size.
    pub fixed_ms: f64,
    /// Milliseconds of each request of a batch, on one CPU.
    pub item_ms: f64,
    /// The part of that which more CPUs share.
    pub parallel: f64,
    /// Private bytes of an instance.
    pub private_bytes: u64,
    /// Private bytes of each request that runs.
    pub request_bytes: u64,
    /// The largest batch.
    pub max_batch: u32,
    /// The most batches at a time.
    pub max_concurrency: u32,
}

impl LatencyFormula {
    /// All configurations with these numbers of CPUs.
    #[must_use]
    pub fn configurations(&self, cpus: &[u32]) -> Vec<Configuration> {
        let mut all = Vec::new();
        for &cpus in cpus {
            for concurrency in 1..=self.max_concurrency {
                all.extend((1..=self.max_batch).map(|batch| self.one(cpus, concurrency, batch)));
            }
        }
        all
    }

    fn one(&self, cpus: u32, concurrency: u32, batch: u32) -> Configuration {
        let shared = f64::from(concurrency) / f64::from(cpus);
        let item = self.item_ms * (1.0 - self.parallel + self.parallel * shared);
        let ms = self.fixed_ms + f64::from(batch) * item;
        let running = u64::from(concurrency) * u64::from(batch);
        Configuration {
            cpus,
            concurrency,
            batch,
            latency: Duration::from_secs_f64(ms / 1e3),
            private_bytes: self.private_bytes + running * self.request_bytes,
        }
    }
}
