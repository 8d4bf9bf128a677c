//! The baked form of a model, and loading by it.
//!
//! ```text
//! model's files --> normalised message --- without its large tensors --> graph   \
//!                                      \-- each large tensor, as it is --> weight  > form, in the cache
//!
//! form --- graph -------------------------------------> engine
//!      --- weights --> tensor store (memory) -- in place -->
//! ```
//!
//! The engine optimises the graph at every load: what it computes of weights then (normalisations folded into
//! convolutions, constants that are transposed) is its own private memory, and depends on nothing but the form. So a form
//! serves every level of optimisation, and a model that is loaded by it answers as one that is loaded as it is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use prost::Message as _;
use skep_cache::{Form, FormTensor, Making, Role};
use skep_onnx::OnnxModel;
use skep_store::Description;
use skep_weights::{
    WeightSource,
    baking::{self, BakeCost, Bakes, FormFailure, FormRest, NoForm},
    check_graph,
};

use crate::{
    normalize,
    weights::{self, LoadedModel},
};

/// Changes when what a form holds or means does, so also with what is [normalised](normalize).
const FORM: &[u8] = b"embedded 1";

/// A model that was decoded and, to be baked, audited.
pub(crate) struct Subject<'a> {
    pub(crate) path: &'a Path,
    /// What it consists of.
    pub(crate) files: Vec<PathBuf>,
    /// Its external tensors are resolved where it is baked.
    pub(crate) onnx: OnnxModel,
    /// Inputs whose defaults were forgotten, in order.
    pub(crate) forgotten: Vec<String>,
}

impl Subject<'_> {
    /// The message as the engine takes it, with all its tensors.
    fn normalised(&self) -> skep_proto::onnx::ModelProto {
        // Tensors are slices of the mapped files: they are not copied.
        let mut proto = self.onnx.proto().clone();
        normalize::write_defaults(&mut proto);
        proto
    }

    /// Loads the model as it is.
    pub(crate) fn load(&self, optimize: bool) -> Result<LoadedModel, rten::LoadError> {
        let mut proto = self.normalised();
        let cuts = weights::cut_out(&mut proto, weights::MIN_BYTES);
        let slices = cuts.into_iter().map(|cut| (cut.alias, cut.bytes));
        LoadedModel::load(proto.encode_to_vec(), slices, optimize)
    }

    /// Loads the model by its baked form, which is made if it is not there. `None` where it is to be loaded as it is.
    pub(crate) fn load_baked(&self, weights: &WeightSource, optimize: bool) -> Option<LoadedModel> {
        baking::load(self, weights, |form| open(form, weights, optimize))
    }
}

impl Bakes for Subject<'_> {
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
            // Weights are used where they lie in the files unless they are not aligned there, and the engine copies some
            // of what it is given.
            memory_bytes: baking::BASE_BYTES + bytes,
            disk_bytes: bytes,
        }
    }

    fn make(&self, making: &mut Making) -> Result<FormRest, NoForm> {
        let mut proto = self.normalised();
        let cuts = weights::cut_out(&mut proto, baking::MIN_WEIGHT_BYTES);
        let graph = proto.encode_to_vec();
        // What the engine does not take is not worth keeping; whether it optimises makes no difference to that.
        let slices = cuts
            .iter()
            .map(|cut| (cut.alias.clone(), cut.bytes.clone()));
        LoadedModel::load(graph.clone(), slices, false)
            .map_err(|error| NoForm::Never(error.to_string()))?;
        for cut in cuts {
            let dims = cut.dims.iter().map(|&dim| u64::try_from(dim));
            let dims = dims.collect::<Result<_, _>>().map_err(|_| {
                let dims = &cut.dims;
                NoForm::Never(format!("a tensor declares the dimensions {dims:?}"))
            })?;
            let description = Description {
                datatype: cut.datatype,
                dims,
                layout: baking::PLAIN.into(),
            };
            making.add(Role::Weight, &cut.alias, description, &cut.bytes)?;
        }
        Ok(FormRest {
            graph,
            notes: BTreeMap::new(),
        })
    }
}

/// Loads a model by its form.
fn open(form: &Form, weights: &WeightSource, optimize: bool) -> Result<LoadedModel, FormFailure> {
    // The engine asks for each by the file that its data is said to be in.
    let own = |_: &str, location: &str| Some(location.to_owned());
    check_graph(form, own).map_err(|why| FormFailure::damaged(form, &why))?;
    let parts: Vec<&FormTensor> = form.parts().iter().collect();
    let lease = baking::acquire(form, weights, &parts)?;
    // Each slice keeps the lease.
    let slices = parts.iter().enumerate();
    let slices = slices.map(|(index, part)| (part.name.clone(), lease.bytes(index)));
    LoadedModel::load(form.graph().to_vec(), slices, optimize)
        .map_err(|error| FormFailure::Unusable(error.to_string()))
}
