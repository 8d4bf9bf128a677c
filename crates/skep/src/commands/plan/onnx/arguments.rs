//! What the command line fixes of a model's shapes.

use std::{num::NonZeroU32, path::PathBuf};

use clap::Args;
use skep_backend_onnxruntime::LibrarySearch;
use skep_onnx::OnnxModel;
use skep_shapes::GivenShapes;

use crate::backends;

/// Instances of the estimate where none are asked for.
const INSTANCES: [u32; 3] = [1, 2, 4];

/// A tensor's name and dimensions; `None` for one that is the batch size.
type Stated = (String, Vec<Option<usize>>);

/// Sizes that a model's file leaves open.
#[derive(Debug, Args)]
#[command(next_help_heading = "ONNX models")]
pub(in crate::commands) struct ShapeArgs {
    /// Batch sizes, such as `1,4`: plans and recordings are for the first, estimates for each [default: 1, 2, 4 and 8]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    batch: Vec<NonZeroU32>,
    /// The shape of an input, such as `ids:-1,128`; -1 is the batch size
    #[arg(long, value_name = "NAME:SHAPE", value_parser = shape)]
    input: Vec<Stated>,
    /// The size of a dimension that has a name in the file, such as `sequence=128`
    #[arg(long, value_name = "NAME=SIZE", value_parser = dimension)]
    dim: Vec<(String, usize)>,
    /// The shape of a tensor, for a tensor whose shape is otherwise known only after a run
    #[arg(long, value_name = "NAME:SHAPE", value_parser = shape)]
    tensor: Vec<Stated>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "ONNX models")]
pub(in crate::commands) struct OnnxArgs {
    #[command(flatten)]
    pub(super) shapes: ShapeArgs,
    /// Do not run the model; omits the plan that is recorded in a run with ONNX Runtime
    #[arg(long)]
    no_run: bool,
    /// ONNX Runtime's library, for that run
    #[arg(long, value_name = "FILE", conflicts_with = "no_run")]
    onnxruntime_library: Option<PathBuf>,
    /// Numbers of instances to estimate the memory for [default: 1, 2 and 4]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    instances: Vec<NonZeroU32>,
}

impl ShapeArgs {
    /// The batch sizes that were asked for.
    pub(in crate::commands) fn batches(&self) -> Vec<usize> {
        let sizes = self.batch.iter();
        sizes
            .map(|batch| usize::try_from(batch.get()).unwrap_or(usize::MAX))
            .collect()
    }

    /// Whether a stated shape has the batch size in it.
    pub(super) fn has_open_batch(&self) -> bool {
        let mut stated = self.input.iter().chain(&self.tensor);
        stated.any(|(_, dims)| dims.contains(&None))
    }

    /// What is fixed before inference, at this batch size.
    pub(super) fn given(&self, model: &OnnxModel, batch: Option<usize>) -> GivenShapes {
        let shapes = |stated: &[Stated]| {
            let stated = stated.iter().map(|(name, dims)| {
                let dims = dims.iter().map(|dim| dim.or(batch).unwrap_or(1));
                (name.clone(), dims.collect())
            });
            stated.collect()
        };
        // A -1 in a stated shape is the batch size: no other input need have a place for it.
        let is_stated = |name: &str| self.input.iter().any(|(stated, _)| stated == name);
        let is_placed = model.signature().is_ok_and(|signature| {
            let mut others = signature
                .inputs
                .iter()
                .filter(|input| !is_stated(&input.name));
            !others.any(|input| {
                let dims = input.dims.as_ref();
                dims.is_none_or(|dims| dims.as_slice().first() == Some(&-1))
            })
        });
        GivenShapes {
            batch: batch.filter(|_| !(is_placed && self.has_open_batch())),
            dims: self.dim.iter().cloned().collect(),
            inputs: shapes(&self.input),
            tensors: shapes(&self.tensor),
        }
    }
}

impl OnnxArgs {
    /// Where the library for a run is looked for; `None` if the model is not to be run.
    pub(super) fn search(&self) -> Option<LibrarySearch> {
        let library = self.onnxruntime_library.clone();
        (!self.no_run).then(|| backends::search(library))
    }

    pub(super) fn instances(&self) -> Vec<u32> {
        match &self.instances[..] {
            [] => INSTANCES.to_vec(),
            asked => asked.iter().map(|count| count.get()).collect(),
        }
    }

    /// The first flag that was given.
    pub(crate) fn given_flag(&self) -> Option<&'static str> {
        let flags = [
            ("--batch", self.shapes.batch.is_empty()),
            ("--input", self.shapes.input.is_empty()),
            ("--dim", self.shapes.dim.is_empty()),
            ("--tensor", self.shapes.tensor.is_empty()),
            ("--instances", self.instances.is_empty()),
            ("--no-run", !self.no_run),
            ("--onnxruntime-library", self.onnxruntime_library.is_none()),
        ];
        flags
            .into_iter()
            .find_map(|(flag, is_absent)| (!is_absent).then_some(flag))
    }
}

/// `name:1,3,224,224`; names may have colons.
fn shape(text: &str) -> Result<Stated, String> {
    let expected = || "expected a name and sizes, as in `ids:1,128`".to_owned();
    let (name, dims) = text.rsplit_once(':').ok_or_else(expected)?;
    let dims = dims.split(',').map(|dim| match dim.trim() {
        "-1" => Ok(None),
        dim => dim.parse().map(Some).map_err(|_| expected()),
    });
    let dims = if text.ends_with(':') {
        Ok(Vec::new())
    } else {
        dims.collect()
    };
    if name.is_empty() {
        return Err(expected());
    }
    Ok((name.to_owned(), dims?))
}

/// `sequence=128`.
fn dimension(text: &str) -> Result<(String, usize), String> {
    let parsed = text.rsplit_once('=').and_then(|(name, size)| {
        let size = size.trim().parse().ok()?;
        (!name.is_empty() && size > 0).then(|| (name.to_owned(), size))
    });
    parsed.ok_or_else(|| "expected a name and a size, as in `sequence=128`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_and_dimensions_are_read() {
        assert_eq!(
            shape("a:b:-1,3, 4"),
            Ok(("a:b".to_owned(), vec![None, Some(3), Some(4)]))
        );
        assert_eq!(shape("scalar:"), Ok(("scalar".to_owned(), vec![])));
        for wrong in ["ids", ":1,2", "ids:1,x", "ids:1,-2", "ids:1,,2"] {
            assert!(shape(wrong).is_err(), "{wrong}");
        }
        assert_eq!(dimension("a=b=12"), Ok(("a=b".to_owned(), 12)));
        for wrong in ["sequence", "=3", "sequence=0", "sequence=-1", "sequence=x"] {
            assert!(dimension(wrong).is_err(), "{wrong}");
        }
    }
}
