//! The table of operators for the documentation.

use std::fmt::Write as _;

use crate::OperatorTable;

/// A page with a row an operator and a column a backend, each cell passes of tests.
pub(crate) fn markdown(backends: &[String], table: &OperatorTable) -> String {
    let mut page = String::from(
        "# Operators\n\n\
         <!-- Written by crates/skep-backend-embedded/examples/node_tests.rs: run that instead of editing this. -->\n\n\
         ONNX's own node tests (PyPI's `onnx` 1.17.0, opset 22), run through each backend as a server runs it. A\n\
         cell shows how many tests pass, of how many. The table counts the inference tests whose inputs and outputs\n\
         are FP32, INT32, INT64, INT8, UINT8 or BOOL; tests of training and random numbers are excluded. The\n\
         tolerance is ONNX's own: 0.001 of the value plus 1e-7.\n\n\
         The embedded backend refuses models that its engine is known to compute wrongly. A test that the embedded\n\
         backend does not pass is refused at load, ends in an error, or differs from the expected value exactly as\n\
         ONNX Runtime does. INT64 values beyond 32 bits are refused too. The backend cannot detect two cases: INT64\n\
         arithmetic whose intermediate results leave 32 bits wraps around, and `Relu` and `Clip` do not pass NaN\n\
         on.\n\n",
    );
    // Writing to a string cannot fail.
    let _ = writeln!(page, "| operator | {} |", backends.join(" | "));
    let _ = writeln!(page, "|---|{}", "--:|".repeat(backends.len()));
    let mut sums = vec![(0, 0); backends.len()];
    for (operator, cells) in table {
        let _ = writeln!(page, "| {operator} | {} |", row(cells));
        for (sum, cell) in sums.iter_mut().zip(cells) {
            *sum = (sum.0 + cell.0, sum.1 + cell.1);
        }
    }
    let _ = writeln!(page, "| **all** | {} |", row(&sums));
    let complete = |backend: usize| {
        table
            .values()
            .filter(|cells| cells[backend].0 == cells[backend].1)
            .count()
    };
    let operators: Vec<String> = (0..backends.len())
        .map(|b| format!("{} of {}", complete(b), table.len()))
        .collect();
    let _ = writeln!(
        page,
        "| **operators that pass every test** | {} |",
        operators.join(" | ")
    );
    page
}

fn row(cells: &[(usize, usize)]) -> String {
    let cells: Vec<String> = cells
        .iter()
        .map(|(passed, all)| format!("{passed}/{all}"))
        .collect();
    cells.join(" | ")
}
