//! Weights where they lie.
//!
//! The engine copies weights that are inside of the model's file, and takes those from files beside it in place. So all
//! weights become such: each large initializer is cut out of the message and handed over as a slice, of the mapped file
//! where the slice is aligned for its elements, of an aligned copy where it is not.
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
use prost::Message;
use rten::{LoadError, ModelOptions};
use skep_backend::ModelFile;
use skep_proto::onnx::{
    GraphProto, ModelProto, StringStringEntryProto, TensorProto, tensor_proto::DataLocation,
};
use skep_tensor::AlignedBuffer;

/// Tensors below this many bytes stay in the message: there is nothing to gain, and shape arithmetic reads them there.
const MIN_BYTES: usize = 1024;

/// An engine's model together with the memory that its weights lie in.
pub(crate) struct LoadedModel {
    // Declared before the memory: fields are dropped in this order.
    model: rten::Model,
    _weights: Vec<Bytes>,
}

impl LoadedModel {
    /// Loads a model whose external tensors were [resolved](resolve_external).
    ///
    /// `optimize` lets the engine rewrite the graph. Where that folds a normalisation into a convolution, the folded
    /// weights are new, private memory, and those in the file are not used any more.
    pub(crate) fn load(mut proto: ModelProto, optimize: bool) -> Result<Self, LoadError> {
        let mut weights = Vec::new();
        if let Some(graph) = &mut proto.graph {
            for_each_initializer(graph, &mut |tensor| {
                if let Some(data) = cut_out(tensor, weights.len()) {
                    weights.push(data);
                }
                Ok::<(), std::convert::Infallible>(())
            })
            .unwrap_or_else(|never| match never {});
        }
        let mut options = ModelOptions::with_all_ops();
        options.enable_optimization(optimize);
        for (index, data) in weights.iter().enumerate() {
            // SAFETY: the memory behind a `Bytes` neither moves nor changes while a clone of it lives. The engine's
            // model, the only holder of this slice after `options`, is dropped before `_weights` (see the fields), and
            // what a run returns is memory of its own.
            let data: &'static [u8] = unsafe { slice::from_raw_parts(data.as_ptr(), data.len()) };
            options.external_data_static(&alias(index), data);
        }
        let model = options.load(proto.encode_to_vec())?;
        Ok(Self {
            model,
            _weights: weights,
        })
    }

    /// The engine's model.
    pub(crate) const fn engine(&self) -> &rten::Model {
        &self.model
    }
}

/// The name under which the engine asks for a slice; it insists on this ending.
fn alias(index: usize) -> String {
    format!("{index}.data")
}

/// Takes a large tensor's data out of the message and leaves a reference to it.
fn cut_out(tensor: &mut TensorProto, index: usize) -> Option<Bytes> {
    let alignment = crate::convert::in_place_size(tensor.data_type())?;
    let data = tensor.raw_data.take_if(|data| data.len() >= MIN_BYTES)?;
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.set_data_location(DataLocation::External);
    tensor.external_data = vec![
        entry("location", alias(index)),
        entry("offset", "0".to_owned()),
        entry("length", data.len().to_string()),
    ];
    if data.as_ptr().addr() % alignment == 0 {
        return Some(data);
    }
    let mut aligned = AlignedBuffer::zeroed(data.len());
    aligned.copy_from_slice(&data);
    Some(aligned.freeze())
}

/// Puts slices of mapped files in the place of references to files beside the model.
///
/// # Errors
/// A text naming the tensor, when a file is missing, too short or outside of the model's directory.
pub(crate) fn resolve_external(proto: &mut ModelProto, model: &Path) -> Result<(), String> {
    let directory = model.parent().unwrap_or(Path::new(""));
    let mut files: HashMap<String, ModelFile> = HashMap::new();
    let Some(graph) = &mut proto.graph else {
        return Ok(());
    };
    for_each_initializer(graph, &mut |tensor| {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let fail = |why: String| format!("external data of tensor `{}`: {why}", tensor.name());
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key() == key);
        let location = entry("location")
            .map(|e| e.value().to_owned())
            .unwrap_or_default();
        if !files.contains_key(&location) {
            let file = open_beside(directory, &location).map_err(fail)?;
            files.insert(location.clone(), file);
        }
        let number = |key: &str| match entry(key) {
            Some(e) => e
                .value()
                .parse::<usize>()
                .map(Some)
                .map_err(|_| fail(format!("`{key}` is `{}`, expected a number", e.value()))),
            None => Ok(None),
        };
        let bytes = files[&location].bytes();
        let offset = number("offset")?.unwrap_or(0);
        let length = match number("length")? {
            Some(length) => length,
            None => bytes.len().saturating_sub(offset),
        };
        let end = offset.checked_add(length).filter(|&end| end <= bytes.len());
        let end = end.ok_or_else(|| {
            fail(format!(
                "{length} bytes at offset {offset} of `{location}`, which has {} bytes",
                bytes.len()
            ))
        })?;
        tensor.raw_data = Some(bytes.slice(offset..end));
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
