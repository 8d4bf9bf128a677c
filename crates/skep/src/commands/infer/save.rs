//! Outputs as NumPy's files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use skep_client::InferResponse;
use skep_wire::npy;

/// Makes the directory before anything is asked.
pub(super) fn prepare(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot create `{}`", directory.display()))
}

/// Writes each output; their names and files.
pub(super) fn outputs<'a>(
    answer: &'a InferResponse,
    directory: &Path,
) -> anyhow::Result<Vec<(&'a str, PathBuf)>> {
    let mut written: Vec<(&str, PathBuf)> = Vec::new();
    for (name, tensor) in &answer.outputs {
        let file = npy::write(tensor.view()).with_context(|| format!("output `{name}`"))?;
        let stem = file_name(name);
        let path = (1..)
            .map(|number| match number {
                1 => directory.join(format!("{stem}.npy")),
                _ => directory.join(format!("{stem}-{number}.npy")),
            })
            .find(|path| written.iter().all(|(_, other)| other != path))
            .expect("a number that is free");
        fs::write(&path, file).with_context(|| format!("cannot write `{}`", path.display()))?;
        written.push((name, path));
    }
    Ok(written)
}

/// A name as that of a file in a directory: names of outputs often are paths, as in `model/dense:0`.
fn file_name(name: &str) -> String {
    let plain = name.replace(['/', '\\', '\0'], "_");
    if plain.is_empty() || plain.starts_with('.') {
        return format!("_{plain}");
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use skep_tensor::Tensor;
    use skep_types::{DataType, Shape};

    #[test]
    fn every_output_has_a_file_of_its_own_in_the_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let tensor = Tensor::new(DataType::Uint8, Shape::scalar(), Bytes::from_static(b"7"));
        let tensor = tensor.expect("tensor");
        let names = ["y", "a/b", "a_b", "../up", ""];
        let outputs = names.map(|name| (name.to_owned(), tensor.clone()));
        let answer = InferResponse {
            model: "m".to_owned(),
            version: String::new(),
            id: String::new(),
            outputs: outputs.into(),
        };
        let written = super::outputs(&answer, directory.path()).expect("written");
        let files: Vec<&str> = written
            .iter()
            .map(|(_, path)| path.strip_prefix(directory.path()).expect("inside"))
            .map(|path| path.to_str().expect("text"))
            .collect();
        assert_eq!(
            files,
            ["y.npy", "a_b.npy", "a_b-2.npy", "_.._up.npy", "_.npy"]
        );
        assert_eq!(
            fs::read_dir(directory.path()).expect("a directory").count(),
            names.len()
        );
    }
}
