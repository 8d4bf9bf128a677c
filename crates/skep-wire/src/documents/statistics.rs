//! Statistics of model versions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use skep_proto::inference as pb;

/// The answer to a request for statistics.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatisticsReport {
    /// A model version each.
    #[serde(rename = "model_stats")]
    pub versions: Vec<ModelStatistics>,
}

/// The figures of a model version.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The answers of decoupled models, by their number within a request.
    #[serde(rename = "response_stats")]
    pub responses: BTreeMap<String, ResponseStatistics>,
    /// Executions by batch size.
    #[serde(rename = "batch_stats")]
    pub batches: Vec<BatchSizeStatistics>,
    /// Memory that the model holds.
    #[serde(rename = "memory_usage")]
    pub memory: Vec<DeviceMemory>,
    /// How the model keeps its latency objective, if it has one. Skep's own member: Triton's clients ignore it.
    #[serde(rename = "slo_stats", skip_serializing_if = "Option::is_none")]
    pub objective: Option<ObjectiveStatistics>,
    /// The sequences, if requests belong to some. Skep's own member as well.
    #[serde(rename = "sequence_stats", skip_serializing_if = "Option::is_none")]
    pub sequences: Option<SequenceStatistics>,
}

/// A count and the total time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CountedDuration {
    /// How often.
    pub count: u64,
    /// How long in all, in nanoseconds.
    pub ns: u64,
}

impl CountedDuration {
    /// The mean in nanoseconds; `None` if nothing was counted.
    #[must_use]
    pub const fn mean_ns(self) -> Option<u64> {
        self.ns.checked_div(self.count)
    }
}

/// Where requests spent their time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InferenceStatistics {
    /// Requests that succeeded.
    pub success: CountedDuration,
    /// Requests that failed.
    pub fail: CountedDuration,
    /// Waiting for an instance.
    pub queue: CountedDuration,
    /// Preparing inputs.
    pub compute_input: CountedDuration,
    /// Running the model.
    pub compute_infer: CountedDuration,
    /// Taking outputs.
    pub compute_output: CountedDuration,
    /// Answers from the response cache.
    pub cache_hit: CountedDuration,
    /// Failed look-ups, and insertions.
    pub cache_miss: CountedDuration,
}

/// The n-th answers to requests for a decoupled model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResponseStatistics {
    /// Running the model.
    pub compute_infer: CountedDuration,
    /// Taking outputs.
    pub compute_output: CountedDuration,
    /// Answers that succeeded.
    pub success: CountedDuration,
    /// Answers that failed.
    pub fail: CountedDuration,
    /// Answers without outputs.
    pub empty_response: CountedDuration,
    /// Answers that were cancelled.
    pub cancel: CountedDuration,
}

/// Executions of one batch size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchSizeStatistics {
    /// Inferences an execution.
    pub batch_size: u64,
    /// Preparing inputs.
    pub compute_input: CountedDuration,
    /// Running the model.
    pub compute_infer: CountedDuration,
    /// Taking outputs.
    pub compute_output: CountedDuration,
}

/// Memory that a model holds on one device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceMemory {
    /// `CPU`, `CPU_PINNED`, `GPU`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The device's number.
    pub id: i64,
    /// Bytes held.
    pub byte_size: u64,
}

/// How a model keeps its latency objective.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectiveStatistics {
    /// How long an answer may take, in nanoseconds.
    pub objective_ns: u64,
    /// Requests answered within the objective.
    pub in_time: u64,
    /// Requests answered later.
    pub late: u64,
    /// Requests refused because they could not be answered in time.
    pub given_up: u64,
}

/// The sequences of a model now, and their slots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SequenceStatistics {
    /// Slots, or candidates, that live sequences have.
    pub used_slots: u64,
    /// Slots that further sequences could get.
    pub free_slots: u64,
    /// Sequences that wait for a slot.
    pub waiting_sequences: u64,
}

