//! What the tests share: the options of a node, its scripted backend and models, and a tensor.

use std::{fs, num::NonZeroUsize, path::Path, sync::Arc};

use skep_backend_mock::Mock;
use skep_runtime::{
    BackendEntry, Backends, Control, LoadOptions, MetricsOptions, Repository, ResidencySettings,
    Runtime, RuntimeOptions, VersionState, WaitingLimit,
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
            devices: None,
            profiles: None,
            response_cache: None,
            rate_limiter: None,
            weights: None,
            request_memory: None,
            sandbox_load_limit: None,
        },
        load_threads: 2,
        max_waiting_loads: 256,
        control: Control::Explicit,
        strict_readiness: true,
        residency: ResidencySettings::default(),
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

/// Longer than any test, in microseconds.
pub(crate) const FOREVER: &str = "3000000000";

/// The scripted backend alone.
pub(crate) fn mock_backends() -> Backends {
    let mut backends = Backends::default();
    backends.add("mock", BackendEntry::new(|| Ok(Arc::new(Mock))));
    backends.prefer(&["mock"]);
    backends
}

/// A model of two INT32 elements that echoes its input, and whose load takes so long.
pub(crate) fn write_model(root: &Path, name: &str, load_latency_us: &str) {
    let config = format!(
        "backend: \"mock\"
         input {{ name: \"x\" data_type: TYPE_INT32 dims: 2 }}
         output {{ name: \"y\" data_type: TYPE_INT32 dims: 2 }}
         parameters {{ key: \"mock.output\" value {{ string_value: \"echo\" }} }}
         parameters {{ key: \"mock.load_latency_us\" value {{ string_value: \"{load_latency_us}\" }} }}"
    );
    fs::create_dir_all(root.join(name).join("1")).expect("directory");
    fs::write(root.join(name).join("config.pbtxt"), config).expect("file");
}

pub(crate) async fn wait_until_loading(runtime: &Arc<Runtime>, name: &str) {
    loop {
        let rows = runtime.request_index(false).await.expect("an index");
        let row = rows.iter().find(|row| row.name.as_str() == name);
        if row.and_then(|row| row.state) == Some(VersionState::Loading) {
            return;
        }
    }
}
