//! Inputs that a file has a value for: a request may leave them out.
//!
//! Source: ONNX IR specification, "Graphs": from IR version 4 on, an initializer with the name of a graph input is that
//! input's default, and one without is a constant.

use bytes::Bytes;
use skep_proto::onnx::{TensorProto, ValueInfoProto};
use skep_types::{DataType, ModelSignature, TensorSpec};

use crate::{OnnxError, OnnxModel, datatype, is_external, spec};

/// The first IR version in which an input's initializer is a default; before, every initializer had to be an input.
const FIRST_IR_VERSION: i64 = 4;

/// A value as the file holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DefaultValue {
    /// The datatype of its elements.
    pub datatype: DataType,
    /// Its dimensions.
    pub dims: Vec<usize>,
    /// Its elements, little-endian, in row-major order; strings each behind their length in four bytes.
    pub data: Bytes,
}

impl OnnxModel {
    /// The signature with those inputs among `names` that have a default, behind the ones that have none, and with
    /// those undeclared outputs that `told` knows.
    ///
    /// # Errors
    /// As [`OnnxModel::signature`].
    pub fn signature_with<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        told: &dyn Fn(&str) -> Option<TensorSpec>,
    ) -> Result<ModelSignature, OnnxError> {
        let mut signature = self.signature()?;
        signature.outputs = self.declared_outputs(told)?;
        for name in names {
            if signature.input(name).is_none()
                && let Some((value, _)) = self.with_default(name)
            {
                signature.inputs.push(spec("input", value)?);
            }
        }
        Ok(signature)
    }

    /// The default of an input; `None` when it has none.
    ///
    /// # Errors
    /// A text that says why the value cannot be taken.
    #[must_use]
    pub fn default_value(&self, name: &str) -> Option<Result<DefaultValue, String>> {
        let (_, tensor) = self.with_default(name)?;
        let value = read(tensor);
        Some(value.map_err(|why| format!("the default of input `{name}` {why}")))
    }

    /// Makes an input that has a default one that has none, for an engine that would take the default for a constant.
    /// Whether it had one.
    pub fn forget_default(&mut self, name: &str) -> bool {
        let had = self.with_default(name).is_some();
        if had && let Some(graph) = &mut self.proto_mut().graph {
            graph.initializer.retain(|tensor| tensor.name() != name);
        }
        had
    }

    fn with_default(&self, name: &str) -> Option<(&ValueInfoProto, &TensorProto)> {
        let graph = self.graph();
        let value = graph.input.iter().find(|value| value.name() == name)?;
        let tensor = graph
            .initializer
            .iter()
            .find(|tensor| tensor.name() == name)?;
        (self.proto().ir_version() >= FIRST_IR_VERSION).then_some((value, tensor))
    }
}

fn read(tensor: &TensorProto) -> Result<DefaultValue, String> {
    if is_external(tensor) {
        return Err("lies in another file, expected it in the model's own".to_owned());
    }
    let datatype = datatype(tensor.data_type())
        .ok_or_else(|| "is of a datatype that cannot be served".to_owned())?;
    let dims: Result<Vec<usize>, _> = tensor.dims.iter().map(|d| usize::try_from(*d)).collect();
    let dims = dims.map_err(|_| "has a negative dimension".to_owned())?;
    let data = if tensor.raw_data().is_empty() {
        fields(tensor, datatype)
    } else {
        tensor.raw_data().to_vec()
    };
    Ok(DefaultValue {
        datatype,
        dims,
        data: data.into(),
    })
}

