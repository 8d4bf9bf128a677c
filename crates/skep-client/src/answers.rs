//! What servers say of themselves and their models. The JSON forms are the types' own; gRPC's messages are converted
//! in `grpc`.

use serde::{Deserialize, Deserializer, de::Error as _};
use skep_types::{DataType, Dims};

/// A server's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ServerMetadata {
    /// The server's name.
    pub name: String,
    /// The server's version.
    pub version: String,
    /// The protocol extensions it serves.
    pub extensions: Vec<String>,
}

/// A model's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorMetadata {
    /// Its name.
    pub name: String,
    /// Its datatype.
    #[serde(deserialize_with = "datatype")]
    pub datatype: DataType,
    /// Its dimensions, the batch dimension included.
    #[serde(deserialize_with = "dims")]
    pub shape: Dims,
}

fn datatype<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DataType, D::Error> {
    let name = String::deserialize(deserializer)?;
    DataType::from_protocol_name(&name).map_err(D::Error::custom)
}

fn dims<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Dims, D::Error> {
    let dims = Vec::<i64>::deserialize(deserializer)?;
    Dims::new(&dims).map_err(D::Error::custom)
}

/// The figures of a model version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ModelStatistics {
    /// The model's name.
    pub name: String,
    /// The version, as the server writes it.
    pub version: String,
    /// When the last request was made, in milliseconds since 1970; 0 for never.
    #[serde(rename = "last_inference")]
    pub last_inference_ms: u64,
    /// Inferences: a request of batch size n counts n.
    pub inference_count: u64,
    /// Executions: a batch counts 1.
    pub execution_count: u64,
    /// Where requests spent their time.
    #[serde(rename = "inference_stats")]
    pub inference: InferenceStatistics,
    /// Executions by batch size.
    #[serde(rename = "batch_stats")]
    pub batches: Vec<BatchStatistics>,
    /// Memory that the model holds.
    #[serde(rename = "memory_usage")]
    pub memory: Vec<MemoryUsage>,
}

/// A count and the time it took in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DurationStatistic {
    /// How often.
    pub count: u64,
    /// How long in all, in nanoseconds.
    pub ns: u64,
}

impl DurationStatistic {
    /// The mean in nanoseconds; `None` for none.
    #[must_use]
    pub const fn mean_ns(self) -> Option<u64> {
        self.ns.checked_div(self.count)
    }
}

/// Where requests spent their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct InferenceStatistics {
    /// Requests that succeeded.
    pub success: DurationStatistic,
    /// Requests that failed.
    pub fail: DurationStatistic,
    /// Waiting for an instance.
    pub queue: DurationStatistic,
    /// Preparing inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Taking outputs.
    pub compute_output: DurationStatistic,
    /// Answers out of the response cache.
    pub cache_hit: DurationStatistic,
    /// Look-ups in vain, and insertions.
    pub cache_miss: DurationStatistic,
}

/// Executions of one batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BatchStatistics {
    /// Inferences an execution.
    pub batch_size: u64,
    /// Preparing inputs.
    pub compute_input: DurationStatistic,
    /// Running the model.
    pub compute_infer: DurationStatistic,
    /// Taking outputs.
    pub compute_output: DurationStatistic,
}

/// Memory that a model holds on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct MemoryUsage {
    /// `CPU`, `CPU_PINNED`, `GPU`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The device's number.
    pub id: i64,
    /// Bytes held.
    pub byte_size: u64,
}

/// The answer to a question for statistics.
#[derive(Debug, Deserialize)]
pub(crate) struct StatisticsAnswer {
    pub(crate) model_stats: Vec<ModelStatistics>,
}

/// A model version in the repository's index.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IndexRow {
    /// The model's name.
    pub name: String,
    /// The version, as the server writes it; empty for a model that was never loaded.
    pub version: String,
    /// `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE`; empty for a model that was never loaded.
    pub state: String,
    /// Why it is in that state, if there is something to say.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_read_what_triton_writes() {
        let answer: StatisticsAnswer = serde_json::from_str(
            r#"{"model_stats":[{"name":"m","version":"1","last_inference":1700000000000,"inference_count":7,
                "execution_count":3,"inference_stats":{"success":{"count":4,"ns":400},"queue":{"count":4,"ns":8}},
                "response_stats":{},"batch_stats":[{"batch_size":2,"compute_infer":{"count":3,"ns":30}}],
                "memory_usage":[{"type":"GPU","id":0,"byte_size":9}]}]}"#,
        )
        .expect("statistics");
        let model = &answer.model_stats[0];
        assert_eq!(
            (model.last_inference_ms, model.inference_count),
            (1_700_000_000_000, 7)
        );
        assert_eq!(model.inference.success.mean_ns(), Some(100));
        assert_eq!(model.inference.fail.mean_ns(), None);
        assert_eq!(model.batches[0].compute_infer.count, 3);
        assert_eq!(model.memory[0].byte_size, 9);
    }

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
}
