//! Generated messages: the Open Inference Protocol with Triton's extensions, the model configuration, ONNX, and the
//! traces of OpenTelemetry's protocol.
//!
//! Only this page is written by hand. `cargo xtask codegen` writes `src/generated` from `proto/*.proto`. Both are
//! committed, and `cargo xtask tidy` fails if they differ.
//!
//! [`inference`] has the protocol (package `inference`), [`onnx`] the format of model files, [`otlp`] what a collector of
//! traces is sent. [`descriptors`] has the protocol's descriptors: `config.pbtxt` is parsed and the JSON form of a
//! configuration is written with them.
#![allow(
    missing_docs,
    reason = "generated messages carry the protocol's names; docs/ explains them"
)]

use std::sync::LazyLock;

/// Open Inference Protocol with Triton's extensions, and Triton's model configuration.
#[allow(
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod inference {
    include!("generated/inference.rs");
}

/// ONNX model files.
#[allow(
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod onnx {
    include!("generated/onnx.rs");
}

/// Traces in OpenTelemetry's protocol.
#[allow(
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod otlp {
    include!("generated/otlp.rs");
}

/// The encoded `FileDescriptorSet` of the protocol, as gRPC reflection serves it.
pub const INFERENCE_DESCRIPTORS: &[u8] = include_bytes!("generated/inference.bin");

/// The protocol's descriptors.
///
/// # Panics
/// Never in practice: the descriptor set is generated and committed with this crate, and a unit test decodes it.
#[must_use]
pub fn descriptors() -> &'static prost_reflect::DescriptorPool {
    static POOL: LazyLock<prost_reflect::DescriptorPool> = LazyLock::new(|| {
        prost_reflect::DescriptorPool::decode(INFERENCE_DESCRIPTORS)
            .expect("the committed descriptor set decodes")
    });
    &POOL
}

#[cfg(test)]
mod tests {
    use super::descriptors;

    #[test]
    fn descriptors_contain_the_service_and_the_model_configuration() {
        let pool = descriptors();
        let service = pool
            .get_service_by_name("inference.GRPCInferenceService")
            .expect("service");
        assert_eq!(service.methods().count(), 20);
        let config = pool
            .get_message_by_name("inference.ModelConfig")
            .expect("message");
        assert_eq!(
            config
                .get_field_by_name("max_batch_size")
                .expect("field")
                .number(),
            4
        );
    }
}
