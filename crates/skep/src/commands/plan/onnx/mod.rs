//! ONNX models: their plans before and after rewriting, and what serving them will take.

mod arguments;
mod recorded;
mod report;

use std::path::Path;

use anyhow::{Context, bail};
use bytes::Bytes;
use skep_alloc::Recording;
use skep_backend_onnxruntime::{LibrarySearch, channel_block};
use skep_estimate::{CpuTraits, MemoryEstimate, RewriteLevel, graph_usage};
use skep_onnx::OnnxModel;
use skep_planner::UsageRecords;
use skep_shapes::{InferError, InferredShapes, infer_shapes};

use crate::backends;

pub(super) use arguments::OnnxArgs;
pub(in crate::commands) use arguments::ShapeArgs;
pub(super) use report::EstimateReport;

/// Batch sizes of the estimate where none are asked for and the file leaves them open.
const BATCHES: [usize; 4] = [1, 2, 4, 8];

/// What is to be planned, and what goes beside it.
pub(super) struct OnnxSource {
    /// Each level of rewriting by its name.
    pub(super) records: Vec<(String, UsageRecords)>,
    pub(super) report: EstimateReport,
    pub(super) notices: Vec<String>,
}

/// Plans and estimates of the model in `bytes`; weights in files beside it are counted, not read.
pub(super) fn read(path: &Path, bytes: Bytes, args: &OnnxArgs) -> anyhow::Result<OnnxSource> {
    let named = || format!("`{}`", path.display());
    let search = args.search();
    if let Some(search) = &search {
        backends::start_named(search)?;
    }
    let model = OnnxModel::decode(bytes).with_context(named)?;
    let cpu = cpu_traits();
    let shaped = shapes(&model, &args.shapes).with_context(named)?;
    let Some((batch, first)) = shaped.first() else {
        bail!("{} has no shapes to plan with", named());
    };
    let mut records = Vec::new();
    let mut report = EstimateReport {
        batch: *batch,
        input_bytes: 0,
        output_bytes: 0,
        instances: args.instances(),
        left_out: Vec::new(),
        rows: Vec::new(),
    };
    let otherwise = first.declared_otherwise.iter();
    let mut notices: Vec<String> = otherwise.map(|why| format!("{}: {why}", named())).collect();
    for level in RewriteLevel::ALL {
        let usage = graph_usage(&model, first, level, cpu).with_context(named)?;
        report.input_bytes = usage.input_bytes;
        report.output_bytes = usage.output_bytes;
        if let ([node, others @ ..], RewriteLevel::AsWritten) = (&usage.left_out[..], level) {
            let more = match others.len() {
                0 => String::new(),
                count => format!(" and {count} other nodes"),
            };
            notices.push(format!(
                "{}: tensors within {node}{more} are not counted, only the nodes' inputs and outputs",
                named()
            ));
        }
        report.left_out = usage.left_out;
        records.push((level.name().to_owned(), usage.records));
    }
    for (batch, inferred) in &shaped {
        let estimate = MemoryEstimate::new(&model, inferred, cpu).with_context(named)?;
        report.rows.push((*batch, estimate));
    }
    let first_estimate = report.rows.first().map(|(_, estimate)| estimate);
    let needed = first_estimate.map_or(0, |estimate| estimate.with_instances(1).total());
    if let Some(search) = &search {
        match recorded::records(path, &model, first, needed, search) {
            Ok(run) => records.push((recorded::NAME.to_owned(), run)),
            Err(why) => notices.push(format!("{}: no recorded plan: {why}", named())),
        }
    }
    Ok(OnnxSource {
        records,
        report,
        notices,
    })
}

/// What one run of the model allocates, with the first of the batch sizes.
///
/// # Errors
/// The model cannot be read or run, and why.
pub(in crate::commands) fn recorded_run(
    path: &Path,
    bytes: Bytes,
    args: &ShapeArgs,
    search: &LibrarySearch,
) -> anyhow::Result<Recording> {
    let named = || format!("`{}`", path.display());
    backends::start_named(search)?;
    let model = OnnxModel::decode(bytes).with_context(named)?;
    let shaped = shapes(&model, args).with_context(named)?;
    let Some((_, inferred)) = shaped.first() else {
        bail!("{} has no shapes to run with", named());
    };
    let estimate = MemoryEstimate::new(&model, inferred, cpu_traits()).with_context(named)?;
    let needed = estimate.with_instances(1).total();
    recorded::run(path, &model, inferred, needed, search)
        .map_err(|why| anyhow::anyhow!("{}: {why}", named()))
}

/// What estimates need to know of this machine.
fn cpu_traits() -> CpuTraits {
    CpuTraits {
        channel_block: channel_block(),
        cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    }
}

/// The shapes of all tensors, for each batch size; `None` where the file or the arguments leave none open.
fn shapes(
    model: &OnnxModel,
    args: &ShapeArgs,
) -> Result<Vec<(Option<usize>, InferredShapes)>, InferError> {
    let infer = |batch: Option<usize>| infer_shapes(model, &args.given(model, batch));
    let each = |batches: &[usize]| {
        let batches = batches.iter();
        batches
            .map(|&batch| Ok((Some(batch), infer(Some(batch))?)))
            .collect()
    };
    match &args.batches()[..] {
        [] if args.has_open_batch() => return each(&BATCHES),
        [] => {}
        asked => return each(asked),
    }
    match infer(None) {
        Ok(inferred) => Ok(vec![(None, inferred)]),
        // What is open besides the batch size is said in the first error.
        Err(InferError::OpenInput { .. }) => each(&BATCHES),
        Err(error) => Err(error),
    }
}
