//! Parameters of load and unload requests in messages.
//!
//! Source of the texts: Triton 2.51.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use prost::Message;
use skep_proto::inference::{
    ModelRepositoryParameter, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    model_repository_parameter::ParameterChoice,
};
use skep_runtime::LoadOverrides;
use skep_tensor::Charge;
use tonic::Status;

use super::scan::{self, ScanFault};
use crate::{
    error::ApiError,
    management::repository::{self as management, FILE_PREFIX, UnloadTerms},
    state::ServerState,
};

/// Loads a model as a message asks; `charge` counts the bytes of the call.
pub(super) async fn load(
    state: &ServerState,
    message: Bytes,
    charge: &Arc<Charge>,
) -> Result<RepositoryModelLoadResponse, Status> {
    let needs = scan::load_request(&message).map_err(|fault| match fault {
        ScanFault::TooMany { .. } => Status::invalid_argument(fault.to_string()),
        ScanFault::Long | ScanFault::Malformed => Status::internal(fault.to_string()),
    })?;
    charge.add(needs.bytes()).map_err(ApiError::from)?;
    let request = RepositoryModelLoadRequest::decode(message)
        .map_err(|error| Status::internal(error.to_string()))?;
    refuse_named(&request.repository_name)?;
    let overrides = LoadOverrides {
        charge: Some(Arc::clone(charge)),
        ..overrides(request.parameters)?
    };
    let loaded = state.runtime.request_load(&request.model_name, overrides);
    loaded.await.map_err(ApiError::from)?;
    Ok(RepositoryModelLoadResponse {})
}

/// Refuses a request that names a repository.
pub(super) fn refuse_named(repository: &str) -> Result<(), ApiError> {
    if repository.is_empty() {
        Ok(())
    } else {
        Err(management::named_repository())
    }
}

fn wrong_kind(key: &str, expected: &str) -> ApiError {
    ApiError::invalid(format!(
        "invalid value type for load parameter '{key}', expected {expected}."
    ))
}

/// The overrides in a load request's parameters.
pub(super) fn overrides(
    parameters: BTreeMap<String, ModelRepositoryParameter>,
) -> Result<LoadOverrides, ApiError> {
    let mut overrides = LoadOverrides::default();
    for (key, parameter) in parameters {
        let choice = parameter.parameter_choice;
        if key == management::CONFIG {
            let Some(ParameterChoice::StringParam(text)) = choice else {
                return Err(wrong_kind(&key, "string_param"));
            };
            overrides.config = Some(text);
        } else if let Some(path) = key.strip_prefix(FILE_PREFIX) {
            let Some(ParameterChoice::BytesParam(data)) = choice else {
                return Err(wrong_kind(&key, "bytes_param"));
            };
            overrides.files.push((path.to_owned(), data));
        } else {
            return Err(management::unrecognized_load_parameter(&key));
        }
    }
    Ok(overrides)
}

/// Reads the parameters of an unload request.
pub(super) fn unload_terms(
    parameters: &BTreeMap<String, ModelRepositoryParameter>,
) -> Result<UnloadTerms, ApiError> {
    let mut terms = UnloadTerms::default();
    for (key, parameter) in parameters {
        let value = match &parameter.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Some(*value),
            _ => None,
        };
        terms.read(key, value)?;
    }
    Ok(terms)
}
