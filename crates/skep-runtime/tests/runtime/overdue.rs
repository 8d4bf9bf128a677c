//! Executions that take longer than they may: their requests are answered, other models are served, and an instance
//! that comes back serves again.

use std::{
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Condvar, Mutex},
};

use bytes::Bytes;
use skep_backend::{
    Backend, BackendError, Capabilities, ErrorKind, Instance, Interrupt, LoadRequest, Model,
    OutputSlot,
};
use skep_runtime::{
    BackendEntry, Backends, Device, InferRequest, InferResponse, LoadOverrides, LoadedVersion,
    Runtime, RuntimeError, VersionState,
};
use skep_tensor::{Tensor, TensorView};
use skep_types::{DataType, DeviceId, ModelSignature, Shape};
use tempfile::TempDir;

use crate::common;

/// An execution with this input waits until the gate is opened.
const STUCK: i32 = 13;

/// Holds executions until it is opened.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// How many executions have arrived, and how many of them may pass.
    arrived: u32,
    may_pass: u32,
    interrupted: bool,
}

impl Gate {
    /// Waits at the gate. Returns whether it was opened, as opposed to interrupted.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().expect("whole");
        state.arrived += 1;
        let number = state.arrived;
        self.changed.notify_all();
        let state = self
            .changed
            .wait_while(state, |state| state.may_pass < number && !state.interrupted)
            .expect("whole");
        state.may_pass >= number
    }

    fn open(&self) {
        let mut state = self.state.lock().expect("whole");
        state.may_pass = state.arrived;
        self.changed.notify_all();
    }

    fn wait_for(&self, arrived: u32) {
        let state = self.state.lock().expect("whole");
        let waited = self
            .changed
            .wait_while(state, |state| state.arrived < arrived);
        drop(waited.expect("whole"));
    }
}

impl Interrupt for Gate {
    fn begin(&self) {
        self.state.lock().expect("whole").interrupted = false;
    }

    fn interrupt(&self) {
        self.state.lock().expect("whole").interrupted = true;
        self.changed.notify_all();
    }
}

/// A backend of single-threaded models. Those whose name begins with `i` can be interrupted.
struct Gated(Arc<Gate>);

struct GatedModel {
    signature: ModelSignature,
    gate: Arc<Gate>,
    can_be_interrupted: bool,
}

impl Backend for Gated {
    fn name(&self) -> &'static str {
        "mock"
    }

    fn describe(&self) -> String {
        String::new()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights_in_place: false,
            prepared_outputs: false,
            datatypes: &[DataType::Int32],
        }
    }

    fn model_files(&self) -> &'static [&'static str] {
        &[]
    }

    fn load(&self, request: &LoadRequest<'_>) -> Result<Arc<dyn Model>, BackendError> {
        Ok(Arc::new(GatedModel {
            signature: ModelSignature {
                inputs: vec![common::one_int("x")],
                outputs: vec![common::one_int("y")],
            },
            gate: Arc::clone(&self.0),
            can_be_interrupted: request.config.name().as_str().starts_with('i'),
        }))
    }
}

impl Model for GatedModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn output_shapes(&self, _inputs: &[&Shape]) -> Option<Vec<Shape>> {
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        Some(NonZeroUsize::MIN)
    }

    fn instance(self: Arc<Self>, _: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        Ok(Box::new(GatedInstance(self)))
    }
}

struct GatedInstance(Arc<GatedModel>);

impl Instance for GatedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let bytes = inputs[0].data();
        if bytes == STUCK.to_le_bytes() && !self.0.gate.pass() {
            return Err(BackendError::new(ErrorKind::Internal, "interrupted"));
        }
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(DataType::Int32, shape, Bytes::copy_from_slice(bytes));
        outputs[0].fill(tensor.expect("tensor"));
        Ok(())
    }

    fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        let gate = Arc::clone(&self.0.gate) as Arc<dyn Interrupt>;
        self.0.can_be_interrupted.then_some(gate)
    }
}

fn request(value: i32) -> InferRequest {
    let shape = Shape::new(&[1]).expect("shape");
    let bytes = Bytes::copy_from_slice(&value.to_le_bytes());
    let tensor = Tensor::new(DataType::Int32, shape, bytes).expect("tensor");
    InferRequest {
        inputs: vec![("x".to_owned(), tensor)],
        ..Default::default()
    }
}

fn value(answer: Result<InferResponse, RuntimeError>) -> i32 {
    let answer = answer.expect("an answer");
    let data = answer.outputs[0].tensor.data();
    i32::from_le_bytes(data.as_ref().try_into().expect("four bytes"))
}

struct TestNode {
    runtime: Arc<Runtime>,
    gate: Arc<Gate>,
    root: TempDir,
}

/// How long an execution may take.
const SHORT_MS: u32 = 20;

impl TestNode {
    /// A node of one slot without models.
    fn new() -> Self {
        let root = TempDir::new().expect("directory");
        let gate = Arc::new(Gate::default());
        let gated = Arc::new(Gated(Arc::clone(&gate)));
        let mut backends = Backends::default();
        backends.add(
            "mock",
            BackendEntry::new(move || Ok(Arc::clone(&gated) as Arc<dyn Backend>)),
        );
        let mut options = common::options(root.path());
        options.load.cpu = Some(Device::new(DeviceId::default(), 1));
        Self {
            runtime: Runtime::new(options, backends),
            gate,
            root,
        }
    }

