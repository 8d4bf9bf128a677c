//! A generated model: its graph at hand, its weights computed when it is written.

use std::{
    fs,
    io::{self, BufWriter, Write},
    path::Path,
};

use prost::Message;
use skep_proto::onnx::{
    GraphProto, ModelProto, OperatorSetIdProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use skep_types::{DataType, Dims, ModelName, ModelSignature, TensorSpec};

use crate::{
    encode::{EncodedModel, element_count, lay_out},
    error::GenerateError,
    graph::{GraphBuilder, GraphWeight, element_type},
    options::Options,
    variant::{Sharing, Variant},
};

/// The operator set: old enough for every runtime in use, new enough for LayerNormalization.
const OPSET: i64 = 17;
/// The file format that came with that operator set.
const IR_VERSION: i64 = 8;
/// Protobuf readers count a message's bytes in a signed 32-bit integer.
const FILE_LIMIT_BYTES: u64 = (1 << 31) - 1;

/// A model, generated but for the values of its weights.
#[derive(Debug, Clone)]
pub struct GeneratedModel {
    /// Everything but the initializers.
    model: ModelProto,
    initializers: Vec<GraphWeight>,
    seed: u64,
    external_data: bool,
    /// Blocks from this one on take their weights from another seed.
    tail: Option<(usize, u64)>,
}

impl GraphBuilder {
    /// Ends the construction.
    ///
    /// # Errors
    /// [`GenerateError::TooManyBlocks`] for a variant of more blocks than there are;
    /// [`GenerateError::InvalidParameter`] for one of a graph without weights.
    pub fn finish(self, options: &Options) -> Result<GeneratedModel, GenerateError> {
        let tail = options
            .variant
            .map(|variant| self.tail(variant))
            .transpose()?;
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![OperatorSetIdProto {
                domain: None,
                version: Some(OPSET),
            }],
            producer_name: Some("skep".to_owned()),
            graph: Some(self.graph),
            ..Default::default()
        };
        Ok(GeneratedModel {
            model,
            initializers: self.initializers,
            seed: options.seed,
            external_data: options.external_data,
            tail,
        })
    }

    fn tail(&self, variant: Variant) -> Result<(usize, u64), GenerateError> {
        // Block 0 is the stem and the last one the head: what lies between can be counted from the end.
        let between = self.block.saturating_sub(1);
        let graph = self.graph.name().to_owned();
        if self.block == 0 {
            return Err(GenerateError::InvalidParameter {
                kind: graph,
                parameter: "variant".to_owned(),
                given: format!("seed {}", variant.seed),
                expected: "none, since it has no blocks of weights".to_owned(),
            });
        }
        if variant.blocks > between {
            return Err(GenerateError::TooManyBlocks {
                graph,
                blocks: variant.blocks,
                most: between,
            });
        }
        Ok((self.block - variant.blocks, variant.seed))
    }
}

impl GeneratedModel {
    /// The model's nodes, inputs and outputs, without initializers.
    #[must_use]
    pub fn graph(&self) -> &GraphProto {
        self.model.graph.as_ref().expect("`finish` puts it there")
    }

    /// Inputs and outputs as the file declares them.
    #[must_use]
    pub fn signature(&self) -> ModelSignature {
        ModelSignature {
            inputs: self.graph().input.iter().map(tensor_spec).collect(),
            outputs: self.graph().output.iter().map(tensor_spec).collect(),
        }
    }

