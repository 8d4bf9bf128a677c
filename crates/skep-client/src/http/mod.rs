//! HTTP: each call is a method and a path.

mod decode;
mod encode;
mod transport;

use std::fmt::Write;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde::de::DeserializeOwned;
use serde_json::Value;
use skep_types::ModelVersion;
use skep_wire::documents::{
    IndexRow, ModelMetadata, ModelStatistics, ResidencyStatus, ServerMetadata, StatisticsReport,
};

use self::{
    encode::EncodedRequest,
    transport::{HttpReply, HttpTransport},
};
use crate::{
    address::{Address, ClientOptions, Scheme, check_model},
    error::{AnswerCode, Error},
    infer::{InferRequest, InferResponse},
};

/// A client over HTTP/1.1.
#[derive(Debug, Clone)]
pub struct HttpClient {
    transport: HttpTransport,
}

impl HttpClient {
    /// A client of the server at `http://host[:8000]` or `https://host[:8000]`; the first call connects.
    ///
    /// # Errors
    /// Of kind `InvalidArgument` for any other URL.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::with_options(url, &ClientOptions::default())
    }

    /// As [`HttpClient::new`], with the given options.
    ///
    /// # Errors
    /// As [`HttpClient::new`].
    pub fn with_options(url: &str, options: &ClientOptions) -> Result<Self, Error> {
        let address = Address::parse_as(url, Scheme::Http)?;
        Ok(Self {
            transport: HttpTransport::new(&address, options)?,
        })
    }

    /// Whether the server is alive.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn live(&self) -> Result<bool, Error> {
        self.health("/v2/health/live").await
    }

    /// Whether the server is ready for inference.
    ///
    /// # Errors
    /// Where the server could not be asked.
    pub async fn ready(&self) -> Result<bool, Error> {
        self.health("/v2/health/ready").await
    }

    async fn health(&self, path: &str) -> Result<bool, Error> {
        let answer = self.get(path).await?;
        match answer.status {
            // Triton answers 400 if something is not ready; proxies and other servers answer 503.
            StatusCode::BAD_REQUEST | StatusCode::SERVICE_UNAVAILABLE => Ok(false),
            _ => answer.checked().map(|_| true),
        }
    }

    /// The server's metadata.
    ///
    /// # Errors
    /// Any kind.
    pub async fn server_metadata(&self) -> Result<ServerMetadata, Error> {
        self.json(self.get("/v2").await?)
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
        let path = model_path(model, version, "/ready")?;
        match self.health(&path).await {
            Err(Error::Status { code, .. })
                if code == AnswerCode::Http(StatusCode::NOT_FOUND.as_u16()) =>
            {
                Ok(false)
            }
            other => other,
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
        self.json(self.get(&model_path(model, version, "")?).await?)
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
        self.json(self.get(&model_path(model, version, "/config")?).await?)
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
        let path = match (model, version) {
            (Some(model), version) => model_path(model, version, "/stats")?,
            (None, None) => "/v2/models/stats".to_owned(),
            (None, Some(_)) => return Err(Error::invalid("a version without a model")),
        };
        let report: StatisticsReport = self.json(self.get(&path).await?)?;
        Ok(report.versions)
    }

    /// Which models are in memory, and why; with the models in these states, or all of them.
    ///
    /// # Errors
    /// Any kind.
    pub async fn residency(
        &self,
        states: &[String],
        with_tensors: bool,
    ) -> Result<ResidencyStatus, Error> {
        let states: Vec<String> = states.iter().map(|state| escaped(state)).collect();
        let states = states.join(",");
        let path = format!("/v2/skep/residency?state={states}&tensors={with_tensors}");
        self.json(self.get(&path).await?)
    }

    /// The model repository's index: all models, or those that are ready.
    ///
    /// # Errors
    /// Any kind.
    pub async fn index(&self, ready_only: bool) -> Result<Vec<IndexRow>, Error> {
        let body = format!("{{\"ready\":{ready_only}}}");
        self.json(self.post("/v2/repository/index", body).await?)
    }

    /// Loads a model, or loads it again.
    ///
    /// # Errors
    /// Any kind.
    pub async fn load(&self, model: &str) -> Result<(), Error> {
        self.repository(model, "load", "{}".to_owned()).await
    }

    /// Loads a model with this configuration, in JSON, instead of its own.
    ///
    /// # Errors
    /// Any kind.
    pub async fn load_with_config(&self, model: &str, config: &str) -> Result<(), Error> {
        let body = serde_json::json!({ "parameters": { "config": config } });
        self.repository(model, "load", body.to_string()).await
    }

    /// Unloads a model.
    ///
    /// # Errors
    /// Any kind.
    pub async fn unload(&self, model: &str) -> Result<(), Error> {
        self.repository(model, "unload", "{}".to_owned()).await
    }

    async fn repository(&self, model: &str, verb: &str, body: String) -> Result<(), Error> {
        check_model(model)?;
        let path = format!("/v2/repository/models/{}/{verb}", escaped(model));
        self.post(&path, body).await?.checked()?;
        Ok(())
    }

    /// Runs an inference.
    ///
    /// # Errors
    /// Any kind.
    pub async fn infer(&self, request: &InferRequest) -> Result<InferResponse, Error> {
        let path = model_path(&request.model, request.version, "/infer")?;
        let body = encode::encode(request)?;
        let answer = self.transport.send(Method::POST, &path, body).await?;
        let header_length = answer.header_length.clone();
        let body = answer.checked()?;
        decode::decode(&body, header_length.as_ref())
            .map_err(|reason| Error::protocol(self.transport.address(), reason))
    }

    async fn get(&self, path: &str) -> Result<HttpReply, Error> {
        self.transport
            .send(Method::GET, path, EncodedRequest::default())
            .await
    }

    async fn post(&self, path: &str, json: String) -> Result<HttpReply, Error> {
        let body = EncodedRequest::json(Bytes::from(json));
        self.transport.send(Method::POST, path, body).await
    }

    fn json<T: DeserializeOwned>(&self, answer: HttpReply) -> Result<T, Error> {
        let body = answer.checked()?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::protocol(self.transport.address(), error.to_string()))
    }
}

fn model_path(model: &str, version: Option<ModelVersion>, call: &str) -> Result<String, Error> {
    check_model(model)?;
    let version = version.map_or_else(String::new, |version| format!("/versions/{version}"));
    Ok(format!("/v2/models/{}{version}{call}", escaped(model)))
}

/// A segment of a path: all but RFC 3986's unreserved characters percent-encoded.
fn escaped(segment: &str) -> String {
    let mut path = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a `String` cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_one_path_segment() {
        assert_eq!(
            model_path("modèle 1?x#%", Some(ModelVersion::ONE), "/infer").as_deref(),
            Ok("/v2/models/mod%C3%A8le%201%3Fx%23%25/versions/1/infer")
        );
        for bad in ["", "..", "a/b"] {
            assert!(model_path(bad, None, "").is_err(), "{bad:?}");
        }
    }
}
