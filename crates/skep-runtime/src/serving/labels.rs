//! The class labels of an output, from the file that `label_filename` names: one label on each line.
//!
//! Source: Triton, classification extension.

use std::path::Path;

use skep_config::TensorConfig;

use crate::error::RuntimeError;

/// Enough for labels of millions of classes.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// The labels of one output's classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassLabels(Vec<Box<[u8]>>);

impl ClassLabels {
    /// The label of the class with this index; `None` if its line is empty or missing. Mostly UTF-8, but any bytes may
    /// occur.
    #[must_use]
    pub fn get(&self, class: usize) -> Option<&[u8]> {
        self.0
            .get(class)
            .map(|label| &**label)
            .filter(|label| !label.is_empty())
    }

    /// Parses a file. Lines may end as on Windows.
    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n');
        Self(
            lines
                .map(|line| line.strip_suffix(b"\r").unwrap_or(line).into())
                .collect(),
        )
    }
}

/// Reads the labels of all outputs that have some. The files are in the model's directory.
pub(crate) fn read(
    outputs: &[TensorConfig],
    directory: &Path,
) -> Result<Vec<(String, ClassLabels)>, RuntimeError> {
    let mut labels = Vec::new();
    for output in outputs {
        let Some(filename) = &output.label_filename else {
            continue;
        };
        let path = directory.join(filename);
        let text = skep_host::read_file(&path, MAX_FILE_BYTES).map_err(|error| {
            RuntimeError::invalid(format!(
                "failed to open text file for read {}: {error}",
                path.display()
            ))
        })?;
        labels.push((output.name.clone(), ClassLabels::parse(&text)));
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_a_label() {
        let labels = ClassLabels::parse(b"a\r\n\n b \n\xff\nlast");
        let expected: [Option<&[u8]>; 6] = [
            Some(b"a"),
            None,
            Some(b" b "),
            Some(b"\xff"),
            Some(b"last"),
            None,
        ];
        for (class, label) in expected.into_iter().enumerate() {
            assert_eq!(labels.get(class), label);
        }
    }
}