    /// The number of trained values, without statistics and constants.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.initializers
            .iter()
            .filter(|initializer| initializer.trained)
            .map(element_count)
            .sum()
    }

    /// How much of this model is in the model of the same options without a variant, too: all of it where this is no
    /// variant.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        // Constants do not count: no seed decides them.
        let is_own = |initializer: &&GraphWeight| {
            initializer.fill.is_some()
                && self
                    .tail
                    .is_some_and(|(first, seed)| initializer.block >= first && seed != self.seed)
        };
        Sharing {
            bytes: self.initializers.iter().map(weight_bytes).sum(),
            own_bytes: self
                .initializers
                .iter()
                .filter(is_own)
                .map(weight_bytes)
                .sum(),
        }
    }

    /// The size of the model file, without a side file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.lay_out(self.external_data.then_some("model.onnx.data"))
            .len()
    }

    /// The whole model in memory, weights included, whatever [`Options::external_data`] says.
    ///
    /// # Errors
    /// [`GenerateError::TooLarge`] above 2 GiB.
    pub fn to_bytes(&self) -> Result<Vec<u8>, GenerateError> {
        let file = self.lay_out(None);
        let mut bytes = Vec::with_capacity(usize::try_from(checked_len(&file)?).unwrap_or(0));
        file.write(&mut bytes)
            .map_err(GenerateError::io("memory"))?;
        Ok(bytes)
    }

    /// The whole model as a message, for tests that look into it or change it.
    ///
    /// # Errors
    /// [`GenerateError::TooLarge`] above 2 GiB.
    pub fn to_proto(&self) -> Result<ModelProto, GenerateError> {
        // From `Bytes`, the message's weights are slices of the file: no second copy.
        Ok(ModelProto::decode(bytes::Bytes::from(self.to_bytes()?))
            .expect("what was encoded here decodes"))
    }

    /// A digest of the whole model, 64 hexadecimal digits: equal digests, equal files.
    ///
    /// # Errors
    /// [`GenerateError::TooLarge`] above 2 GiB.
    pub fn digest(&self) -> Result<String, GenerateError> {
        let file = self.lay_out(None);
        checked_len(&file)?;
        let mut hasher = blake3::Hasher::new();
        file.write(&mut hasher)
            .map_err(GenerateError::io("memory"))?;
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Writes the model to `path`; with [`Options::external_data`] its weights to `<path>.data`. If that fails, for
    /// instance because the disk is full, no part of them stays.
    ///
    /// # Errors
    /// [`GenerateError::TooLarge`] above 2 GiB without external data; [`GenerateError::Io`].
    pub fn write(&self, path: impl AsRef<Path>) -> Result<(), GenerateError> {
        let path = path.as_ref();
        let side_name = format!(
            "{}.data",
            path.file_name().unwrap_or_default().to_string_lossy()
        );
        let file = self.lay_out(self.external_data.then_some(&side_name));
        checked_len(&file)?;
        if !self.external_data {
            return create(path, |out| file.write(out));
        }
        let side = path.with_file_name(&side_name);
        create(&side, |out| file.write_external(out))?;
        // Weights without their model are of no use.
        create(path, |out| file.write(out)).inspect_err(|_| remove(&side))
    }

    /// Writes the model as version 1 of `name` into a model repository, with a `config.pbtxt` if one is given.
    ///
    /// # Errors
    /// As [`GeneratedModel::write`]; [`GenerateError::InvalidModelName`] for a name that cannot be a directory's.
    pub fn write_repository(
        &self,
        repository: impl AsRef<Path>,
        name: &str,
        config: Option<&str>,
    ) -> Result<(), GenerateError> {
        let directory = repository.as_ref().join(ModelName::new(name)?.as_str());
        let version = directory.join("1");
        fs::create_dir_all(&version).map_err(GenerateError::io(&version))?;
        self.write(version.join("model.onnx"))?;
        match config {
            Some(text) => create(&directory.join("config.pbtxt"), |out| {
                out.write_all(text.as_bytes())
            }),
            None => Ok(()),
        }
    }

    fn lay_out(&self, location: Option<&str>) -> EncodedModel<'_> {
        let seed_of = |initializer: &GraphWeight| match self.tail {
            Some((first, seed)) if initializer.block >= first => seed,
            _ => self.seed,
        };
        EncodedModel::new(&self.model, lay_out(&self.initializers, seed_of, location))
    }
}

fn weight_bytes(weight: &GraphWeight) -> u64 {
    match weight.fill {
        Some(_) => 4 * element_count(weight) as u64,
        None => weight.proto.raw_data().len() as u64,
    }
}

fn checked_len(file: &EncodedModel<'_>) -> Result<u64, GenerateError> {
    let bytes = file.len();
    if bytes > FILE_LIMIT_BYTES {
        Err(GenerateError::TooLarge { bytes })
    } else {
        Ok(bytes)
    }
}

fn create(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>,
) -> Result<(), GenerateError> {
    let file = fs::File::create(path).map_err(GenerateError::io(path))?;
    let mut out = BufWriter::new(file);
    write(&mut out)
        .and_then(|()| out.flush())
        .inspect_err(|_| remove(path))
        .map_err(GenerateError::io(path))
}

/// Removes a file of which only a part was written. A device such as `/dev/full` stays.
fn remove(path: &Path) {
    if fs::metadata(path).is_ok_and(|found| found.is_file()) {
        // The error that is reported is why it could not be written.
        drop(fs::remove_file(path));
    }
}

fn tensor_spec(value: &ValueInfoProto) -> TensorSpec {
    let Some(type_proto::Value::TensorType(tensor)) =
        value.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        unreachable!("`GraphBuilder` declares tensors only");
    };
    let size = |dim: &tensor_shape_proto::Dimension| match dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(size)) => size,
        _ => -1,
    };
    let datatype = DataType::ALL
        .into_iter()
        .find(|&d| element_type(d) as i32 == tensor.elem_type());
    let sizes: Option<Vec<i64>> = tensor
        .shape
        .as_ref()
        .map(|shape| shape.dim.iter().map(size).collect());
    TensorSpec {
        name: value.name().to_owned(),
        datatype: datatype.expect("`GraphBuilder` declares these datatypes only"),
        dims: sizes.and_then(|sizes| Dims::new(&sizes).ok()),
    }
}
