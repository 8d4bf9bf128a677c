//! `skep doctor`: what this machine offers.

use std::{path::PathBuf, process::ExitCode, thread};

use clap::Args;
use skep_backend::Backend;
use skep_backend_embedded::Embedded;
use skep_backend_onnxruntime::{OnnxRuntime, SearchReport};

use crate::{
    backends,
    colour::Colours,
    output::{OutputError, out, outln},
    table::TextTable,
};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// The ONNX Runtime library, or a directory that holds it, instead of the usual places
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
}

/// Exits with 1 if a library was named that cannot be used.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    outln!("skep {}", env!("CARGO_PKG_VERSION"))?;
    outln!("cores: {}", thread::available_parallelism()?)?;
    outln!()?;
    print_backend(&Embedded)?;
    outln!()?;
    let search = backends::search(args.onnxruntime_library.clone());
    match OnnxRuntime::start(&search) {
        Ok((backend, report)) => {
            print_backend(&backend)?;
            print_places(&report)?;
        }
        Err(error) => {
            outln!("backend `onnxruntime`: not available")?;
            for line in error.to_string().lines() {
                outln!("  {line}")?;
            }
            if search.is_named() {
                return Ok(ExitCode::FAILURE);
            }
            outln!("  models that name no backend run on `embedded`")?;
            if let Some(report) = error.report() {
                print_places(report)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Every place in which ONNX Runtime's library was looked for.
fn print_places(report: &SearchReport) -> Result<(), OutputError> {
    outln!("  looked at:")?;
    let mut table = TextTable::new(&[0, 1, 2]);
    for place in &report.places {
        table.row(vec![
            format!("    {}", place.origin).into(),
            format!("`{}`", place.path.display()).into(),
            place.finding.to_string().into(),
        ]);
    }
    out!("{}", table.lines(Colours::NONE))
}

fn print_backend(backend: &dyn Backend) -> Result<(), OutputError> {
    let capabilities = backend.capabilities();
    let datatypes: Vec<&str> = capabilities
        .datatypes
        .iter()
        .map(|d| d.protocol_name())
        .collect();
    outln!("backend `{}`: {}", backend.name(), backend.describe())?;
    outln!("  datatypes: {}", datatypes.join(" "))?;
    outln!(
        "  weights used where the model's file is mapped: {}",
        yes(capabilities.weights_in_place)
    )?;
    if capabilities.weights_in_place {
        outln!(
            "    replace model files by renaming: one that is cut or overwritten while it is mapped ends the server"
        )?;
    }
    outln!(
        "  outputs written into the server's memory: {}",
        yes(capabilities.prepared_outputs)
    )
}

fn yes(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}