    fn try_load(&self, name: &str, more: &str) -> Result<(), RuntimeError> {
        write_model(self.root.path(), name, more);
        self.runtime.load(name, &LoadOverrides::default())
    }

    fn load(&self, name: &str, more: &str) -> Arc<LoadedVersion> {
        self.try_load(name, more).expect("loads");
        self.runtime.resolve(name, None).expect("loaded")
    }

    /// A model's state in the index, and the reason.
    fn state(&self, name: &str) -> (Option<VersionState>, String) {
        let rows = self.runtime.index(false);
        let row = rows.into_iter().find(|row| row.name.as_str() == name);
        let row = row.expect("listed");
        (row.state, row.reason)
    }
}

fn write_model(root: &Path, name: &str, more: &str) {
    fs::create_dir_all(root.join(name).join("1")).expect("directory");
    let config = format!(
        "backend: \"mock\" input {{ name: \"x\" data_type: TYPE_INT32 dims: 1 }}
         output {{ name: \"y\" data_type: TYPE_INT32 dims: 1 }}
         parameters {{ key: \"max_execution_ms\" value {{ string_value: \"{SHORT_MS}\" }} }} {more}"
    );
    fs::write(root.join(name).join("config.pbtxt"), config).expect("file");
}

fn stuck(
    version: &Arc<LoadedVersion>,
) -> tokio::task::JoinHandle<Result<InferResponse, RuntimeError>> {
    let version = Arc::clone(version);
    tokio::spawn(async move { version.infer(request(STUCK)).await })
}

fn refused(answer: Result<InferResponse, RuntimeError>, part: &str) {
    let error = answer.expect_err(part);
    assert_eq!(error.kind(), skep_runtime::ErrorKind::Unavailable);
    assert!(error.to_string().contains(part), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_execution_is_answered_and_does_not_block_others() {
    let node = TestNode::new();
    let (bad, good) = (node.load("bad", ""), node.load("good", ""));
    let first = stuck(&bad);
    node.gate.wait_for(1);
    // This request waits behind the stuck one, and is answered with it.
    let behind = tokio::spawn({
        let bad = Arc::clone(&bad);
        async move { bad.infer(request(2)).await }
    });
    refused(
        first.await.expect("no panic"),
        "longer than 20 ms (`max_execution_ms`)",
    );
    refused(
        behind.await.expect("no panic"),
        "no instance of the model can run",
    );
    assert!(!bad.is_healthy() && !node.runtime.is_ready());
    let (state, reason) = node.state("bad");
    assert_eq!(state, Some(VersionState::Unavailable));
    assert!(reason.contains("`max_execution_ms`"), "{reason}");
    refused(
        bad.infer(request(3)).await,
        "no instance of the model can run",
    );
    // The node's one slot is free for other models.
    assert!(good.is_healthy());
    assert_eq!(value(good.infer(request(4)).await), 4);

    node.gate.open();
    while !bad.is_healthy() {
        tokio::task::yield_now().await;
    }
    assert_eq!(value(bad.infer(request(5)).await), 5, "it is back");
    assert_eq!(
        node.state("bad"),
        (Some(VersionState::Ready), String::new())
    );
    let statistics = bad.statistics();
    assert_eq!((statistics.success.count, statistics.fail.count), (1, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_instances_keep_serving() {
    let node = TestNode::new();
    let bad = node.load("bad", "instance_group { kind: KIND_CPU count: 2 }");
    refused(stuck(&bad).await.expect("no panic"), "max_execution_ms");
    for number in 0..5 {
        assert_eq!(value(bad.infer(request(number)).await), number);
    }
    assert!(bad.is_healthy());
    refused(stuck(&bad).await.expect("no panic"), "max_execution_ms");
    refused(bad.infer(request(1)).await, "2 of its executions");
    node.gate.open();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interruptible_execution_is_interrupted() {
    let node = TestNode::new();
    let bad = node.load("interruptible", "");
    refused(stuck(&bad).await.expect("no panic"), "max_execution_ms");
    assert_eq!(value(bad.infer(request(1)).await), 1);
    assert!(bad.is_healthy());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_model_can_be_unloaded_and_loaded() {
    let node = TestNode::new();
    let bad = node.load("bad", "");
    let first = stuck(&bad);
    node.gate.wait_for(1);
    node.runtime.unload("bad").expect("unloads");
    refused(first.await.expect("no panic"), "max_execution_ms");
    drop(bad);
    assert_eq!(node.state("bad").0, Some(VersionState::Unloading));
    let again = node.load("bad", "");
    assert_eq!(value(again.infer(request(1)).await), 1);
    node.gate.open();
    drop(again);
    node.runtime.unload("bad").expect("unloads");
    while node.state("bad").0 != Some(VersionState::Unavailable) {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_stuck_warm_up_fails_the_load() {
    let node = TestNode::new();
    // The input of a warm-up: 13 in every element.
    let file = node.root.path().join("bad/warmup/x");
    fs::create_dir_all(file.parent().expect("a parent")).expect("made");
    fs::write(&file, STUCK.to_le_bytes()).expect("written");
    let warm_up = r#"model_warmup { name: "w" batch_size: 1 count: 1
        inputs { key: "x" value { data_type: TYPE_INT32 dims: 1 input_data_file: "x" } } }"#;
    let error = node.try_load("bad", warm_up).expect_err("stuck");
    assert!(error.to_string().contains("max_execution_ms"), "{error}");
    node.gate.open();
}
