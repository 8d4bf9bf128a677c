//! Client of the Open Inference Protocol with Triton's extensions, over HTTP and gRPC.
//!
//! [`HttpClient`] and [`GrpcClient`] have the same methods and return the same types; [`Client`] is either, picked by
//! the scheme of a URL: `http://host:8000`, `grpc://host:8001`, and over TLS `https://`, `grpcs://`. A client is cheap to clone, keeps its connections and
//! serves any number of calls at once.
//!
//! ```no_run
//! # async fn example(image: skep_tensor::Tensor) -> Result<(), skep_client::Error> {
//! use skep_client::{Client, InferRequest};
//!
//! let client = Client::connect("grpc://localhost").await?;
//! let mut request = InferRequest::new("digits");
//! request.inputs.push(("image".to_owned(), image));
//! let response = client.infer(&request).await?;
//! println!("{:?}", response.output("scores"));
//! # Ok(())
//! # }
//! ```
//!
//! What a server sends is not trusted: an answer is bounded in size, and one that contradicts itself is an
//! [`Error::Protocol`]. Nothing is retried. A call has no time limit: dropping its future ends it.

mod address;
mod client;
mod connect;
mod error;
mod grpc;
mod headers;
mod http;
mod infer;
mod tls;

pub use address::ClientOptions;
pub use client::Client;
pub use error::{AnswerCode, Error, ErrorKind, StatusMeaning};
pub use grpc::GrpcClient;
pub use headers::Headers;
pub use http::HttpClient;
pub use infer::{Encoding, InferRequest, InferResponse, ParameterValue, WantedOutput};
pub use skep_wire::documents::{
    BatchSizeStatistics, ConfigurationRow, CountedDuration, DecisionRow, DeviceMemory, DeviceRow,
    IndexRow, InferenceStatistics, ModelMetadata, ModelStatistics, ModelStatus,
    ObjectiveStatistics, ResidencyMemory, ResidencyStatus, ResponseStatistics, SequenceStatistics,
    ServerMetadata, TensorMetadata, TensorRow,
};
pub use tls::ClientTls;