impl From<StatisticsReport> for pb::ModelStatisticsResponse {
    fn from(report: StatisticsReport) -> Self {
        Self {
            model_stats: report.versions.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<pb::ModelStatisticsResponse> for StatisticsReport {
    fn from(message: pb::ModelStatisticsResponse) -> Self {
        Self {
            versions: message.model_stats.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<ModelStatistics> for pb::ModelStatistics {
    fn from(model: ModelStatistics) -> Self {
        let responses = model.responses.into_iter();
        Self {
            name: model.name,
            version: model.version,
            last_inference: model.last_inference_ms,
            inference_count: model.inference_count,
            execution_count: model.execution_count,
            inference_stats: Some(model.inference.into()),
            batch_stats: model.batches.into_iter().map(Into::into).collect(),
            memory_usage: model.memory.into_iter().map(Into::into).collect(),
            response_stats: responses.map(|(key, value)| (key, value.into())).collect(),
            slo_stats: model.objective.map(Into::into),
            sequence_stats: model.sequences.map(Into::into),
        }
    }
}

impl From<pb::ModelStatistics> for ModelStatistics {
    fn from(message: pb::ModelStatistics) -> Self {
        let responses = message.response_stats.into_iter();
        Self {
            name: message.name,
            version: message.version,
            last_inference_ms: message.last_inference,
            inference_count: message.inference_count,
            execution_count: message.execution_count,
            inference: message.inference_stats.unwrap_or_default().into(),
            responses: responses.map(|(key, value)| (key, value.into())).collect(),
            batches: message.batch_stats.into_iter().map(Into::into).collect(),
            memory: message.memory_usage.into_iter().map(Into::into).collect(),
            objective: message.slo_stats.map(Into::into),
            sequences: message.sequence_stats.map(Into::into),
        }
    }
}

impl From<CountedDuration> for pb::StatisticDuration {
    fn from(CountedDuration { count, ns }: CountedDuration) -> Self {
        Self { count, ns }
    }
}

impl From<Option<pb::StatisticDuration>> for CountedDuration {
    fn from(message: Option<pb::StatisticDuration>) -> Self {
        let pb::StatisticDuration { count, ns } = message.unwrap_or_default();
        Self { count, ns }
    }
}

/// Conversions, both ways, between a structure and a message whose fields have the same names: `as_is` fields are copied, the
/// others are a [`CountedDuration`] here and an optional message there.
macro_rules! same_fields {
    ($document:ident, $message:ident, as_is: [$($copied:ident),*], durations: [$($duration:ident),*]) => {
        impl From<$document> for pb::$message {
            fn from(document: $document) -> Self {
                Self {
                    $($copied: document.$copied,)*
                    $($duration: Some(document.$duration.into()),)*
                }
            }
        }

        impl From<pb::$message> for $document {
            fn from(message: pb::$message) -> Self {
                Self {
                    $($copied: message.$copied,)*
                    $($duration: message.$duration.into(),)*
                }
            }
        }
    };
}

same_fields!(InferenceStatistics, InferStatistics, as_is: [], durations: [
    success, fail, queue, compute_input, compute_infer, compute_output, cache_hit, cache_miss
]);
same_fields!(ResponseStatistics, InferResponseStatistics, as_is: [], durations: [
    compute_infer, compute_output, success, fail, empty_response, cancel
]);
same_fields!(BatchSizeStatistics, InferBatchStatistics, as_is: [batch_size], durations: [
    compute_input, compute_infer, compute_output
]);
same_fields!(ObjectiveStatistics, SloStatistics, as_is: [
    objective_ns, in_time, late, given_up
], durations: []);
same_fields!(SequenceStatistics, SequenceStatistics, as_is: [
    used_slots, free_slots, waiting_sequences
], durations: []);

impl From<DeviceMemory> for pb::MemoryUsage {
    fn from(memory: DeviceMemory) -> Self {
        Self {
            r#type: memory.kind,
            id: memory.id,
            byte_size: memory.byte_size,
        }
    }
}

impl From<pb::MemoryUsage> for DeviceMemory {
    fn from(message: pb::MemoryUsage) -> Self {
        Self {
            kind: message.r#type,
            id: message.id,
            byte_size: message.byte_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_read_what_triton_writes() {
        let report: StatisticsReport = serde_json::from_str(
            r#"{"model_stats":[{"name":"m","version":"1","last_inference":1700000000000,"inference_count":7,
                "execution_count":3,"inference_stats":{"success":{"count":4,"ns":400},"queue":{"count":4,"ns":8}},
                "response_stats":{},"batch_stats":[{"batch_size":2,"compute_infer":{"count":3,"ns":30}}],
                "memory_usage":[{"type":"GPU","id":0,"byte_size":9}]}]}"#,
        )
        .expect("statistics");
        let model = &report.versions[0];
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
    fn members_have_tritons_order_and_both_forms_read_back() {
        let report = StatisticsReport {
            versions: vec![ModelStatistics {
                name: "m".to_owned(),
                version: "1".to_owned(),
                last_inference_ms: 5,
                batches: vec![BatchSizeStatistics {
                    batch_size: 2,
                    compute_infer: CountedDuration { count: 3, ns: 30 },
                    ..Default::default()
                }],
                memory: vec![DeviceMemory {
                    kind: "GPU".to_owned(),
                    id: 1,
                    byte_size: 9,
                }],
                objective: Some(ObjectiveStatistics {
                    objective_ns: 1,
                    in_time: 2,
                    late: 3,
                    given_up: 4,
                }),
                ..Default::default()
            }],
        };
        let json = serde_json::to_string(&report).expect("JSON");
        let zero = r#"{"count":0,"ns":0}"#;
        let expected = format!(
            concat!(
                r#"{{"model_stats":[{{"name":"m","version":"1","last_inference":5,"inference_count":0,"execution_count":0,"#,
                r#""inference_stats":{{"success":{0},"fail":{0},"queue":{0},"compute_input":{0},"compute_infer":{0},"#,
                r#""compute_output":{0},"cache_hit":{0},"cache_miss":{0}}},"response_stats":{{}},"#,
                r#""batch_stats":[{{"batch_size":2,"compute_input":{0},"compute_infer":{{"count":3,"ns":30}},"#,
                r#""compute_output":{0}}}],"memory_usage":[{{"type":"GPU","id":1,"byte_size":9}}],"#,
                r#""slo_stats":{{"objective_ns":1,"in_time":2,"late":3,"given_up":4}}}}]}}"#
            ),
            zero
        );
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str(&json).ok(), Some(report.clone()));
        let message = pb::ModelStatisticsResponse::from(report.clone());
        assert_eq!(StatisticsReport::from(message), report);
    }
}
