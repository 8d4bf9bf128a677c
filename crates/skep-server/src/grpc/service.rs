//! The management calls of the inference service, answered by [`crate::management`].

use std::sync::Arc;

use futures_util::stream::Empty;
use skep_proto::inference::{self as pb, grpc_inference_service_server::GrpcInferenceService};
use skep_runtime::{LoadedVersion, RuntimeError};
use skep_wire::documents::SystemRegion;
use tonic::{Request, Response, Status};

use super::{logging, repository, traces};
use crate::{
    error::ApiError,
    management::{self, metadata, shared_memory, statistics},
    state::ServerState,
};

type GrpcReply<T> = Result<Response<T>, Status>;

pub(super) struct InferenceService {
    state: Arc<ServerState>,
}

impl InferenceService {
    pub(super) const fn new(state: Arc<ServerState>) -> Self {
        Self { state }
    }

    async fn acquire(&self, name: &str, version: &str) -> Result<Arc<LoadedVersion>, Status> {
        let acquired = self.state.runtime.acquire(name, Some(version), None).await;
        acquired.map_err(status)
    }
}

fn status(error: RuntimeError) -> Status {
    ApiError::from(error).into()
}

/// The answer of calls that [`super::calls`] handles before they get here.
fn answered_elsewhere() -> Status {
    Status::internal("this call must be answered before it reaches the service")
}

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    async fn server_live(
        &self,
        _: Request<pb::ServerLiveRequest>,
    ) -> GrpcReply<pb::ServerLiveResponse> {
        Ok(Response::new(pb::ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<pb::ServerReadyRequest>,
    ) -> GrpcReply<pb::ServerReadyResponse> {
        Ok(Response::new(pb::ServerReadyResponse {
            ready: self.state.runtime.is_ready(),
        }))
    }

    async fn model_ready(
        &self,
        request: Request<pb::ModelReadyRequest>,
    ) -> GrpcReply<pb::ModelReadyResponse> {
        let request = request.into_inner();
        // An invalid version is an error; a version that does not exist is not ready.
        let runtime = &self.state.runtime;
        let ready = runtime.is_model_ready(&request.name, Some(&request.version));
        let ready = ready.map_err(status)?;
        Ok(Response::new(pb::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<pb::ServerMetadataRequest>,
    ) -> GrpcReply<pb::ServerMetadataResponse> {
        let metadata = metadata::of_server(&self.state);
        Ok(Response::new(metadata.into()))
    }

    async fn model_metadata(
        &self,
        request: Request<pb::ModelMetadataRequest>,
    ) -> GrpcReply<pb::ModelMetadataResponse> {
        let request = request.into_inner();
        let version = Some(request.version.as_str());
        let metadata = metadata::of_model(&self.state.runtime, &request.name, version).await?;
        Ok(Response::new(metadata.into()))
    }

    async fn model_infer(
        &self,
        _: Request<pb::ModelInferRequest>,
    ) -> GrpcReply<pb::ModelInferResponse> {
        Err(answered_elsewhere())
    }

    type ModelStreamInferStream = Empty<Result<pb::ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        _: Request<tonic::Streaming<pb::ModelInferRequest>>,
    ) -> GrpcReply<Self::ModelStreamInferStream> {
        Err(answered_elsewhere())
    }

    async fn model_config(
        &self,
        request: Request<pb::ModelConfigRequest>,
    ) -> GrpcReply<pb::ModelConfigResponse> {
        let request = request.into_inner();
        let loaded = self.acquire(&request.name, &request.version).await?;
        Ok(Response::new(pb::ModelConfigResponse {
            config: Some(loaded.config().proto().clone()),
        }))
    }

    async fn model_statistics(
        &self,
        request: Request<pb::ModelStatisticsRequest>,
    ) -> GrpcReply<pb::ModelStatisticsResponse> {
        let request = request.into_inner();
        let runtime = &self.state.runtime;
        let report = match request.name.as_str() {
            "" => statistics::of_all(runtime),
            model => statistics::of_model(runtime, model, Some(&request.version))?,
        };
        Ok(Response::new(report.into()))
    }

    async fn repository_index(
        &self,
        request: Request<pb::RepositoryIndexRequest>,
    ) -> GrpcReply<pb::RepositoryIndexResponse> {
        let request = request.into_inner();
        repository::refuse_named(&request.repository_name)?;
        let index = management::repository::index(&self.state.runtime, request.ready).await?;
        Ok(Response::new(pb::RepositoryIndexResponse {
            models: index.into_iter().map(Into::into).collect(),
        }))
    }

    async fn repository_model_load(
        &self,
        _: Request<pb::RepositoryModelLoadRequest>,
    ) -> GrpcReply<pb::RepositoryModelLoadResponse> {
        Err(answered_elsewhere())
    }

    async fn repository_model_unload(
        &self,
        request: Request<pb::RepositoryModelUnloadRequest>,
    ) -> GrpcReply<pb::RepositoryModelUnloadResponse> {
        let request = request.into_inner();
        repository::refuse_named(&request.repository_name)?;
        let terms = repository::unload_terms(&request.parameters)?;
        let runtime = &self.state.runtime;
        let unloading = runtime.request_unload(&request.model_name, terms.dependents);
        let unloaded = unloading.await;
        unloaded.map_err(ApiError::from)?;
        Ok(Response::new(pb::RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<pb::SystemSharedMemoryStatusRequest>,
    ) -> GrpcReply<pb::SystemSharedMemoryStatusResponse> {
        let name = request.into_inner().name;
        let regions = shared_memory::system_status(&self.state, &name)?;
        Ok(Response::new(pb::SystemSharedMemoryStatusResponse {
            regions: regions
                .into_iter()
                .map(|region| (region.name.clone(), region.into()))
                .collect(),
        }))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<pb::SystemSharedMemoryRegisterRequest>,
    ) -> GrpcReply<pb::SystemSharedMemoryRegisterResponse> {
        let request = request.into_inner();
        let region = SystemRegion {
            name: request.name,
            key: request.key,
            offset: request.offset,
            byte_size: request.byte_size,
        };
        shared_memory::system_register(&self.state, &region)?;
        Ok(Response::new(pb::SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<pb::SystemSharedMemoryUnregisterRequest>,
    ) -> GrpcReply<pb::SystemSharedMemoryUnregisterResponse> {
        shared_memory::system_unregister(&self.state, &request.into_inner().name)?;
        Ok(Response::new(pb::SystemSharedMemoryUnregisterResponse {}))
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<pb::CudaSharedMemoryStatusRequest>,
    ) -> GrpcReply<pb::CudaSharedMemoryStatusResponse> {
        shared_memory::cuda_status(&self.state, &request.into_inner().name)?;
        Ok(Response::new(pb::CudaSharedMemoryStatusResponse::default()))
    }

    async fn cuda_shared_memory_register(
        &self,
        request: Request<pb::CudaSharedMemoryRegisterRequest>,
    ) -> GrpcReply<pb::CudaSharedMemoryRegisterResponse> {
        Err(shared_memory::cuda_register(&self.state, &request.into_inner().name).into())
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<pb::CudaSharedMemoryUnregisterRequest>,
    ) -> GrpcReply<pb::CudaSharedMemoryUnregisterResponse> {
        shared_memory::cuda_unregister(&self.state)?;
        Ok(Response::new(pb::CudaSharedMemoryUnregisterResponse {}))
    }

    async fn trace_setting(
        &self,
        request: Request<pb::TraceSettingRequest>,
    ) -> GrpcReply<pb::TraceSettingResponse> {
        let request = request.into_inner();
        let model = request.model_name.as_str();
        let target = (!model.is_empty()).then_some((model, None));
        let state = &self.state;
        let shown = match traces::decode(state, request.settings)? {
            Some(change) => management::traces::change(state, target, change).await?,
            None => management::traces::show(state, target)?,
        };
        Ok(Response::new(traces::encode(shown)))
    }

    async fn log_settings(
        &self,
        request: Request<pb::LogSettingsRequest>,
    ) -> GrpcReply<pb::LogSettingsResponse> {
        let change = logging::decode(request.into_inner())?;
        let settings = change.apply(&*self.state.logs, "log_format")?;
        Ok(Response::new(logging::encode(settings)))
    }
}
