//! Models on the mock backend that echo their input.

use std::{fs, path::Path, sync::Arc};

use bytes::Bytes;
use skep_runtime::{Control, Device, InferRequest, LoadedVersion, Runtime};
use skep_tensor::Tensor;
use skep_types::{DataType, DeviceId, Shape};

use crate::common;

/// The configuration of a model on the mock backend that echoes an INT32 vector.
pub(crate) fn config(more: &str) -> String {
    format!(
        "backend: \"mock\" max_batch_size: 4
         input {{ name: \"x\" data_type: TYPE_INT32 dims: 2 }}
         output {{ name: \"y\" data_type: TYPE_INT32 dims: 2 }}
         parameters {{ key: \"mock.output\" value {{ string_value: \"echo\" }} }}
         {more}"
    )
}

/// Microseconds of an execution that must still run a few steps later.
pub(crate) const SLOW: &str = "700000";

pub(crate) fn parameter(key: &str, value: &str) -> String {
    format!("parameters {{ key: \"{key}\" value {{ string_value: \"{value}\" }} }}\n")
}

pub(crate) fn write_model(root: &Path, name: &str, config: &str, versions: &[&str]) {
    for version in versions {
        fs::create_dir_all(root.join(name).join(version)).expect("directory");
    }
    fs::create_dir_all(root.join(name)).expect("directory");
    fs::write(root.join(name).join("config.pbtxt"), config).expect("file");
}

/// A node whose models are loaded on request if `explicit`, otherwise at the start.
pub(crate) fn runtime(root: &Path, explicit: bool) -> Arc<Runtime> {
    let mut options = common::options(root);
    options.load.cpu = Some(Device::new(DeviceId::default(), 1));
    if !explicit {
        options.control = Control::None;
    }
    Runtime::new(options, common::mock_backends())
}

pub(crate) fn request(batch: usize, value: i32) -> InferRequest {
    let data: Vec<u8> = (0..2 * batch).flat_map(|_| value.to_le_bytes()).collect();
    let shape = Shape::new(&[batch, 2]).expect("shape");
    let tensor = Tensor::new(DataType::Int32, shape, Bytes::from(data)).expect("tensor");
    InferRequest {
        inputs: vec![("x".to_owned(), tensor)],
        ..Default::default()
    }
}

/// The number of failed loads, by model.
pub(crate) fn failures(runtime: &Runtime) -> Vec<(String, u64)> {
    let failures = runtime.load_failures().into_iter();
    failures
        .map(|(_, name, count)| (name.to_string(), count))
        .collect()
}

/// The latest version of a model.
pub(crate) fn latest(model: &str, runtime: &Runtime) -> Arc<LoadedVersion> {
    runtime.resolve(model, None).expect("loaded")
}
