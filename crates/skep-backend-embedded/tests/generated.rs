//! Generated models on both backends: what the embedded one serves must equal what ONNX Runtime computes. Without the
//! library of ONNX Runtime the models are still run, and a line says that nothing was compared.
#![allow(clippy::expect_used, reason = "tests state what they expect")]

use std::{io::Write as _, num::NonZeroUsize, path::Path};

use skep_backend::{
    Backend, ErrorKind, Instance, LoadRequest, ModelFile, OutputSlot,
    conformance::{Tolerance, compare, config},
};
use skep_backend_embedded::Embedded;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_models::{Inputs, Kind, Options, generate, inputs};
use skep_tensor::Tensor;
use skep_types::DeviceId;

/// What the embedded engine promises.
const TOLERANCE: Tolerance = Tolerance {
    relative: 1e-4,
    absolute: 1e-4,
};

/// Networks small enough for a test; the large ones are benchmarks'.
const NETWORKS: &[&str] = &["mlp", "cnn", "mobilenetv2", "bert-tiny"];

fn reference() -> Option<OnnxRuntime> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let search = LibrarySearch {
        working_directory: Some(root),
        ..LibrarySearch::from_environment()
    };
    match OnnxRuntime::start(&search) {
        Ok((backend, _)) => Some(backend),
        Err(error) => {
            // Bypasses the test harness, which hides the output of passing tests.
            let _ = writeln!(std::io::stderr(), "NOT COMPARED, no ONNX Runtime: {error}");
            None
        }
    }
}

fn load(
    backend: &dyn Backend,
    path: &Path,
) -> Result<Box<dyn Instance>, skep_backend::BackendError> {
    let request = LoadRequest {
        file: &ModelFile::open(path)?,
        config: &config(backend.name(), ""),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    };
    backend.load(&request)?.instance(DeviceId::default())
}

fn run(instance: &mut dyn Instance, inputs: &[Tensor], outputs: usize) -> Vec<Tensor> {
    let views: Vec<_> = inputs.iter().map(Tensor::view).collect();
    let mut slots: Vec<OutputSlot> = (0..outputs).map(OutputSlot::new).collect();
    instance.execute(&views, &mut slots).expect("runs");
    let tensors = slots
        .into_iter()
        .map(|slot| slot.into_tensor().expect("filled"));
    tensors.collect()
}

/// Runs a kind at several batch sizes, and compares where there is a reference.
fn agree(kind: &Kind, external_data: bool) {
    let options = Options {
        external_data,
        ..Options::default()
    };
    let model = generate(kind, &options).expect("generates");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("model.onnx");
    model.write(&path).expect("writes");
    let signature = model.signature();
    let served = Embedded.capabilities().datatypes;
    let mut embedded = match load(&Embedded, &path) {
        Ok(instance) => instance,
        Err(error) => {
            let all = signature.inputs.iter().chain(&signature.outputs);
            assert!(
                all.map(|t| t.datatype).any(|d| !served.contains(&d)),
                "{}: {error}",
                kind.name()
            );
            return assert_eq!(error.kind(), ErrorKind::Unsupported);
        }
    };
    let mut reference = reference().map(|r| load(&r, &path).expect("loads"));
    for batch in [1, 3] {
        let wanted = Inputs {
            seed: 1,
            batch,
            sequence: 16,
        };
        let tensors = inputs(kind, wanted).into_iter();
        let inputs: Vec<Tensor> = tensors
            .map(|t| Tensor::new(t.datatype, t.shape, t.data.into()).expect("a tensor"))
            .collect();
        if inputs.iter().any(exceeds_32_bits) {
            continue;
        }
        let count = signature.outputs.len();
        let got = run(embedded.as_mut(), &inputs, count);
        let Some(reference) = &mut reference else {
            continue;
        };
        let expected = run(reference.as_mut(), &inputs, count);
        for ((spec, got), expected) in signature.outputs.iter().zip(&got).zip(&expected) {
            compare(
                &format!("{} of {}", spec.name, kind.name()),
                got,
                expected,
                TOLERANCE,
            );
        }
    }
}

fn exceeds_32_bits(tensor: &Tensor) -> bool {
    tensor.datatype() == skep_types::DataType::Int64
        && tensor
            .data()
            .as_chunks::<8>()
            .0
            .iter()
            .any(|c| i32::try_from(i64::from_le_bytes(*c)).is_err())
}

#[test]
fn networks_agree_with_onnx_runtime() {
    for network in NETWORKS {
        let kind: Kind = network.parse().expect("a kind");
        agree(&kind, false);
    }
}

#[test]
fn external_data_agrees_with_onnx_runtime() {
    agree(&"cnn".parse().expect("a kind"), true);
}

#[test]
fn every_datatype_agrees_or_is_refused() {
    let small = |kind: &Kind| matches!(kind, Kind::Identity { .. } | Kind::AddSub { .. });
    for kind in Kind::all().iter().filter(|kind| small(kind)) {
        agree(kind, false);
    }
}
