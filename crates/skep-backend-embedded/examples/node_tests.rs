//! Runs ONNX's own node tests on both backends: prints a line per test, and writes the table of operators for the
//! documentation.
//!
//! ```text
//! cargo run -p skep-backend-embedded --example node_tests -- DIRECTORY [--markdown FILE] > tests.tsv
//! ```
//!
//! DIRECTORY is `onnx/backend/test/data/node` of PyPI's `onnx` package. A test *passes*, gives *wrong* values, is
//! *refused* when the model is loaded, or ends in an *error* when it runs. Tests of inference whose inputs and
//! outputs are FP32, INT32, INT64, INT8, UINT8 or BOOL make the table; tests of training, random numbers and other
//! datatypes are omitted.

#[path = "node_tests/case.rs"]
mod case;
#[path = "node_tests/table.rs"]
mod table;

use std::{
    collections::BTreeMap,
    fs,
    num::NonZeroUsize,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};
use case::NodeTest;
use skep_backend::{
    Backend, ErrorKind, LoadRequest, OutputSlot,
    conformance::{self, Tolerance},
};
use skep_backend_embedded::Embedded;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_tensor::{Tensor, TensorView};
use skep_types::DeviceId;

/// ONNX's own tolerance for its tests.
const TOLERANCE: Tolerance = Tolerance {
    relative: 1e-3,
    absolute: 1e-7,
};

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum TestOutcome {
    Pass,
    Wrong(String),
    Refused(String),
    Error(String),
}

impl TestOutcome {
    const fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Wrong(_) => "wrong",
            Self::Refused(_) => "refused",
            Self::Error(_) => "error",
        }
    }

    fn reason(&self) -> &str {
        match self {
            Self::Pass => "",
            Self::Wrong(why) | Self::Refused(why) | Self::Error(why) => why,
        }
    }
}

/// Outcomes by operator: for each backend passes and tests.
type OperatorTable = BTreeMap<String, Vec<(usize, usize)>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(
        arguments
            .next()
            .context("expected the directory of the node tests")?,
    );
    let markdown = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => None,
        (Some("--markdown"), Some(file)) => Some(PathBuf::from(file)),
        _ => bail!("expected `--markdown FILE` after the directory"),
    };
    let (onnxruntime, _) = OnnxRuntime::start(&LibrarySearch::from_environment())?;
    let backends: [&dyn Backend; 2] = [&onnxruntime, &Embedded];
    // A panic is a result here; its message is in the table.
    std::panic::set_hook(Box::new(|_| ()));
    let mut table = OperatorTable::new();
    let mut wrong = Vec::new();
    let mut totals: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for path in directories(&directory)? {
        let Some(test) = NodeTest::read(&path)? else {
            continue;
        };
        let row = table
            .entry(test.operator.clone())
            .or_insert_with(|| vec![(0, 0); backends.len()]);
        let mut line = format!("{}\t{}", test.name, test.operator);
        let mut reference = None;
        for (backend, (passed, all)) in backends.iter().zip(row) {
            let outcome = run(*backend, &test);
            // If both differ from the test in the same way, ONNX Runtime interprets the test differently.
            let reference = reference.get_or_insert_with(|| outcome.clone());
            if outcome.word() == "wrong"
                && backend.name() == Embedded.name()
                && outcome != *reference
            {
                wrong.push(test.name.clone());
            }
            *passed += usize::from(outcome == TestOutcome::Pass);
            *all += 1;
            *totals.entry((backend.name(), outcome.word())).or_default() += 1;
            let reason = outcome.reason().replace(['\t', '\n'], " ");
            line += &format!("\t{}\t{reason}", outcome.word());
        }
        println!("{line}");
    }
    for ((backend, word), count) in totals {
        eprintln!("{backend}: {word} {count}");
    }
    if !wrong.is_empty() {
        bail!(
            "the embedded backend must refuse what it computes wrongly: {}",
            wrong.join(", ")
        );
    }
    if let Some(file) = markdown {
        let names: Vec<String> = vec![
            format!("ONNX Runtime {}", onnxruntime.version()),
            "embedded".to_owned(),
        ];
        fs::write(file, table::markdown(&names, &table))?;
    }
    Ok(())
}

fn directories(root: &PathBuf) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(root).with_context(|| format!("cannot read `{}`", root.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}

fn run(backend: &dyn Backend, test: &NodeTest) -> TestOutcome {
    let result = catch_unwind(AssertUnwindSafe(|| try_run(backend, test)));
    result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        TestOutcome::Error(format!("panicked: {}", text.unwrap_or_default()))
    })
}

fn try_run(backend: &dyn Backend, test: &NodeTest) -> TestOutcome {
    let model = backend.load(&LoadRequest {
        file: &test.file,
        config: &conformance::config(backend.name(), ""),
        threads: NonZeroUsize::MIN,
        weights: None,
        device: DeviceId::default(),
        cpus: None,
        request_memory: None,
    });
    let mut instance = match model.and_then(|m| m.instance(DeviceId::default())) {
        Ok(instance) => instance,
        Err(error) => return TestOutcome::Refused(error.to_string()),
    };
    for (inputs, expected) in &test.sets {
        let views: Vec<TensorView<'_>> = inputs.iter().map(Tensor::view).collect();
        let mut slots: Vec<OutputSlot> = (0..expected.len()).map(OutputSlot::new).collect();
        if let Err(error) = instance.execute(&views, &mut slots) {
            let fault = if error.kind() == ErrorKind::InvalidArgument {
                "request: "
            } else {
                ""
            };
            return TestOutcome::Error(format!("{fault}{error}"));
        }
        for (slot, expected) in slots.into_iter().zip(expected) {
            let Some(got) = slot.into_tensor() else {
                return TestOutcome::Error("an output is missing".to_owned());
            };
            if let Some(difference) = conformance::difference(&got, expected, TOLERANCE) {
                return TestOutcome::Wrong(difference);
            }
        }
    }
    TestOutcome::Pass
}
