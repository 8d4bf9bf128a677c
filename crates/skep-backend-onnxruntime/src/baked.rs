//! Loads a model from its baked form: the session uses the store's weights in place, and the store's packed weights are
//! mapped over those that the library packs.
//!
//! ```text
//! form (cache) --- graph ------------------------------> session, which rewrites nothing
//!              --- weights --> store (memory) -- in place -->    its initializers
//!              --- packed ---> store (memory) -- mapped over --> the weights that it packed onto scratch pages
//!              --- sources --> read once for packing, then released
//! ```
//!
//! Tensors that the store does not have yet may be used from the cache's files at first: see [`skep_weights::moves`].
//!
//! The library packs weights at every load and hashes the result to find equal ones; no option avoids this. So it
//! packs onto scratch pages that stay in the processor's cache (see [`skep_alloc::load`]), and those are replaced
//! before the first run. Without packed weights BERT-base would load faster still, but run 1.26 times slower, and its
//! outputs would not be the same to the bit.

use std::{
    io,
    path::Path,
    sync::{Arc, Weak},
};

use ort_sys::GraphOptimizationLevel;
use skep_alloc::{LoadMode, LoadedBlock, LoadedBlocks, load};
use skep_cache::{Form, FormTensor, Mapped, Role};
use skep_config::MemoryPlanner;
use skep_store::{FileRange, Lease, Wanted};
use skep_weights::{
    WeightSource,
    baking::FormFailure,
    check_graph,
    moves::{CachedTensor, MoveTarget, WeightMove, WeightsInUse},
    tensors::{FormTensors, unmapped},
};

use crate::{
    bake,
    ffi::{self, ApiError, NamedWeight, OrtRuntime, Session, SessionOptions, WeightTensors},
    options,
};

/// The name of a form's note that lists the large blocks that the library allocates while it loads the graph, in order.
pub(crate) const BLOCKS: &str = "blocks";

impl From<ApiError> for FormFailure {
    fn from(error: ApiError) -> Self {
        Self::Unusable(error.message)
    }
}

/// Makes a session of a form of the model at `path`. Returns the weights that are still in the cache's files, to be
/// moved to the store.
pub(crate) fn session(
    runtime: &'static OrtRuntime,
    path: &Path,
    form: &Form,
    source: &WeightSource,
    setting: &options::SessionSettings<'_>,
) -> Result<(Session, Option<WeightMove>), FormFailure> {
    let own = |name: &str, location: &str| (location == bake::GRAPH).then(|| name.to_owned());
    check_graph(form, own).map_err(|why| FormFailure::damaged(form, &why))?;
    let blocks = form.note(BLOCKS).and_then(read_blocks);
    let blocks = blocks
        .ok_or_else(|| FormFailure::damaged(form, "its sequence of blocks cannot be read"))?;
    // With its own arena the library does not allocate from Skep, so its packed weights cannot be replaced.
    let replaced = setting.execution.memory_planner != MemoryPlanner::Runtime;
    let of_store = |part: &&FormTensor| match part.role {
        Role::Weight => true,
        Role::Packed => replaced,
        Role::Source => false,
    };
    let parts: Vec<&FormTensor> = form.parts().iter().filter(of_store).collect();
    let tensors = FormTensors::get(form, source, &parts)?;
    let (weights, sources) = weights(runtime, form, &parts, &tensors)?;
    let weights = Arc::new(weights);
    let mut session_options = session_options(runtime, setting)?;
    session_options.weights(Arc::clone(&weights))?;
    let graph = form.graph_path();
    let make = || Session::from_file(runtime, &graph, &session_options);
    let mut blocks_of_parts = vec![None; parts.len()];
    let (session, loaded) = if replaced && !blocks.is_empty() {
        let packed = (0..parts.len()).filter(|&index| parts[index].role == Role::Packed);
        let packed: Vec<usize> = packed.collect();
        let places = packed.iter().filter_map(|index| tensors.place(*index));
        let places: Vec<FileRange<'_>> = places.collect();
        let kept = blocks.iter().enumerate().filter(|(_, block)| block.kept);
        for (part, (block, _)) in packed.iter().zip(kept) {
            blocks_of_parts[*part] = Some(block);
        }
        let packed = || packed_session(&blocks, &places, make, || check_sources(form));
        options::behind_runs(setting, packed)?
    } else {
        check_sources(form)?;
        (options::behind_runs(setting, make)?, None)
    };
    for source in sources {
        source.give_back();
    }
    let (mut cached, mut blocks) = (Vec::new(), Vec::new());
    for (index, mapped) in tensors.into_cached() {
        cached.push(CachedTensor {
            tensor: parts[index].tensor.clone(),
            mapped,
        });
        blocks.push(blocks_of_parts[index]);
    }
    let left = (!cached.is_empty()).then(|| WeightMove {
        path: path.to_owned(),
        form: form.clone(),
        source: source.clone(),
        cached,
        target: Box::new(SessionWeights {
            weights: Arc::downgrade(&weights),
            loaded,
            blocks,
        }),
    });
    Ok((session, left))
}

/// The weights of a session that move to the store.
struct SessionWeights {
    weights: Weak<WeightTensors>,
    /// The blocks of the library's load, if `blocks` refers to them.
    loaded: Option<LoadedBlocks>,
    /// The block of the load that each packed weight is mapped over.
    blocks: Vec<Option<usize>>,
}

impl MoveTarget for SessionWeights {
    fn upgrade(&self) -> Option<Arc<dyn WeightsInUse>> {
        let weights = self.weights.upgrade()?;
        Some(weights)
    }

