//! Weights in place.
//!
//! The engine copies weights inside the model's file, and uses external data in place. So all large initializers
//! become external data: they are cut out of the message and passed as slices. For baked models
//! ([`bake`](crate::bake)) these are slices of the tensor store; otherwise of the mapped file if the slice is aligned
//! for its elements, else of an aligned copy.
//!
//! ```text
//! model.onnx (mapped)  [ graph | raw_data of w0 | ... | raw_data of w1 ]      message without them -> engine
//!                                 ^ aligned: used here     ^ copied once
//! weights.bin (mapped)                [ w2 | w3 ]
//! ```
#![allow(
    unsafe_code,
    reason = "the engine takes slices of the mapping for 'static (invariant 5)"
)]

use std::{
    collections::HashMap,
    path::{Component, Path},
    slice,
};

use bytes::Bytes;
use rten::{LoadError, ModelOptions};
use skep_backend::ModelFile;
use skep_onnx::ExternalData;
use skep_proto::onnx::{GraphProto, ModelProto, TensorProto, tensor_proto::DataLocation};
use skep_tensor::AlignedBuffer;
use skep_types::DataType;

/// Smaller tensors stay in the message: cutting them out gains nothing, and shape arithmetic reads them there.
pub(crate) const MIN_BYTES: usize = 1024;

/// An engine's model, with the memory of its weights.
pub(crate) struct EngineModel {
    // Declared before the memory: fields are dropped in this order.
    model: rten::Model,
    _weights: Vec<Bytes>,
}

impl EngineModel {
    /// Loads a message whose large tensors are in `weights`, by alias. Their memory is kept, and used in place if it
    /// is aligned for its elements.
    ///
    /// `optimize` lets the engine rewrite the graph. If it folds a normalisation into a convolution, the folded
    /// weights are new private memory that replaces the given weights.
    pub(crate) fn load(
        message: Vec<u8>,
        weights: impl IntoIterator<Item = (String, Bytes)>,
        optimize: bool,
    ) -> Result<Self, LoadError> {
        let mut options = ModelOptions::with_all_ops();
        options.enable_optimization(optimize);
        let mut kept = Vec::new();
        for (alias, data) in weights {
            // SAFETY: the memory of a `Bytes` neither moves nor changes while a clone of it lives. The engine's
            // model, the only holder of this slice after `options`, is dropped before `_weights` (see the fields), and
            // the results of a run are separate memory.
            let slice: &'static [u8] = unsafe { slice::from_raw_parts(data.as_ptr(), data.len()) };
            options.external_data_static(&alias, slice);
            kept.push(data);
        }
        let model = options.load(message)?;
        Ok(Self {
            model,
            _weights: kept,
        })
    }

    /// The engine's model.
    pub(crate) const fn engine(&self) -> &rten::Model {
        &self.model
    }
}

/// A large tensor that was cut out of a message.
pub(crate) struct CutTensor {
    /// The name under which the engine requests it.
    pub(crate) alias: String,
    pub(crate) datatype: DataType,
    pub(crate) dims: Vec<i64>,
    /// Aligned for its elements.
    pub(crate) bytes: Bytes,
}

/// Cuts the tensors of at least `min_bytes` bytes out of a message whose external tensors were
/// [resolved](resolve_external), and leaves references to them.
pub(crate) fn cut_out(proto: &mut ModelProto, min_bytes: usize) -> Vec<CutTensor> {
    let mut cuts = Vec::new();
    if let Some(graph) = &mut proto.graph {
        for_each_initializer(graph, &mut |tensor| {
            cuts.extend(cut_one(tensor, min_bytes, cuts.len()));
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap_or_else(|never| match never {});
    }
    cuts
}

/// Removes the values of large tensors from a message; their types and shapes stay.
pub(crate) fn forget_large(proto: &mut ModelProto) {
    let Some(graph) = &mut proto.graph else {
        return;
    };
    for_each_initializer(graph, &mut |tensor| {
        let large = tensor.raw_data.take_if(|data| data.len() >= MIN_BYTES);
        if let Some(data) = large {
            tensor.set_data_location(DataLocation::External);
            let there = ExternalData {
                location: "forgotten.data",
                offset: 0,
                length: Some(data.len()),
            };
            tensor.external_data = there.entries();
        } else if let Some(data) = &mut tensor.raw_data {
            // A slice would keep the whole file mapped.
            *data = Bytes::copy_from_slice(data);
        }
        Ok::<(), std::convert::Infallible>(())
    })
    .unwrap_or_else(|never| match never {});
}

fn cut_one(tensor: &mut TensorProto, min_bytes: usize, index: usize) -> Option<CutTensor> {
    let alignment = crate::convert::in_place_size(tensor.data_type())?;
    let datatype = skep_onnx::datatype(tensor.data_type())?;
    let data = tensor.raw_data.take_if(|data| data.len() >= min_bytes)?;
    // The engine requires this extension.
    let alias = format!("{index}.data");
    tensor.set_data_location(DataLocation::External);
    let there = ExternalData {
        location: &alias,
        offset: 0,
        length: Some(data.len()),
    };
    tensor.external_data = there.entries();
    let bytes = if data.as_ptr().addr() % alignment == 0 {
        data
    } else {
        let mut aligned = AlignedBuffer::zeroed(data.len());
        aligned.copy_from_slice(&data);
        aligned.freeze()
    };
    Some(CutTensor {
        alias,
        datatype,
        dims: tensor.dims.clone(),
        bytes,
    })
}

/// Replaces references to files beside the model by slices of the mapped files.
///
/// # Errors
/// A text that names the tensor, if a file is missing, too short or outside the model's directory.
pub(crate) fn resolve_external(proto: &mut ModelProto, model: &Path) -> Result<(), String> {
    let directory = model.parent().unwrap_or(Path::new(""));
    let mut files: HashMap<String, ModelFile> = HashMap::new();
    let Some(graph) = &mut proto.graph else {
        return Ok(());
    };
    for_each_initializer(graph, &mut |tensor| {
        let fail = |why: String| format!("external data of tensor `{}`: {why}", tensor.name());
        let Some(external) = ExternalData::of(tensor).map_err(fail)? else {
            return Ok(());
        };
        let location = external.location;
        if !files.contains_key(location) {
            let file = open_beside(directory, location).map_err(fail)?;
            files.insert(location.to_owned(), file);
        }
        let bytes = files[location].bytes();
        let range = external.range(bytes.len()).map_err(fail)?;
        tensor.raw_data = Some(bytes.slice(range));
        tensor.data_location = None;
        tensor.external_data.clear();
        Ok(())
    })
}

fn open_beside(directory: &Path, location: &str) -> Result<ModelFile, String> {
    let path = Path::new(location);
    let inside = path
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if location.is_empty() || !inside {
        return Err(format!(
            "location is `{location}`, expected a file in the model's directory"
        ));
    }
    ModelFile::open(&directory.join(path)).map_err(|e| e.to_string())
}

/// Calls `change` for every initializer and every tensor in an attribute, subgraphs included.
fn for_each_initializer<E>(
    graph: &mut GraphProto,
    change: &mut dyn FnMut(&mut TensorProto) -> Result<(), E>,
) -> Result<(), E> {
    graph.initializer.iter_mut().try_for_each(&mut *change)?;
    for attribute in graph.node.iter_mut().flat_map(|n| &mut n.attribute) {
        attribute.t.iter_mut().try_for_each(&mut *change)?;
        attribute.tensors.iter_mut().try_for_each(&mut *change)?;
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            for_each_initializer(graph, change)?;
        }
    }
    Ok(())
}
