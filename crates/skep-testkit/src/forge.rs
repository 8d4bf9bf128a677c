//! Forged forms: what an attacker with write access can put into a cache. Every digest fits.
#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "scaffolding of tests states what it expects"
)]

use std::{fs, path::Path};

use prost::Message as _;
use skep_proto::onnx::{ModelProto, StringStringEntryProto, TensorProto};

/// Puts another graph into the form whose graph is at `path`.
pub fn graph(path: &Path, change: impl FnOnce(&mut ModelProto)) {
    let bytes = fs::read(path).expect("a graph");
    let mut model = ModelProto::decode(&*bytes).expect("a graph");
    change(&mut model);
    let bytes = model.encode_to_vec();
    fs::write(path, &bytes).expect("written");
    let digest = blake3::hash(&bytes);
    manifest(&path.with_file_name("manifest"), |line| {
        match line.starts_with("graph ") {
            true => format!("graph {digest}"),
            false => line.to_owned(),
        }
    });
}

/// Changes lines of a manifest, but for the last one, which fits again.
pub fn manifest(path: &Path, change: impl Fn(&str) -> String) {
    let text = fs::read_to_string(path).expect("a manifest");
    let mut forged = String::new();
    for line in text.lines().filter(|line| !line.starts_with("end ")) {
        forged += &change(line);
        forged.push('\n');
    }
    let digest = blake3::hash(forged.as_bytes());
    fs::write(path, format!("{forged}end {digest}\n")).expect("written");
}

/// The first initializer of a graph whose data lies elsewhere.
pub fn external(model: &mut ModelProto) -> &mut TensorProto {
    let graph = model.graph.as_mut().expect("a graph");
    let mut tensors = graph.initializer.iter_mut();
    let external = tensors.find(|tensor| !tensor.external_data.is_empty());
    external.expect("a large weight")
}

/// Says that its data lies in another file, from an offset on.
pub fn point(tensor: &mut TensorProto, location: &str, offset: u64) {
    let entry = |key: &str, value: String| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    tensor.external_data = vec![
        entry("location", location.to_owned()),
        entry("offset", offset.to_string()),
    ];
}
