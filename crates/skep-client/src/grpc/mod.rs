//! gRPC: the calls of `inference.GRPCInferenceService`.

mod infer;

use std::{error::Error as _, sync::Arc};

use serde_json::Value;
use skep_proto::inference::{
    self as pb, grpc_inference_service_client::GrpcInferenceServiceClient,
};
use skep_types::ModelVersion;
use skep_wire::documents::{
    IndexRow, ModelMetadata, ModelStatistics, ServerMetadata, StatisticsReport,
};
use tonic::{
    Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use crate::{
    address::{Address, ClientOptions, Scheme, check_model},
    connect::Connector,
    error::{AnswerCode, Error, StatusMeaning, chain, root_cause},
    headers::Headers,
    infer::{InferRequest, InferResponse},
};

/// The beginnings of tonic's own texts for unreadable answers, which look like a server's status.
const UNREADABLE: [&str; 2] = [
    "failed to decode Protobuf message",
    "Missing response message",
];

/// As [`UNREADABLE`], for an answer over the limit.
const TOO_LARGE: &str = "Error, decoded message length too large";

/// Bytes of one answer that the server may send before they are read: with HTTP/2's default of 64 KiB a large tensor
/// would take many round trips.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;

/// The same over all answers of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// The generated client, which adds the headers to each call.
type GrpcService = GrpcInferenceServiceClient<InterceptedService<Channel, Headers>>;

/// A client over gRPC.
#[derive(Debug, Clone)]
pub struct GrpcClient {
    service: GrpcService,
    authority: Arc<str>,
    max_answer_bytes: usize,
}

impl GrpcClient {
    /// A client connected to the server at `grpc://host[:8001]` or `grpcs://host[:8001]`. If the connection is lost
    /// later, the next call connects again.
    ///
    /// # Errors
    /// Of kind `InvalidArgument` for any other URL, of kind `Connect` or `Handshake` if the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, &ClientOptions::default()).await
    }

    /// As [`GrpcClient::connect`], with the given options.
    ///
    /// # Errors
    /// As [`GrpcClient::connect`].
    pub async fn connect_with(url: &str, options: &ClientOptions) -> Result<Self, Error> {
        let address = Address::parse_as(url, Scheme::Grpc)?;
        let connector = Connector::new(&address, options, b"h2")?;
        let authority = address.authority.clone();
        let channel = Endpoint::from_shared(address.base())
            .map_err(|error| Error::invalid(error.to_string()))?
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .connect_timeout(options.connect_timeout)
            .connect_with_connector(connector)
            .await
            .map_err(|error| Error::connect(&authority, &error))?;
        let service =
            GrpcInferenceServiceClient::with_interceptor(channel, options.headers.clone())
                .max_decoding_message_size(options.max_answer_bytes)
                .max_encoding_message_size(usize::MAX);
        Ok(Self {
            service,
            authority,
            max_answer_bytes: options.max_answer_bytes,
        })
    }

    /// Whether the server is alive.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn live(&self) -> Result<bool, Error> {
        let answer = self.service().server_live(pb::ServerLiveRequest {}).await;
        Ok(self.answer(answer)?.live)
    }

    /// Whether the server is ready for inference.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn ready(&self) -> Result<bool, Error> {
        let answer = self.service().server_ready(pb::ServerReadyRequest {}).await;
        Ok(self.answer(answer)?.ready)
    }

    /// The server's metadata.
    ///
    /// # Errors
    /// Any kind.
    pub async fn server_metadata(&self) -> Result<ServerMetadata, Error> {
        let request = pb::ServerMetadataRequest {};
        let answer = self.answer(self.service().server_metadata(request).await)?;
        Ok(answer.into())
    }

    /// Whether a model is ready for inference; false for one that the server does not know.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn model_ready(
        &self,
        model: &str,
        version: Option<ModelVersion>,
    ) -> Result<bool, Error> {
        let (name, version) = named(model, version)?;
        let request = pb::ModelReadyRequest { name, version };
        match self.answer(self.service().model_ready(request).await) {
            Ok(answer) => Ok(answer.ready),
            Err(Error::Status { code, .. })
                if matches!(
                    code.meaning(),
                    StatusMeaning::NotFound | StatusMeaning::Unavailable
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// A model's metadata.
    ///
    /// # Errors
    /// Any kind.
    pub async fn model_metadata(
        &self,
        model: &str,
        version: Option<ModelVersion>,
    ) -> Result<ModelMetadata, Error> {
        let (name, version) = named(model, version)?;
        let request = pb::ModelMetadataRequest { name, version };
        let answer = self.answer(self.service().model_metadata(request).await)?;
        ModelMetadata::try_from(answer).map_err(|error| self.malformed(error.to_string()))
    }

    /// A model's configuration in its JSON form; see [`Client::model_config`](crate::Client::model_config).
    ///
    /// # Errors
    /// Any kind.
    pub async fn model_config(
        &self,
        model: &str,
        version: Option<ModelVersion>,
    ) -> Result<Value, Error> {
        let (name, version) = named(model, version)?;
        let request = pb::ModelConfigRequest { name, version };
        let answer = self.answer(self.service().model_config(request).await)?;
        let config = answer
            .config
            .ok_or_else(|| self.malformed("it holds no configuration"))?;
        serde_json::from_slice(&skep_wire::config::to_json(&config))
            .map_err(|error| self.malformed(error.to_string()))
    }

    /// The statistics of a model's versions or one of them, or of all models.
    ///
    /// # Errors
    /// Any kind; a version without a model is an invalid argument.
    pub async fn statistics(
        &self,
        model: Option<&str>,
        version: Option<ModelVersion>,
    ) -> Result<Vec<ModelStatistics>, Error> {
        let (name, version) = match (model, version) {
            (Some(model), version) => named(model, version)?,
            (None, None) => Default::default(),
            (None, Some(_)) => return Err(Error::invalid("a version without a model")),
        };
        let request = pb::ModelStatisticsRequest { name, version };
        let answer = self.answer(self.service().model_statistics(request).await)?;
        Ok(StatisticsReport::from(answer).versions)
    }

    /// The model repository's index: all models, or those that are ready.
    ///
    /// # Errors
    /// Any kind.
    pub async fn index(&self, ready_only: bool) -> Result<Vec<IndexRow>, Error> {
        let request = pb::RepositoryIndexRequest {
            ready: ready_only,
            ..Default::default()
        };
        let answer = self.answer(self.service().repository_index(request).await)?;
        Ok(answer.models.into_iter().map(IndexRow::from).collect())
    }

    /// Loads a model, or loads it again.
    ///
    /// # Errors
    /// Any kind.
    pub async fn load(&self, model: &str) -> Result<(), Error> {
        check_model(model)?;
        let request = pb::RepositoryModelLoadRequest {
            model_name: model.to_owned(),
            ..Default::default()
        };
        self.answer(self.service().repository_model_load(request).await)?;
        Ok(())
    }

    /// Unloads a model.
    ///
    /// # Errors
    /// Any kind.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        check_model(model)?;
        let request = pb::RepositoryModelUnloadRequest {
            model_name: model.to_owned(),
            ..Default::default()
        };
        self.answer(self.service().repository_model_unload(request).await)?;
        Ok(())
    }

    /// Runs an inference.
    ///
    /// # Errors
    /// Any kind.
    pub async fn infer(&self, request: &InferRequest) -> Result<InferResponse, Error> {
        check_model(&request.model)?;
        let message = infer::encode(request)?;
        let answer = self.answer(self.service().model_infer(message).await)?;
        infer::decode(answer).map_err(|reason| self.malformed(reason))
    }

    /// A handle for one call; handles share the connection.
    fn service(&self) -> GrpcService {
        self.service.clone()
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::protocol(&self.authority, reason)
    }

    fn answer<T>(&self, answer: Result<Response<T>, Status>) -> Result<T, Error> {
        answer
            .map(Response::into_inner)
            .map_err(|status| self.failure(&status))
    }

    /// Sorts statuses: the server's own, and those that tonic makes if no answer arrives.
    fn failure(&self, status: &Status) -> Error {
        if let Some(source) = status.source() {
            if chain(source).any(|error| error.is::<tonic::ConnectError>()) {
                return Error::connect(&self.authority, source);
            }
            let (address, reason) = (self.authority.to_string(), root_cause(source));
            return Error::Disconnected { address, reason };
        }
        if status.message().starts_with(TOO_LARGE) {
            return Error::too_large(&self.authority, self.max_answer_bytes);
        }
        if UNREADABLE.iter().any(|u| status.message().starts_with(u)) {
            return self.malformed(status.message());
        }
        Error::Status {
            code: AnswerCode::Grpc(status.code().into()),
            message: status.message().to_owned(),
        }
    }
}

/// Name and version in the form of messages.
fn named(model: &str, version: Option<ModelVersion>) -> Result<(String, String), Error> {
    check_model(model)?;
    let version = version.map_or_else(String::new, |version| version.to_string());
    Ok((model.to_owned(), version))
}
