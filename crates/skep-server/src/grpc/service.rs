//! The service's calls.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::stream::Empty;
use skep_proto::inference::{
    self as pb, grpc_inference_service_server::GrpcInferenceService,
    model_metadata_response::TensorMetadata, repository_index_response::ModelIndex,
};
use skep_runtime::{DurationStatistic, LoadedVersion, RuntimeError};
use tonic::{Request, Response, Status};

use super::{logging, repository};
use crate::{api, error::ApiError, server::Shared};

type Reply<T> = Result<Response<T>, Status>;

pub(super) struct Service {
    shared: Arc<Shared>,
}

impl Service {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn resolve(&self, name: &str, version: &str) -> Result<Arc<LoadedVersion>, Status> {
        self.shared
            .runtime
            .resolve(name, Some(version))
            .map_err(status)
    }
}

fn status(error: RuntimeError) -> Status {
    ApiError::from(error).into()
}

fn unsupported(what: &str) -> Status {
    ApiError::unsupported(what).into()
}

/// Of calls that [`super::calls`] answers before they come here.
fn answered_elsewhere() -> Status {
    Status::internal("this call was to be answered before it came to the service")
}

pub(super) fn refuse_named_repository(name: &str) -> Result<(), Status> {
    if name.is_empty() {
        return Ok(());
    }
    Err(Status::unimplemented(
        "'repository_name' specification is not supported",
    ))
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> Reply<pb::ServerLiveResponse> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> Reply<pb::ServerReadyResponse> {
        Ok(Response::new(pb::ServerReadyResponse {
            ready: self.shared.runtime.is_ready(),
        }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> Reply<pb::ModelReadyResponse> {
        let request = request.into_inner();
        let ready = match self.resolve(&request.name, &request.version) {
            Ok(loaded) => loaded.is_healthy(),
            // A version that is none is an error, one that is not there is not ready.
            Err(error) if error.code() == tonic::Code::InvalidArgument => return Err(error),
            Err(_) => false,
        };
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> Reply<pb::ServerMetadataResponse> {
        Ok(Response::new(pb::ServerMetadataResponse {
            name: self.shared.server_name.clone(),
            version: api::PROTOCOL_VERSION.to_owned(),
            extensions: api::EXTENSIONS.iter().map(ToString::to_string).collect(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> Reply<pb::ModelMetadataResponse> {
        let request = request.into_inner();
        let loaded = self.resolve(&request.name, &request.version)?;
        let metadata = api::metadata(&self.shared.runtime, &loaded, Some(&request.version));
        let tensors = |tensors: Vec<api::TensorMetadata>| {
            let tensor = |t: api::TensorMetadata| TensorMetadata {
                name: t.name,
                datatype: t.datatype.protocol_name().to_owned(),
                shape: t.shape,
            };
            tensors.into_iter().map(tensor).collect()
        };
        Ok(Response::new(pb::ModelMetadataResponse {
            name: metadata.name,
            versions: metadata.versions,
            platform: metadata.platform,
            inputs: tensors(metadata.inputs),
            outputs: tensors(metadata.outputs),
        }))
    }

    async fn model_infer(
        &self,
        _: Request<pb::ModelInferRequest>,
    ) -> Reply<pb::ModelInferResponse> {
        Err(answered_elsewhere())
    }

    type ModelStreamInferStream = Empty<Result<pb::ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        _: Request<tonic::Streaming<pb::ModelInferRequest>>,
    ) -> Reply<Self::ModelStreamInferStream> {
        Err(answered_elsewhere())
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> Reply<pb::ModelConfigResponse> {
        let request = request.into_inner();
        let loaded = self.resolve(&request.name, &request.version)?;
        Ok(Response::new(pb::ModelConfigResponse {
            config: Some(loaded.config().proto().clone()),
        }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> Reply<pb::ModelStatisticsResponse> {
        let request = request.into_inner();
        let mut versions = self.shared.runtime.loaded();
        if !request.name.is_empty() {
            let chosen = self
                .shared
                .runtime
                .resolve(&request.name, Some(&request.version))
                .map_err(|error| api::no_statistics(&self.shared.runtime, &request.name, error))?;
            versions.retain(|loaded| {
                loaded.name() == chosen.name()
                    && (request.version.is_empty() || loaded.version() == chosen.version())
            });
        }
        let model_stats = versions.iter().map(|loaded| statistics(loaded)).collect();
        Ok(Response::new(pb::ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> Reply<pb::RepositoryIndexResponse> {
        let request = request.into_inner();
        refuse_named_repository(&request.repository_name)?;
        let index = self.shared.runtime.request_index(request.ready).await;
        let rows = index.map_err(ApiError::from)?;
        let models = rows
            .iter()
            .map(|row| ModelIndex {
                name: row.name.to_string(),
                version: row.version.map(|v| v.to_string()).unwrap_or_default(),
                state: row.state.map(|s| s.name().to_owned()).unwrap_or_default(),
                reason: row.reason.clone(),
            })
            .collect();
        Ok(Response::new(pb::RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        _: Request<pb::RepositoryModelLoadRequest>,
    ) -> Reply<pb::RepositoryModelLoadResponse> {
        Err(answered_elsewhere())
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> Reply<pb::RepositoryModelUnloadResponse> {
        let request = request.into_inner();
        refuse_named_repository(&request.repository_name)?;
        repository::check_unload(&request.parameters)?;
        let runtime = &self.shared.runtime;
        let unloaded = runtime.request_unload(&request.model_name).await;
        unloaded.map_err(ApiError::from)?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> Reply<pb::SystemSharedMemoryStatusResponse> {
        Err(unsupported("shared memory"))
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> Reply<pb::SystemSharedMemoryRegisterResponse> {
        Err(unsupported("shared memory"))
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> Reply<pb::SystemSharedMemoryUnregisterResponse> {
        Err(unsupported("shared memory"))
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> Reply<pb::CudaSharedMemoryStatusResponse> {
        Err(unsupported("shared memory"))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> Reply<pb::CudaSharedMemoryRegisterResponse> {
        Err(unsupported("shared memory"))
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> Reply<pb::CudaSharedMemoryUnregisterResponse> {
        Err(unsupported("shared memory"))
    }

    async fn trace_setting(
        &self,
        _: Request<pb::TraceSettingRequest>,
    ) -> Reply<pb::TraceSettingResponse> {
        Err(unsupported("tracing"))
    }

    async fn log_settings(
        &self,
        request: Request<pb::LogSettingsRequest>,
    ) -> Reply<pb::LogSettingsResponse> {
        let change = logging::decode(request.into_inner())?;
        let settings = change.apply(&*self.shared.logs, "log_format")?;
        Ok(Response::new(logging::encode(settings)))
    }
}

fn statistics(loaded: &LoadedVersion) -> pb::ModelStatistics {
    let figures = loaded.statistics();
    pb::ModelStatistics {
        name: loaded.name().to_string(),
        version: loaded.version().to_string(),
        last_inference: figures.last_inference_ms,
        inference_count: figures.inference_count,
        execution_count: figures.execution_count,
        inference_stats: Some(pb::InferStatistics {
            success: duration(figures.success),
            fail: duration(figures.fail),
            queue: duration(figures.queue),
            compute_input: duration(figures.compute_input),
            compute_infer: duration(figures.compute_infer),
            compute_output: duration(figures.compute_output),
            cache_hit: duration(DurationStatistic::default()),
            cache_miss: duration(DurationStatistic::default()),
        }),
        batch_stats: figures
            .batches
            .iter()
            .map(|(size, batch)| pb::InferBatchStatistics {
                batch_size: *size as u64,
                compute_input: duration(batch.compute_input),
                compute_infer: duration(batch.compute_infer),
                compute_output: duration(batch.compute_output),
            })
            .collect(),
        memory_usage: Vec::new(),
        response_stats: BTreeMap::new(),
        slo_stats: figures.slo.map(|slo| pb::SloStatistics {
            objective_ns: slo.objective_ns(),
            in_time: slo.in_time,
            late: slo.late,
            given_up: slo.given_up,
        }),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "message fields are optional")]
fn duration(statistic: DurationStatistic) -> Option<pb::StatisticDuration> {
    Some(pb::StatisticDuration {
        count: statistic.count,
        ns: statistic.ns,
    })
}
