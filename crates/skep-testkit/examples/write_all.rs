//! Writes every kind of model, its inputs and the broken fixtures, for `python/verify.py`:
//! `cargo run --release -p skep-testkit --example write_all -- <directory>`.

use std::{fs, path::PathBuf};

use skep_models::{Inputs, Kind, Options, Variant, generate, inputs};
use skep_testkit::broken;

/// What `python/verify.py` expects.
const INPUTS: Inputs = Inputs {
    seed: 7,
    batch: 3,
    sequence: 16,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .ok_or("expected a directory to write to")?,
    );
    for kind in Kind::all() {
        // The parameters' own separators stay out of file names.
        let model = directory.join(kind.name());
        fs::create_dir_all(&model)?;
        let options = Options {
            seed: 1,
            ..Options::default()
        };
        generate(&kind, &options)?.write(model.join("model.onnx"))?;
        let side = Options {
            external_data: true,
            ..options
        };
        generate(&kind, &side)?.write(model.join("external.onnx"))?;
        for tensor in inputs(&kind, INPUTS) {
            fs::write(model.join(format!("{}.bin", tensor.name)), tensor.data)?;
        }
    }
    for name in ["resnet50", "bert-tiny"] {
        let options = Options {
            seed: 1,
            variant: Some(Variant { seed: 2, blocks: 1 }),
            ..Options::default()
        };
        generate(&name.parse()?, &options)?.write(directory.join(name).join("variant.onnx"))?;
    }
    for file in broken::onnx_files() {
        file.write(directory.join("broken"), "1/model.onnx")?;
    }
    for file in broken::config_files() {
        file.write(directory.join("broken-config"), "config.pbtxt")?;
    }
    Ok(())
}
