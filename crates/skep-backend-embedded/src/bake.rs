//! The baked form of a model, and loading from it.
//!
//! ```text
//! model's files --> normalised message --- without its large tensors --> graph   \
//!                                      \-- each large tensor, unchanged --> weight > form, in the cache
//!
//! form --- graph -------------------------------------> engine
//!      --- weights --> tensor store (memory) -- in place -->
//! ```
//!
//! The engine optimises the graph at every load. The weights that it derives then (normalisations folded into
//! convolutions, transposed constants) are its private memory, and depend only on the form. So one form serves every
//! optimisation level, and a model loaded from it computes the same outputs as one loaded from its own file.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;
use skep_cache::{Form, FormTensor, Making, Role};
use skep_onnx::OnnxModel;
use skep_store::{Description, Digest};
use skep_weights::{
    WeightSource,
    baking::{self, BakeCost, Bakes, FormFailure, FormGraph, NoForm},
    check_graph,
};

use crate::{
    normalize,
    weights::{self, EngineModel},
};

/// The version of forms; it changes whenever their content or meaning changes, also with [`normalize`].
const FORM: &[u8] = b"embedded 1";

/// A decoded model file, which can be loaded or baked. It is audited before either.
pub(crate) struct EmbeddedModelFile<'a> {
    pub(crate) path: &'a Path,
    /// All files of the model.
    pub(crate) files: Vec<PathBuf>,
    /// The decoded model. External tensors are resolved before it is loaded or baked.
    pub(crate) onnx: OnnxModel,
    /// Inputs whose defaults were removed, sorted.
    pub(crate) forgotten: Vec<String>,
}

impl EmbeddedModelFile<'_> {
    /// The model's message, normalised for the engine, with all its tensors.
    fn normalised(&self) -> skep_proto::onnx::ModelProto {
        // Tensors are slices of the mapped files: they are not copied.
        let mut proto = self.onnx.proto().clone();
        normalize::write_defaults(&mut proto);
        proto
    }

    /// Loads the model from its own files.
    pub(crate) fn load(&self, optimize: bool) -> Result<EngineModel, rten::LoadError> {
        let mut proto = self.normalised();
        let cuts = weights::cut_out(&mut proto, weights::MIN_BYTES);
        let slices = cuts.into_iter().map(|cut| (cut.alias, cut.bytes));
        EngineModel::load(proto.encode_to_vec(), slices, optimize)
    }

    /// Loads the model from its baked form; `None` if it has to be loaded from its own files.
    /// Returns it with the tensors of the store that it uses.
    pub(crate) fn load_baked(
        &self,
        weights: &WeightSource,
        optimize: bool,
    ) -> Option<(EngineModel, Vec<(Digest, u64)>)> {
        baking::load(self, weights, |form| {
            let loaded = open(form, weights, optimize)?;
            Ok((loaded, form.used_tensors()))
        })
    }
}

impl Bakes for EmbeddedModelFile<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        self.files.clone()
    }

    fn depends_on(&self) -> Vec<Vec<u8>> {
        let forgotten = self.forgotten.iter().map(|name| name.clone().into_bytes());
        std::iter::once(FORM.to_vec()).chain(forgotten).collect()
    }

    fn cost(&self) -> BakeCost {
        let sizes = self.files.iter().filter_map(|file| fs::metadata(file).ok());
        let bytes: u64 = sizes.map(|metadata| metadata.len()).sum();
        BakeCost {
            // Weights are used in the files if they are aligned there, but the engine copies some of them.
            memory_bytes: baking::BASE_BYTES + bytes,
            disk_bytes: bytes,
        }
    }

    fn make(&self, making: &mut Making) -> Result<FormGraph, NoForm> {
        let mut proto = self.normalised();
        let cuts = weights::cut_out(&mut proto, baking::MIN_WEIGHT_BYTES);
        let graph = proto.encode_to_vec();
        // A form that the engine cannot load is not worth keeping. Optimisation makes no difference to that.
        let slices = cuts
            .iter()
            .map(|cut| (cut.alias.clone(), cut.bytes.clone()));
        EngineModel::load(graph.clone(), slices, false)
            .map_err(|error| NoForm::Never(error.to_string()))?;
        for cut in cuts {
            let dims = cut.dims.iter().map(|&dim| u64::try_from(dim));
            let dims = dims.collect::<Result<_, _>>().map_err(|_| {
                let dims = &cut.dims;
                NoForm::Never(format!(
                    "a tensor declares the negative dimensions {dims:?}"
                ))
            })?;
            let description = Description {
                datatype: cut.datatype,
                dims,
                layout: baking::PLAIN.into(),
            };
            making.add(Role::Weight, &cut.alias, description, &cut.bytes)?;
        }
        Ok(FormGraph {
            graph,
            notes: BTreeMap::new(),
        })
    }
}

/// Loads a model from its form.
fn open(form: &Form, weights: &WeightSource, optimize: bool) -> Result<EngineModel, FormFailure> {
    // The engine requests each tensor by the file that the graph names for its data.
    let own = |_: &str, location: &str| Some(location.to_owned());
    check_graph(form, own).map_err(|why| FormFailure::damaged(form, &why))?;
    let parts: Vec<&FormTensor> = form.parts().iter().collect();
    let lease = baking::acquire(form, weights, &parts)?;
    // Each slice keeps the lease.
    let slices = parts.iter().enumerate();
    let slices = slices.map(|(index, part)| (part.name.clone(), lease.bytes(index)));
    EngineModel::load(form.graph().to_vec(), slices, optimize)
        .map_err(|error| FormFailure::Unusable(error.to_string()))
}
