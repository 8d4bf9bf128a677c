//! Generates `crates/skep-proto/src/generated` from the `.proto` files.
//!
//! The generated code is committed, so that neither a build nor a test needs a protobuf compiler. Freshness is
//! checked by `tidy`: a digest of the `.proto` files lies beside the code that was made from them.

use std::{fs, path::Path};

use anyhow::{Context, Result};

const PROTOS: [&str; 4] = [
    "model_config.proto",
    "grpc_service.proto",
    "onnx.proto",
    "otlp.proto",
];

/// The digest of the `.proto` files and of this generator's version, as committed beside the generated code.
pub(crate) fn digest(root: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    // Raise the number when the generator's settings change.
    hasher.update(b"skep-proto codegen 1");
    for name in PROTOS {
        let path = root.join("crates/skep-proto/proto").join(name);
        hasher.update(&fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// Where the digest is committed.
pub(crate) fn digest_path(root: &Path) -> std::path::PathBuf {
    root.join("crates/skep-proto/src/generated/digest.txt")
}

/// Without the `codegen` feature: runs this program again with it.
#[cfg(not(feature = "codegen"))]
pub(crate) fn run(root: &Path) -> Result<()> {
    let status = std::process::Command::new(env!("CARGO"))
        .args([
            "run",
            "--quiet",
            "--package",
            "xtask",
            "--features",
            "codegen",
            "--",
            "codegen",
        ])
        .current_dir(root)
        .status()?;
    anyhow::ensure!(status.success(), "code generation failed");
    Ok(())
}

/// Writes the generated code, the descriptors and the digest.
#[cfg(feature = "codegen")]
pub(crate) fn run(root: &Path) -> Result<()> {
    use prost::Message;

    let proto_dir = root.join("crates/skep-proto/proto");
    let out = root.join("crates/skep-proto/src/generated");
    fs::create_dir_all(&out)?;

    let protocol = protox::compile(["grpc_service.proto"], [&proto_dir])?;
    fs::write(out.join("inference.bin"), protocol.encode_to_vec())?;
    let mut config = prost_build::Config::new();
    // Tensor data stays a slice of the received message; maps are ordered, so that answers are reproducible.
    config.bytes(["."]).btree_map(["."]);
    tonic_prost_build::configure()
        .out_dir(&out)
        .server_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .client_mod_attribute(".", "#[cfg(feature = \"grpc\")]")
        .compile_fds_with_config(protocol, config)?;

    let onnx = protox::compile(["onnx.proto"], [&proto_dir])?;
    let mut config = prost_build::Config::new();
    // Weights stay slices of the mapped file.
    config.bytes(["."]).out_dir(&out);
    config.compile_fds(onnx)?;

    let otlp = protox::compile(["otlp.proto"], [&proto_dir])?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]).out_dir(&out);
    config.compile_fds(otlp)?;

    fs::write(digest_path(root), digest(root)? + "\n")?;
    Ok(())
}
