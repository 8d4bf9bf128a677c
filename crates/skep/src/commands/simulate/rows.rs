//! Rows of figures as JSON and as CSV, each a list of names and values.

use std::fmt::Write;

use serde_json::Value;

/// A row: the same names in each.
pub(super) type FigureRow = Vec<(&'static str, Value)>;

/// A list of objects, one a line.
pub(super) fn json(rows: impl Iterator<Item = FigureRow>) -> String {
    let objects = rows.map(|row| {
        let members = row
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Value::Object(members.collect())
    });
    let lines: Vec<String> = objects.map(|object| object.to_string()).collect();
    format!("[\n{}\n]", lines.join(",\n"))
}

/// Lines of values under a line of names.
pub(super) fn csv(rows: impl Iterator<Item = FigureRow>) -> String {
    let mut text = String::new();
    for row in rows {
        if text.is_empty() {
            let names: Vec<&str> = row.iter().map(|(name, _)| *name).collect();
            writeln!(text, "{}", names.join(",")).expect("a string takes all");
        }
        let values = row.into_iter().map(|(_, value)| match value {
            Value::Null => String::new(),
            Value::String(text) => quoted(text),
            other => quoted(other.to_string()),
        });
        let values: Vec<String> = values.collect();
        writeln!(text, "{}", values.join(",")).expect("a string takes all");
    }
    text
}

/// A cell of a CSV file.
fn quoted(text: String) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}
