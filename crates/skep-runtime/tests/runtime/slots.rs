//! Models that share a CPU: no more threads compute than there are slots, and every slot is returned.

use std::{
    fs,
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use skep_backend::{Backend, BackendError, Capabilities, Instance, LoadRequest, Model, OutputSlot};
use skep_runtime::{BackendEntry, Backends, Device, InferRequest, LoadOverrides, Runtime};
use skep_tensor::{Tensor, TensorView};
use skep_types::{DataType, DeviceId, ModelSignature, Shape};
use tempfile::TempDir;

use crate::common;

/// A backend that counts computing threads. It panics on an input of [`DEADLY`].
#[derive(Default)]
struct Gauge {
    busy: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

const DEADLY: i32 = 13;

struct GaugeModel {
    signature: ModelSignature,
    /// Threads of an execution, from the last digit of the model's name.
    threads: usize,
    busy: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Backend for Gauge {
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
        let name = request.config.name().to_string();
        Ok(Arc::new(GaugeModel {
            signature: ModelSignature {
                inputs: vec![common::one_int("x")],
                outputs: vec![common::one_int("y")],
            },
            threads: name[name.len() - 1..].parse().expect("a digit"),
            busy: Arc::clone(&self.busy),
            most: Arc::clone(&self.most),
        }))
    }
}

impl Model for GaugeModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    fn output_shapes(&self, _inputs: &[&Shape]) -> Option<Vec<Shape>> {
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.threads)
    }

    fn instance(self: Arc<Self>, _: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        Ok(Box::new(GaugeInstance(self)))
    }
}

struct GaugeInstance(Arc<GaugeModel>);

impl Instance for GaugeInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let model = &self.0;
        let busy = model.busy.fetch_add(model.threads, Ordering::SeqCst) + model.threads;
        model.most.fetch_max(busy, Ordering::SeqCst);
        // Long enough for other executions to overlap if they can.
        for _ in 0..20 {
            std::thread::yield_now();
        }
        model.busy.fetch_sub(model.threads, Ordering::SeqCst);
        let bytes = inputs[0].data();
        assert_ne!(bytes, DEADLY.to_le_bytes(), "as the input asks for");
        let shape = Shape::new(&[1]).expect("shape");
        let tensor = Tensor::new(DataType::Int32, shape, Bytes::copy_from_slice(bytes));
        outputs[0].fill(tensor.expect("tensor"));
        Ok(())
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

/// A warm-up of 20 executions.
const WARM_UP: &str = r#"model_warmup { name: "w" batch_size: 1 count: 20
    inputs { key: "x" value { data_type: TYPE_INT32 dims: 1 zero_data: true } } }"#;

fn runtime(root: &Path, slots: u32, models: &[(&str, u32)]) -> (Arc<Runtime>, Arc<AtomicUsize>) {
    for (name, instances) in models {
        fs::create_dir_all(root.join(name).join("1")).expect("directory");
        let config = format!(
            "backend: \"mock\" input {{ name: \"x\" data_type: TYPE_INT32 dims: 1 }}
             output {{ name: \"y\" data_type: TYPE_INT32 dims: 1 }}
             instance_group {{ kind: KIND_CPU count: {instances} }}"
        );
        fs::write(root.join(name).join("config.pbtxt"), config).expect("file");
    }
    let gauge = Arc::new(Gauge::default());
    let most = Arc::clone(&gauge.most);
    let mut backends = Backends::default();
    backends.add(
        "mock",
        BackendEntry::new(move || Ok(Arc::clone(&gauge) as Arc<dyn Backend>)),
    );
    let mut options = common::options(root);
    options.load.cpu = Some(Device::with_min_turn(
        DeviceId::default(),
        slots,
        Duration::MAX,
    ));
    let runtime = Runtime::new(options, backends);
    for (name, _) in models {
        runtime
            .load(name, &LoadOverrides::default())
            .expect("loads");
    }
    (runtime, most)
}

/// Sends `count` requests to each model at once. Returns how many were answered with their own value.
async fn flood(runtime: &Arc<Runtime>, models: &[(&str, u32)], count: i32) -> i32 {
    let mut tasks = Vec::new();
    for value in 0..count {
        for (name, _) in models {
            let version = runtime.resolve(name, None).expect("loaded");
            tasks.push(tokio::spawn(async move {
                let answer = version.infer(request(value)).await;
                let sent = request(value).inputs.remove(0).1;
                answer.is_ok_and(|answer| answer.outputs[0].tensor == sent)
            }));
        }
    }
    let mut answered = 0;
    for task in tasks {
        answered += i32::from(task.await.expect("no panic"));
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_threads_compute_than_there_are_slots() {
    for (slots, models, most_expected) in [
        (1, &[("a_1", 3), ("b_1", 2)][..], 1),
        (2, &[("a_1", 3), ("b_1", 2), ("c_2", 2)][..], 2),
        // A model that needs more slots than there are gets all of them, and may use more threads.
        (2, &[("a_3", 2)][..], 3),
    ] {
        let root = TempDir::new().expect("directory");
        let (runtime, most) = runtime(root.path(), slots, models);
        let answered = flood(&runtime, models, 200).await;
        // One request in 200 is deadly.
        assert_eq!(answered, 199 * i32::try_from(models.len()).expect("few"));
        let most = most.load(Ordering::SeqCst);
        assert!(most <= most_expected, "{most} threads with {slots} slots");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_return_from_panicked_instances_and_unloaded_models() {
    let root = TempDir::new().expect("directory");
    let models = [("a_1", 2), ("b_1", 1)];
    let (runtime, _) = runtime(root.path(), 1, &models);
    for _ in 0..20 {
        let version = runtime.resolve("a_1", None).expect("loaded");
        assert!(version.infer(request(DEADLY)).await.is_err());
    }
    assert_eq!(flood(&runtime, &models[1..], 5).await, 5, "after panics");
    // The model is reloaded while it works.
    for _ in 0..20 {
        let working = tokio::spawn({
            let version = runtime.resolve("a_1", None).expect("loaded");
            async move { version.infer(request(1)).await.is_ok() }
        });
        let runtime = Arc::clone(&runtime);
        let again = tokio::task::spawn_blocking(move || {
            runtime.unload("a_1").expect("unloads");
            runtime
                .load("a_1", &LoadOverrides::default())
                .expect("loads");
        });
        assert!(
            working.await.expect("no panic"),
            "an accepted request is answered"
        );
        again.await.expect("no panic");
    }
    assert_eq!(flood(&runtime, &models, 5).await, 10, "after unloads");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_ups_take_their_turn() {
    let root = TempDir::new().expect("directory");
    let models = [("a_1", 2), ("b_1", 3)];
    let (runtime, most) = runtime(root.path(), 1, &models);
    let file = root.path().join("b_1/config.pbtxt");
    let config = fs::read_to_string(&file).expect("file");
    fs::write(&file, config + WARM_UP).expect("file");
    for _ in 0..5 {
        let again = tokio::task::spawn_blocking({
            let runtime = Arc::clone(&runtime);
            move || {
                runtime.unload("b_1").expect("unloads");
                runtime
                    .load("b_1", &LoadOverrides::default())
                    .expect("loads")
            }
        });
        while !again.is_finished() {
            assert_eq!(flood(&runtime, &models[..1], 10).await, 10);
        }
        again.await.expect("no panic");
    }
    assert_eq!(most.load(Ordering::SeqCst), 1);
}
