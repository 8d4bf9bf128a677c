//! Either client behind one type.

use serde_json::Value;
use skep_types::ModelVersion;
use skep_wire::documents::{IndexRow, ModelMetadata, ModelStatistics, ServerMetadata};

use crate::{
    address::{Address, ClientOptions, Scheme},
    error::Error,
    grpc::GrpcClient,
    http::HttpClient,
    infer::{InferRequest, InferResponse},
};

/// A client of the protocol that a URL's scheme names.
#[derive(Debug, Clone)]
pub enum Client {
    /// `http://`, `https://`.
    Http(HttpClient),
    /// `grpc://`, `grpcs://`.
    Grpc(GrpcClient),
}

/// The same call on either client.
macro_rules! either {
    ($self:ident, $client:ident => $call:expr) => {
        match $self {
            Self::Http($client) => $call.await,
            Self::Grpc($client) => $call.await,
        }
    };
}

impl Client {
    /// A client of the server at a URL: `http://host[:8000]` or `grpc://host[:8001]`, encrypted `https://` or
    /// `grpcs://`.
    ///
    /// # Errors
    /// Of kind `InvalidArgument` for any other URL; of kind `Connect` or `Handshake` if a gRPC server cannot be reached
    /// (over HTTP the first call fails instead).
    pub async fn connect(url: &str) -> Result<Self, Error> {
        Self::connect_with(url, &ClientOptions::default()).await
    }

    /// As [`Client::connect`], with the given options.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_with(url: &str, options: &ClientOptions) -> Result<Self, Error> {
        match Address::parse(url)?.scheme {
            Scheme::Http => HttpClient::with_options(url, options).map(Self::Http),
            Scheme::Grpc => GrpcClient::connect_with(url, options).await.map(Self::Grpc),
        }
    }

    /// Whether the server is alive.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn live(&self) -> Result<bool, Error> {
        either!(self, client => client.live())
    }

    /// Whether the server is ready for inference.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn ready(&self) -> Result<bool, Error> {
        either!(self, client => client.ready())
    }

    /// The server's metadata.
    ///
    /// # Errors
    /// Any kind.
    pub async fn server_metadata(&self) -> Result<ServerMetadata, Error> {
        either!(self, client => client.server_metadata())
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
        either!(self, client => client.model_ready(model, version))
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
        either!(self, client => client.model_metadata(model, version))
    }

    /// A model's configuration in its JSON form: the fields of `config.pbtxt` by name, enums by name, numbers as
    /// numbers.
    ///
    /// # Errors
    /// Any kind.
    pub async fn model_config(
        &self,
        model: &str,
        version: Option<ModelVersion>,
    ) -> Result<Value, Error> {
        either!(self, client => client.model_config(model, version))
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
        either!(self, client => client.statistics(model, version))
    }

    /// The model repository's index: all models, or those that are ready.
    ///
    /// # Errors
    /// Any kind.
    pub async fn index(&self, ready_only: bool) -> Result<Vec<IndexRow>, Error> {
        either!(self, client => client.index(ready_only))
    }

    /// Loads a model, or loads it again.
    ///
    /// # Errors
    /// Any kind.
    pub async fn load(&self, model: &str) -> Result<(), Error> {
        either!(self, client => client.load(model))
    }

    /// Unloads a model.
    ///
    /// # Errors
    /// Any kind.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        either!(self, client => client.unload(model))
    }

    /// Runs an inference.
    ///
    /// # Errors
    /// Any kind.
    pub async fn infer(&self, request: &InferRequest) -> Result<InferResponse, Error> {
        either!(self, client => client.infer(request))
    }
}
