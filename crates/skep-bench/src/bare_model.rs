//! A model in ONNX Runtime without any server.

use std::{num::NonZeroUsize, path::Path, sync::Arc};

use anyhow::Result;
use skep_backend::{Backend, Instance, LoadRequest, Model, ModelFile, OutputSlot};
use skep_backend_onnxruntime::OnnxRuntime;
use skep_config::{Completion, ConfigContext, ModelConfig};
use skep_onnx::OnnxModel;
use skep_tensor::{Tensor, TensorView};
use skep_types::{DeviceId, ModelName, Shape};

/// A loaded model, and what to feed it.
pub struct BareModel {
    model: Arc<dyn Model>,
    inputs: Vec<Tensor>,
    /// Where they follow from the inputs'.
    output_shapes: Option<Vec<Shape>>,
}

impl BareModel {
    /// Loads `file` with this configuration, as a server does.
    ///
    /// # Errors
    /// When the file or the configuration is not a model's, or ONNX Runtime refuses it.
    pub fn load(
        runtime: &OnnxRuntime,
        file: &Path,
        config: &str,
        inputs: Vec<Tensor>,
    ) -> Result<Self> {
        let file = ModelFile::open(file)?;
        let signature = OnnxModel::decode(file.bytes().clone())?.signature()?;
        let name = ModelName::new("bare")?;
        let mut proto = skep_config::parse_pbtxt(config.as_bytes(), "bare")?;
        let completion = Completion {
            is_unbatched: false,
            model: &name,
            backend: "onnxruntime",
            model_filename: "",
            default_max_batch_size: 4,
            signature: Some(&signature),
        };
        skep_config::complete(&mut proto, &completion)?;
        let config = ModelConfig::from_proto(proto, &ConfigContext::new(&name))?
            .with_signature(&signature)?;
        let model = runtime.load(&LoadRequest {
            file: &file,
            config: &config,
            threads: NonZeroUsize::MIN,
            weights: None,
            device: DeviceId::default(),
            cpus: None,
            request_memory: None,
        })?;
        let shapes: Vec<&Shape> = inputs.iter().map(Tensor::shape).collect();
        let output_shapes = model.output_shapes(&shapes);
        Ok(Self {
            model,
            inputs,
            output_shapes,
        })
    }

    /// An executable copy.
    ///
    /// # Errors
    /// When ONNX Runtime cannot make one.
    pub fn instance(&self) -> Result<Box<dyn Instance>> {
        Ok(Arc::clone(&self.model).instance(DeviceId::default())?)
    }

    /// Runs the model once, into prepared memory where shapes are known.
    ///
    /// # Errors
    /// When the run fails.
    ///
    /// # Panics
    /// When there is no memory for the outputs.
    pub fn run(&self, instance: &mut dyn Instance) -> Result<()> {
        let outputs = self.model.signature().outputs.iter().enumerate();
        let slots = outputs.map(|(index, spec)| match &self.output_shapes {
            Some(shapes) => OutputSlot::prepared(index, spec.datatype, shapes[index].clone())
                .expect("there is memory"),
            None => OutputSlot::new(index),
        });
        let mut slots: Vec<OutputSlot> = slots.collect();
        let views: Vec<TensorView<'_>> = self.inputs.iter().map(Tensor::view).collect();
        instance.execute(&views, &mut slots)?;
        Ok(())
    }
}
