//! Messages about servers and models, as the crate's types.

use skep_proto::inference::{
    self as pb, model_metadata_response::TensorMetadata as TensorMessage,
    repository_index_response::ModelIndex,
};
use skep_types::{DataType, Dims};

use crate::{
    BatchStatistics, DurationStatistic, IndexRow, InferenceStatistics, MemoryUsage, ModelMetadata,
    ModelStatistics, TensorMetadata,
};

pub(super) fn metadata(message: pb::ModelMetadataResponse) -> Result<ModelMetadata, String> {
    let tensors = |messages: Vec<TensorMessage>| -> Result<Vec<TensorMetadata>, String> {
        messages.into_iter().map(tensor).collect()
    };
    Ok(ModelMetadata {
        name: message.name,
        versions: message.versions,
        platform: message.platform,
        inputs: tensors(message.inputs)?,
        outputs: tensors(message.outputs)?,
    })
}

fn tensor(message: TensorMessage) -> Result<TensorMetadata, String> {
    let named = |reason: String| format!("tensor `{}`: {reason}", message.name);
    let datatype = DataType::from_protocol_name(&message.datatype);
    Ok(TensorMetadata {
        datatype: datatype.map_err(|error| named(error.to_string()))?,
        shape: Dims::new(&message.shape).map_err(|error| named(error.to_string()))?,
        name: message.name,
    })
}

pub(super) fn statistics(message: pb::ModelStatistics) -> ModelStatistics {
    let inference = message.inference_stats.unwrap_or_default();
    ModelStatistics {
        name: message.name,
        version: message.version,
        last_inference_ms: message.last_inference,
        inference_count: message.inference_count,
        execution_count: message.execution_count,
        inference: InferenceStatistics {
            success: duration(inference.success),
            fail: duration(inference.fail),
            queue: duration(inference.queue),
            compute_input: duration(inference.compute_input),
            compute_infer: duration(inference.compute_infer),
            compute_output: duration(inference.compute_output),
            cache_hit: duration(inference.cache_hit),
            cache_miss: duration(inference.cache_miss),
        },
        batches: message.batch_stats.iter().map(batch).collect(),
        memory: message.memory_usage.into_iter().map(memory).collect(),
    }
}

fn duration(message: Option<pb::StatisticDuration>) -> DurationStatistic {
    let message = message.unwrap_or_default();
    DurationStatistic {
        count: message.count,
        ns: message.ns,
    }
}

fn batch(message: &pb::InferBatchStatistics) -> BatchStatistics {
    BatchStatistics {
        batch_size: message.batch_size,
        compute_input: duration(message.compute_input),
        compute_infer: duration(message.compute_infer),
        compute_output: duration(message.compute_output),
    }
}

fn memory(message: pb::MemoryUsage) -> MemoryUsage {
    MemoryUsage {
        kind: message.r#type,
        id: message.id,
        byte_size: message.byte_size,
    }
}

pub(super) fn index_row(message: ModelIndex) -> IndexRow {
    IndexRow {
        name: message.name,
        version: message.version,
        state: message.state,
        reason: message.reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_metadata_is_refused() {
        let message = |datatype: &str, shape: Vec<i64>| pb::ModelMetadataResponse {
            inputs: vec![TensorMessage {
                name: "x".to_owned(),
                datatype: datatype.to_owned(),
                shape,
            }],
            ..Default::default()
        };
        assert!(metadata(message("FP32", vec![-1])).is_ok());
        assert!(metadata(message("FP31", vec![-1])).is_err());
        assert!(metadata(message("FP32", vec![-2])).is_err());
    }
}
