//! The committed fuzz corpora of the public parsers: what fuzzing found worth keeping still holds.

use std::{fs, path::Path};

#[path = "../../../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "in fuzz/ it is a library")]
mod targets;

fn feed(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let files = fs::read_dir(corpus.join(name)).expect("a committed corpus");
    let mut fed = 0;
    for file in files {
        let path = file.expect("a file").path();
        println!("{}", path.display());
        target(&fs::read(&path).expect("readable"));
        fed += 1;
    }
    assert!(fed > 0, "the corpus of {name} is empty");
}

#[test]
fn corpora_hold() {
    feed("certificate", targets::certificate::parse);
    feed("config_json", targets::config::json);
    feed("config_pbtxt", targets::config::pbtxt);
    feed("infer", targets::onnx::infer);
    feed("npy", targets::tensor::npy);
    feed("onnx", targets::onnx::file);
    feed("recording", targets::simulation::recording);
    feed("records", targets::records::records);
    feed("table", targets::simulation::table);
    feed("tensor", targets::tensor::tensor);
    feed("trace", targets::trace::trace);
    feed("wire_json", targets::tensor::json);
}
