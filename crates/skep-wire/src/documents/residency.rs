//! Which models are in memory, and why. Skep's own: Triton has no such document, and there is no message for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Which models are in memory, under which budget, and the last decisions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResidencyStatus {
    /// `eager` or `lazy`.
    pub load_policy: String,
    /// Which idle model leaves first.
    pub eviction_policy: String,
    /// Bytes, over all models.
    pub memory: ResidencyMemory,
    /// How many models are in each state, listed or not.
    pub states: BTreeMap<String, usize>,
    /// How many decisions of each kind there were.
    pub decision_counts: BTreeMap<String, u64>,
    /// The devices that instances are packed onto, in the order of their flags; absent without `--device`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRow>,
    /// The models, by name.
    pub models: Vec<ModelStatus>,
    /// The last decisions, the latest first.
    pub decisions: Vec<DecisionRow>,
}

/// Bytes, over all models.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResidencyMemory {
    /// What all models together may hold; absent if there is no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<u64>,
    /// What counts towards the budget now.
    pub used: u64,
    /// What models in memory hold, each shared tensor once.
    pub held: u64,
    /// The part of it that is tensors, which several models may share.
    pub shared: u64,
    /// What the same models would hold if none shared anything.
    pub unshared: u64,
    /// What models hold that are leaving.
    pub leaving: u64,
    /// Weights that the store keeps although no model uses them.
    pub kept: u64,
}

/// One model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelStatus {
    /// Its name.
    pub name: String,
    /// The path of its repository, if names need not be unique.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// `known`, `stored`, `wanted`, `loading`, `resident` or `leaving`.
    pub state: String,
    /// The versions that it serves, or that a load would serve.
    pub versions: Vec<String>,
    /// Instances that take requests.
    pub instances: u32,
    /// Its instances on each device; absent if they run on all CPUs.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, u32>,
    /// Instances that it has at least while it is in memory; absent if their number is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_instances: Option<u32>,
    /// Instances that it has at most; absent if their number is fixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_instances: Option<u32>,
    /// How it runs, if the server chooses that while it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configuration: Option<ConfigurationRow>,
    /// Whether it never leaves by itself.
    pub pinned: bool,
    /// Bytes that no other model shares.
    pub private_bytes: u64,
    /// Bytes of tensors that others may share.
    pub shared_bytes: u64,
    /// Those tensors, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorRow>,
    /// Whether these sizes were measured at a load; otherwise they are estimates.
    pub measured: bool,
    /// How long a load takes, in milliseconds.
    pub load_ms: f64,
    /// Requests a second, over the last ten seconds or so.
    pub rate: f64,
    /// How long it has not been used, in seconds.
    pub idle_seconds: f64,
    /// Requests that it has answered.
    pub requests: u64,
    /// How often it was loaded.
    pub loads: u64,
    /// Requests that wait for it to load.
    pub waiting: usize,
    /// Requests that wait for an instance.
    pub pending: usize,
    /// Why its last load failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// The last decision about it, if it is among the last ones of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<DecisionRow>,
}

/// A device, and what its instances take of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRow {
    /// Its name.
    pub name: String,
    /// Its CPUs, as in `0-3,8`.
    pub cpus: String,
    /// What its models may hold, in bytes.
    pub memory: u64,
    /// What they take of it, in bytes: a model's weights count on each device that has an instance of it.
    pub memory_used: u64,
    /// Its cores.
    pub cores: u32,
    /// The cores that its instances keep busy if all compute at once, which may be more.
    pub cores_used: f64,
    /// Its instances.
    pub instances: u32,
}

/// How a model runs, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigurationRow {
    /// Its instances.
    pub instances: u32,
    /// Threads of each.
    pub threads: u32,
    /// Inferences of a batch at most.
    pub batch: u32,
    /// For how long it has been so, in seconds.
    pub seconds: f64,
    /// The inferences a second that it is chosen for: the largest rate of the last half minute.
    pub rate: f64,
    /// What 95 of 100 requests are predicted to take at most, in milliseconds; absent if the rate is not served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted_p95_ms: Option<f64>,
    /// The predicted inferences a second at most.
    pub predicted_rate: f64,
    /// Why it is so, or is about to change.
    pub why: String,
}

/// A tensor that models may share.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRow {
    /// The digest of its content, in hexadecimal.
    pub digest: String,
    /// Its size.
    pub bytes: u64,
}

/// A decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DecisionRow {
    /// The model.
    pub model: String,
    /// `load`, `evict`, `expire`, `refuse`, `fail`, `scale` or `configure`.
    pub what: String,
    /// Why.
    pub why: String,
    /// How long ago, in seconds.
    pub seconds_ago: f64,
}