    fn exchange(&self, cached: &[CachedTensor], lease: &Lease) -> io::Result<()> {
        for (index, (cached, block)) in cached.iter().zip(&self.blocks).enumerate() {
            match (*block, &self.loaded) {
                (Some(block), Some(loaded)) => {
                    ffi::exchange_packed(loaded, block, lease, index)?;
                }
                _ => ffi::exchange(&cached.mapped, lease, index)?,
            }
        }
        Ok(())
    }
}

impl WeightsInUse for WeightTensors {
    fn keep(&self, lease: Lease) {
        Self::keep(self, lease);
    }

    fn condemn(&self) {
        Self::condemn(self);
    }
}

/// Verifies the tensors that are read only for packing. Not needed if the packed weights are replaced.
fn check_sources(form: &Form) -> Result<(), FormFailure> {
    let sources = form.parts().iter().filter(|part| part.role == Role::Source);
    for part in sources {
        form.map(&part.tensor)
            .map_err(|error| unmapped(form, &error))?;
    }
    Ok(())
}

/// The options of a session over a rewritten graph.
pub(crate) fn session_options(
    runtime: &'static OrtRuntime,
    setting: &options::SessionSettings<'_>,
) -> Result<SessionOptions, ApiError> {
    let mut options = options::session_options(runtime, setting)?;
    options.optimization(GraphOptimizationLevel::ORT_DISABLE_ALL)?;
    Ok(options)
}

/// The weights of the graph: those that runs use, from `tensors`, and those that are read only for packing, from the
/// cache's files.
fn weights(
    runtime: &'static OrtRuntime,
    form: &Form,
    parts: &[&FormTensor],
    tensors: &FormTensors,
) -> Result<(WeightTensors, Vec<Mapped>), FormFailure> {
    let mut sources = Vec::new();
    let mut weights = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        if part.role == Role::Weight {
            weights.push((*part, tensors.bytes(index)));
        }
    }
    for part in form.parts().iter().filter(|part| part.role == Role::Source) {
        let mapped = form
            .map_unseen(&part.tensor)
            .map_err(|error| unmapped(form, &error))?;
        weights.push((part, mapped.bytes()));
        sources.push(mapped);
    }
    let dims: Vec<Vec<usize>> = weights.iter().map(|(part, _)| dims(&part.tensor)).collect();
    let weights = weights
        .into_iter()
        .zip(&dims)
        .map(|((part, bytes), dims)| NamedWeight {
            name: &part.name,
            datatype: part.tensor.description.datatype,
            dims,
            bytes,
        });
    let weights = WeightTensors::new(runtime, weights, tensors.lease().cloned())?;
    Ok((weights, sources))
}

fn dims(tensor: &Wanted) -> Vec<usize> {
    let extents = tensor.description.dims.iter();
    extents
        .map(|&extent| usize::try_from(extent).unwrap_or(usize::MAX))
        .collect()
}

/// Makes a session whose packed weights are those at `places`, in the order of the kept blocks, and returns it with
/// the blocks of its load. If the library does not pack as it did when the form was made, calls `check` to verify the
/// tensors to pack, and the session uses the weights that the library packs.
pub(crate) fn packed_session(
    blocks: &[LoadedBlock],
    places: &[FileRange<'_>],
    make: impl Fn() -> Result<Session, ApiError>,
    check: impl FnOnce() -> Result<(), FormFailure>,
) -> Result<(Session, Option<LoadedBlocks>), FormFailure> {
    let kept = || blocks.iter().enumerate().filter(|(_, block)| block.kept);
    let sizes = kept().map(|(_, block)| block.size);
    if !sizes.eq(places.iter().map(|place| place.length)) {
        let why = "its packed weights do not match its sequence of blocks";
        return Err(FormFailure::Unusable(why.to_owned()));
    }
    // Scratch pages are never used in a run. On them the library may take weights for equal that differ only where
    // the next weight overwrites them; then it packs once more, on separate pages.
    for how in [LoadMode::Replay(blocks), LoadMode::Record] {
        let (made, loaded) = load(how, &make).map_err(mapping_failure)?;
        let mut session = made?;
        if loaded.went_as_expected() && loaded.sequence() == blocks {
            for ((index, _), place) in kept().zip(places) {
                ffi::replace(&mut session, &loaded, index, place.descriptor, place.offset)
                    .map_err(mapping_failure)?;
            }
            return Ok((session, Some(loaded)));
        }
    }
    tracing::warn!(
        "the library packs weights differently than when they were baked: packed weights are not shared"
    );
    check()?;
    Ok((make()?, None))
}

fn mapping_failure(error: io::Error) -> FormFailure {
    FormFailure::Unusable(format!("mapping weights: {error}"))
}

/// A sequence of blocks as a note: sizes in bytes, with a `-` after those that are not kept.
pub(crate) fn write_blocks(blocks: &[LoadedBlock]) -> String {
    let blocks: Vec<String> = blocks
        .iter()
        .map(|block| format!("{}{}", block.size, if block.kept { "" } else { "-" }))
        .collect();
    blocks.join(",")
}

fn read_blocks(note: &str) -> Option<Vec<LoadedBlock>> {
    if note.is_empty() {
        return Some(Vec::new());
    }
    note.split(',').map(read_block).collect()
}

fn read_block(text: &str) -> Option<LoadedBlock> {
    let (size, kept) = match text.strip_suffix('-') {
        Some(size) => (size, false),
        None => (text, true),
    };
    let size = size.parse().ok()?;
    Some(LoadedBlock { size, kept })
}
