//! What the tests share: the options of a node, and a tensor.

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use skep_runtime::{
    Control, LoadOptions, MetricsOptions, Repository, RuntimeOptions, WaitingLimit,
};
use skep_types::{DataType, Dims, TensorSpec};

/// A node on one core, without a shared CPU and without a store, whose models are loaded on request.
pub(crate) fn options(root: &Path) -> RuntimeOptions {
    RuntimeOptions {
        repository: Repository::open(vec![root.to_owned()]).expect("repository"),
        load: LoadOptions {
            auto_complete: true,
            backend_settings: vec![],
            cores: NonZeroUsize::MIN,
            metrics: MetricsOptions::default(),
            config_name: None,
            gpu_as_cpu: false,
            retries: 0,
            waiting_limit: Arc::new(WaitingLimit::new(10_000)),
            hold_until: 0,
            cpu: None,
            weights: None,
            request_memory: None,
            sandbox_load_limit: None,
        },
        load_threads: 2,
        max_waiting_loads: 256,
        control: Control::Explicit,
        strict_readiness: true,
        residency: None,
    }
}

/// A tensor of one INT32 element.
pub(crate) fn one_int(name: &str) -> TensorSpec {
    TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Int32,
        dims: Some(Dims::new(&[1]).expect("dims")),
    }
}
