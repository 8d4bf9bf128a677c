//! What a run with ONNX Runtime really allocates, after rewrites that it does not report.

use std::path::Path;

use skep_alloc::Recording;
use skep_backend::ModelFile;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_layout::recorded_buffer;
use skep_onnx::OnnxModel;
use skep_planner::{Buffer, UsageRecords};
use skep_shapes::InferredShapes;
use skep_types::Shape;

use crate::units::human;

/// What the plan is called.
pub(super) const NAME: &str = "recorded";

/// The usage records of one run of `model`, the file at `path`, with inputs of zeros; or why there are none. `needed`
/// bytes are what the model and the run are estimated to take.
pub(super) fn records(
    path: &Path,
    model: &OnnxModel,
    inferred: &InferredShapes,
    needed: u64,
    search: &LibrarySearch,
) -> Result<UsageRecords, String> {
    let recording = run(path, model, inferred, needed, search)?;
    UsageRecords::new(buffers(&recording)).map_err(|error| error.to_string())
}

/// The same run as it was recorded.
pub(super) fn run(
    path: &Path,
    model: &OnnxModel,
    inferred: &InferredShapes,
    needed: u64,
    search: &LibrarySearch,
) -> Result<Recording, String> {
    let available = skep_host::memory().available;
    if needed > available {
        return Err(format!(
            "a run would take {}, and {} are available",
            human(needed),
            human(available)
        ));
    }
    let signature = model.signature().map_err(|error| error.to_string())?;
    let shape = |name: &str| {
        inferred
            .tensors
            .get(name)
            .map(|tensor| tensor.shape.clone())
    };
    let shapes: Option<Vec<Shape>> = signature
        .inputs
        .iter()
        .map(|spec| shape(&spec.name))
        .collect();
    let shapes = shapes.ok_or("an input has no shape")?;
    let (runtime, _) = OnnxRuntime::start(search)
        .map_err(|_| "ONNX Runtime was not found; `skep doctor` shows where Skep looked")?;
    let file = ModelFile::open(path).map_err(|error| error.to_string())?;
    runtime
        .record(&file, &shapes)
        .map_err(|error| error.to_string())
}

/// What the server's arena is planned by, block by block.
fn buffers(recording: &Recording) -> Vec<(String, Buffer)> {
    let usages = recording.blocks().into_iter().enumerate();
    usages
        .filter_map(|(number, usage)| {
            Some((format!("allocation {number}"), recorded_buffer(&usage)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use skep_alloc::BlockEvent;

    use super::*;

    #[test]
    fn what_a_run_frees_is_a_buffer() {
        let events = vec![
            BlockEvent::Malloc(100),
            BlockEvent::Malloc(50),
            BlockEvent::Free(0),
            BlockEvent::Malloc(7),
            BlockEvent::Free(2),
        ];
        let recording = Recording::new(events).expect("a recording");
        let expected = [("allocation 0", 100, 0, 2), ("allocation 2", 7, 3, 4)];
        let expected = expected.map(|(name, size, start, end)| {
            (name.to_owned(), Buffer::new(size, start, end).aligned(64))
        });
        assert_eq!(buffers(&recording), expected);
    }
}