/// The elements out of the message's typed fields; each field serves several datatypes.
fn fields(tensor: &TensorProto, datatype: DataType) -> Vec<u8> {
    fn bytes<T: Copy, const N: usize>(values: &[T], encode: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|value| encode(*value)).collect()
    }
    // 32-bit fields hold narrower integers, and half-precision numbers as their bits.
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "the bits are what the specification puts there"
    )]
    match datatype {
        DataType::Fp32 => bytes(&tensor.float_data, f32::to_le_bytes),
        DataType::Fp64 => bytes(&tensor.double_data, f64::to_le_bytes),
        DataType::Int64 => bytes(&tensor.int64_data, i64::to_le_bytes),
        DataType::Uint64 => bytes(&tensor.uint64_data, u64::to_le_bytes),
        DataType::Uint32 => bytes(&tensor.uint64_data, |v| (v as u32).to_le_bytes()),
        DataType::Int32 => bytes(&tensor.int32_data, i32::to_le_bytes),
        DataType::Bool | DataType::Uint8 | DataType::Int8 => {
            bytes(&tensor.int32_data, |v| [v as u8])
        }
        DataType::Uint16 | DataType::Int16 | DataType::Fp16 | DataType::Bf16 => {
            bytes(&tensor.int32_data, |v| (v as u16).to_le_bytes())
        }
        DataType::Bytes => {
            let mut data = Vec::new();
            for text in &tensor.string_data {
                let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                data.extend(length.to_le_bytes());
                data.extend_from_slice(text);
            }
            data
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::onnx::{GraphProto, ModelProto, TypeProto, tensor_proto, type_proto};

    use super::*;

    fn input(name: &str) -> ValueInfoProto {
        let tensor = type_proto::Tensor {
            elem_type: Some(tensor_proto::DataType::Int16 as i32),
            shape: None,
        };
        ValueInfoProto {
            name: Some(name.to_owned()),
            r#type: Some(TypeProto {
                value: Some(type_proto::Value::TensorType(tensor)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn model(ir_version: i64, tensor: TensorProto) -> OnnxModel {
        let constant = TensorProto {
            name: Some("constant".to_owned()),
            ..tensor.clone()
        };
        let graph = GraphProto {
            input: vec![input("optional"), input("required")],
            output: vec![input("y")],
            initializer: vec![tensor, constant],
            ..Default::default()
        };
        let proto = ModelProto {
            ir_version: Some(ir_version),
            graph: Some(graph),
            ..Default::default()
        };
        OnnxModel::decode(proto.encode_to_vec().into()).expect("a model")
    }

    fn tensor() -> TensorProto {
        TensorProto {
            name: Some("optional".to_owned()),
            data_type: Some(tensor_proto::DataType::Int16 as i32),
            dims: vec![1, 2],
            int32_data: vec![-1, 258],
            ..Default::default()
        }
    }

    #[test]
    fn an_input_with_an_initializer_has_a_default() {
        let mut model = model(4, tensor());
        let names = |model: &OnnxModel, wanted: &[&str]| -> Vec<String> {
            let signature = model
                .signature_with(wanted.iter().copied(), &|_| None)
                .expect("valid");
            signature.inputs.into_iter().map(|spec| spec.name).collect()
        };
        assert_eq!(names(&model, &[]), ["required"]);
        let all = ["optional", "required", "constant", "nosuch"];
        assert_eq!(names(&model, &all), ["required", "optional"]);
        let value = DefaultValue {
            datatype: DataType::Int16,
            dims: vec![1, 2],
            data: Bytes::from_static(&[0xff, 0xff, 2, 1]),
        };
        assert_eq!(model.default_value("optional"), Some(Ok(value.clone())));
        for name in ["required", "constant", "nosuch"] {
            assert_eq!(model.default_value(name), None, "{name}");
        }
        let raw = TensorProto {
            int32_data: vec![],
            raw_data: Some(value.data.clone()),
            ..tensor()
        };
        assert_eq!(
            self::model(8, raw).default_value("optional"),
            Some(Ok(value))
        );
        assert!(model.forget_default("optional"));
        assert!(!model.forget_default("optional"));
        assert_eq!(names(&model, &[]), ["optional", "required"]);
    }

    #[test]
    fn before_ir_version_4_initializers_are_constants() {
        let model = model(3, tensor());
        assert_eq!(model.default_value("optional"), None);
        let signature = model
            .signature_with(["optional"], &|_| None)
            .expect("valid");
        assert_eq!(signature.inputs.len(), 1);
    }

    #[test]
    fn unusable_values_say_why() {
        let external = TensorProto {
            data_location: Some(tensor_proto::DataLocation::External as i32),
            ..tensor()
        };
        let odd = TensorProto {
            data_type: Some(tensor_proto::DataType::Complex64 as i32),
            ..tensor()
        };
        for (tensor, expected) in [(external, "in another file"), (odd, "of a datatype")] {
            let error = model(8, tensor)
                .default_value("optional")
                .expect("there")
                .expect_err("odd");
            assert!(error.contains(expected), "{error}");
        }
    }
}
