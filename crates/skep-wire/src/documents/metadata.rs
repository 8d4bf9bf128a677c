//! Metadata of a server and of a model.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use skep_proto::inference::{self as pb, model_metadata_response::TensorMetadata as TensorMessage};
use skep_types::{DataType, Dims};

/// A server's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerMetadata {
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The protocol extensions that it serves.
    pub extensions: Vec<String>,
}

impl From<ServerMetadata> for pb::ServerMetadataResponse {
    fn from(metadata: ServerMetadata) -> Self {
        Self {
            name: metadata.name,
            version: metadata.version,
            extensions: metadata.extensions,
        }
    }
}

impl From<pb::ServerMetadataResponse> for ServerMetadata {
    fn from(message: pb::ServerMetadataResponse) -> Self {
        Self {
            name: message.name,
            version: message.version,
            extensions: message.extensions,
        }
    }
}

/// A model's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelMetadata {
    /// The model's name.
    pub name: String,
    /// The versions that can be asked for, as the server writes them.
    pub versions: Vec<String>,
    /// The framework or backend.
    pub platform: String,
    /// Inputs.
    pub inputs: Vec<TensorMetadata>,
    /// Outputs.
    pub outputs: Vec<TensorMetadata>,
}

/// The metadata of an input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// Its datatype.
    #[serde(serialize_with = "write_datatype", deserialize_with = "read_datatype")]
    pub datatype: DataType,
    /// Its dimensions, the batch dimension included; -1 for a variable one.
    #[serde(serialize_with = "write_dims", deserialize_with = "read_dims")]
    pub shape: Dims,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the signature is serde's"
)]
fn write_datatype<S: Serializer>(datatype: &DataType, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(datatype.protocol_name())
}

fn read_datatype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataType, D::Error> {
    let name = String::deserialize(deserializer)?;
    DataType::from_protocol_name(&name).map_err(D::Error::custom)
}

fn write_dims<S: Serializer>(dims: &Dims, serializer: S) -> Result<S::Ok, S::Error> {
    dims.as_slice().serialize(serializer)
}

fn read_dims<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dims, D::Error> {
    let dims = Vec::<i64>::deserialize(deserializer)?;
    Dims::new(&dims).map_err(D::Error::custom)
}

/// A message describes a tensor that cannot exist.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tensor `{tensor}`: {reason}")]
pub struct MetadataError {
    tensor: String,
    reason: String,
}

impl From<ModelMetadata> for pb::ModelMetadataResponse {
    fn from(metadata: ModelMetadata) -> Self {
        Self {
            name: metadata.name,
            versions: metadata.versions,
            platform: metadata.platform,
            inputs: metadata.inputs.into_iter().map(Into::into).collect(),
            outputs: metadata.outputs.into_iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<pb::ModelMetadataResponse> for ModelMetadata {
    type Error = MetadataError;

    fn try_from(message: pb::ModelMetadataResponse) -> Result<Self, MetadataError> {
        Ok(Self {
            name: message.name,
            versions: message.versions,
            platform: message.platform,
            inputs: tensors(message.inputs)?,
            outputs: tensors(message.outputs)?,
        })
    }
}

fn tensors(messages: Vec<TensorMessage>) -> Result<Vec<TensorMetadata>, MetadataError> {
    messages.into_iter().map(TryInto::try_into).collect()
}

impl From<TensorMetadata> for TensorMessage {
    fn from(tensor: TensorMetadata) -> Self {
        Self {
            name: tensor.name,
            datatype: tensor.datatype.protocol_name().to_owned(),
            shape: tensor.shape.as_slice().to_vec(),
        }
    }
}

impl TryFrom<TensorMessage> for TensorMetadata {
    type Error = MetadataError;

    fn try_from(message: TensorMessage) -> Result<Self, MetadataError> {
        let datatype =
            DataType::from_protocol_name(&message.datatype).map_err(|error| error.to_string());
        let shape = Dims::new(&message.shape).map_err(|error| error.to_string());
        match (datatype, shape) {
            (Ok(datatype), Ok(shape)) => Ok(Self {
                name: message.name,
                datatype,
                shape,
            }),
            (Err(reason), _) | (_, Err(reason)) => Err(MetadataError {
                tensor: message.name,
                reason,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_with_an_unknown_datatype_or_impossible_dims_is_refused() {
        let parse = |datatype: &str, shape: &str| {
            serde_json::from_str::<ModelMetadata>(&format!(
                r#"{{"name":"m","inputs":[{{"name":"x","datatype":"{datatype}","shape":{shape}}}]}}"#
            ))
        };
        assert_eq!(
            parse("FP32", "[-1,3]").expect("metadata").inputs[0]
                .shape
                .as_slice(),
            [-1, 3]
        );
        assert!(parse("FP31", "[1]").is_err());
        assert!(parse("FP32", "[-2]").is_err());
        assert!(parse("FP32", "[\"1\"]").is_err());
    }

    #[test]
    fn impossible_metadata_in_a_message_is_refused() {
        let metadata = |datatype: &str, shape: Vec<i64>| {
            ModelMetadata::try_from(pb::ModelMetadataResponse {
                inputs: vec![TensorMessage {
                    name: "x".to_owned(),
                    datatype: datatype.to_owned(),
                    shape,
                }],
                ..Default::default()
            })
        };
        assert!(metadata("FP32", vec![-1]).is_ok());
        assert!(metadata("FP31", vec![-1]).is_err());
        assert!(metadata("FP32", vec![-2]).is_err());
    }

    #[test]
    fn both_forms_hold_the_same() {
        let metadata = ModelMetadata {
            name: "m".to_owned(),
            versions: vec!["1".to_owned(), "2".to_owned()],
            platform: "onnxruntime_onnx".to_owned(),
            inputs: vec![TensorMetadata {
                name: "x".to_owned(),
                datatype: DataType::Fp32,
                shape: Dims::new(&[-1, 3]).expect("dims"),
            }],
            outputs: Vec::new(),
        };
        let json = serde_json::to_string(&metadata).expect("JSON");
        assert_eq!(
            json,
            r#"{"name":"m","versions":["1","2"],"platform":"onnxruntime_onnx","inputs":[{"name":"x","datatype":"FP32","shape":[-1,3]}],"outputs":[]}"#
        );
        let message = pb::ModelMetadataResponse::from(metadata.clone());
        assert_eq!(ModelMetadata::try_from(message), Ok(metadata));
    }
}
