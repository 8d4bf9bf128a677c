//! A node for tests of baked models: a cache directory, a store, and a model beside them.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "scaffolding of tests states what it expects"
)]

use std::{path::PathBuf, sync::Arc, time::Duration};

use skep_backend::{Model, OutputSlot};
use skep_cache::Cache;
use skep_models::{Inputs, Kind, Options, generate, inputs};
use skep_store::{LoadOrder, Stat, Store, StoreOptions, Tenant};
use skep_tensor::Tensor;
use skep_types::DeviceId;
use skep_weights::{BakingPolicy, WeightSource};
use tempfile::TempDir;

use crate::files;

/// What the cache may hold, in bytes: more than any model of a test.
const BUDGET_BYTES: u64 = 1 << 30;

/// A cache directory, a store of this process's own, and a model's file, in a directory that goes with it.
#[derive(Debug)]
pub struct TestNode {
    /// The directory.
    pub root: TempDir,
    /// Where backends keep weights.
    pub weights: WeightSource,
}

impl TestNode {
    /// Nothing is in it.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        let root = tempfile::tempdir().expect("a directory");
        Self {
            weights: WeightSource {
                cache: open(&root),
                store: Store::in_process(StoreOptions::default()),
                tenant: Tenant::default(),
                order: LoadOrder::Random(7),
                runs_from_cache: false,
                baking: BakingPolicy::BeforeLoad,
                keep_unloaded: Duration::ZERO,
            },
            root,
        }
    }

    /// Where its model's file is.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.root.path().join("model.onnx")
    }

    /// Writes a generated model into its model's file.
    pub fn model(&self, kind: &Kind, options: &Options) -> PathBuf {
        let model = generate(kind, options).expect("a model");
        model.write(self.path()).expect("written");
        self.path()
    }

    /// The store's figures.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let stat = self.weights.store.stat(&self.weights.tenant);
        stat.expect("figures")
    }

    /// Restarts the node: the cache stays on disk, and the store is empty.
    pub fn restart(&mut self) {
        self.weights.cache = open(&self.root);
        self.weights.store = Store::in_process(StoreOptions::default());
    }

    /// The files of the cache's tensors.
    #[must_use]
    pub fn tensors(&self) -> Vec<PathBuf> {
        files(&self.weights.cache.root().join("tensors"))
    }

    /// Graph and manifest of each of the cache's forms.
    #[must_use]
    pub fn forms(&self) -> Vec<PathBuf> {
        files(&self.weights.cache.root().join("models"))
    }
}

fn open(root: &TempDir) -> Cache {
    Cache::open(&root.path().join("cache"), BUDGET_BYTES).expect("a cache")
}

/// What a model answers on a new instance: all its outputs, for each of these lists of inputs.
#[must_use]
pub fn run(model: &Arc<dyn Model>, given: &[Vec<Tensor>]) -> Vec<Tensor> {
    let mut instance = Arc::clone(model)
        .instance(DeviceId::default())
        .expect("an instance");
    let outputs = model.signature().outputs.len();
    let mut answers = Vec::new();
    for tensors in given {
        let views: Vec<_> = tensors.iter().map(Tensor::view).collect();
        let mut slots: Vec<OutputSlot> = (0..outputs).map(OutputSlot::new).collect();
        instance.execute(&views, &mut slots).expect("runs");
        let tensors = slots.into_iter().map(OutputSlot::into_tensor);
        answers.extend(tensors.map(|tensor| tensor.expect("filled")));
    }
    answers
}

/// What a generated model answers to one row, to three, and to the same three again.
#[must_use]
pub fn answers(model: &Arc<dyn Model>, kind: &Kind) -> Vec<Tensor> {
    let given = [1, 3, 3].map(|batch| {
        let wanted = Inputs {
            seed: 5,
            batch,
            sequence: 9,
        };
        let tensor = |input: skep_models::InputTensor| {
            Tensor::new(input.datatype, input.shape, input.data.into()).expect("fits")
        };
        inputs(kind, wanted).into_iter().map(tensor).collect()
    });
    run(model, &given)
}
