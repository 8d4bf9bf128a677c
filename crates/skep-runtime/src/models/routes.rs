//! The routing table: which versions take requests. Read without a lock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use skep_types::{ModelName, ModelVersion};

use crate::{error::RuntimeError, repository::ModelId, serving::LoadedVersion};

/// The versions of one model that take requests, ascending.
pub(super) type VersionMap = BTreeMap<ModelVersion, Arc<LoadedVersion>>;

/// By name, the models that have it: one, unless names need not be unique.
pub(super) type RoutesByName = HashMap<ModelName, Vec<Route>>;

/// A model that takes requests.
#[derive(Debug, Clone)]
pub(super) struct Route {
    namespace: Option<Arc<str>>,
    versions: VersionMap,
}

/// The versions of all models that take requests.
#[derive(Debug, Default)]
pub(super) struct RoutingTable(ArcSwap<RoutesByName>);

impl RoutingTable {
    /// The version that a request names, or the latest one; `None` if it is not there.
    ///
    /// # Errors
    /// When several models have the name, or the version cannot be read.
    pub(super) fn find(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<Option<Arc<LoadedVersion>>, RuntimeError> {
        let routes = self.0.load();
        let versions = match routes.get(name).map(Vec::as_slice) {
            None | Some([]) => None,
            Some([route]) => Some(&route.versions),
            Some(several) => {
                return Err(RuntimeError::invalid(format!(
                    "There are {} identifiers of model '{name}' in global map, model namespace must be provided to resolve ambiguity.",
                    several.len()
                )));
            }
        };
        let requested = match version.filter(|text| !text.is_empty()) {
            None => RequestedVersion::Latest,
            Some(text) => requested_version(text)?,
        };
        let found = versions.and_then(|versions| match requested {
            RequestedVersion::Latest => versions.last_key_value().map(|(_, loaded)| loaded),
            RequestedVersion::Number(number) => versions.get(&ModelVersion::new(number).ok()?),
        });
        Ok(found.cloned())
    }

    /// The versions of a model.
    pub(super) fn versions_of(&self, id: &ModelId) -> VersionMap {
        let routes = self.0.load();
        let route = route(&routes, id);
        route
            .map(|route| route.versions.clone())
            .unwrap_or_default()
    }

    /// Acts on the versions of a model, if it has any.
    pub(super) fn with_versions_of<T>(
        &self,
        id: &ModelId,
        act: impl FnOnce(&VersionMap) -> T,
    ) -> Option<T> {
        let routes = self.0.load();
        route(&routes, id).map(|route| act(&route.versions))
    }

    /// The version numbers of all models of a name.
    pub(super) fn numbers(&self, name: &str) -> Vec<ModelVersion> {
        let routes = self.0.load();
        let models = routes.get(name).into_iter().flatten();
        models
            .flat_map(|route| route.versions.keys().copied())
            .collect()
    }

    /// All versions, by name, then by version and namespace.
    pub(super) fn all(&self) -> Vec<Arc<LoadedVersion>> {
        let routes = self.0.load();
        let versions = routes.values().flatten();
        let versions = versions.flat_map(|route| route.versions.values());
        let mut all: Vec<Arc<LoadedVersion>> = versions.cloned().collect();
        all.sort_by(|a, b| {
            let names = a.name().cmp(b.name());
            names
                .then_with(|| a.version().cmp(&b.version()))
                .then_with(|| a.namespace().cmp(&b.namespace()))
        });
        all
    }

    /// Replaces the versions of a model. The old table comes back, to be dropped without a lock. Call it only under the
    /// lock of the records, so that changes do not overtake each other.
    pub(super) fn replace(&self, id: &ModelId, versions: VersionMap) -> Arc<RoutesByName> {
        let mut routes = RoutesByName::clone(&self.0.load());
        let models = routes.entry(id.name.clone()).or_default();
        models.retain(|route| route.namespace != id.namespace);
        if !versions.is_empty() {
            models.push(Route {
                namespace: id.namespace.clone(),
                versions,
            });
        } else if models.is_empty() {
            routes.remove(&id.name);
        }
        self.0.swap(Arc::new(routes))
    }
}

fn route<'a>(routes: &'a RoutesByName, id: &ModelId) -> Option<&'a Route> {
    let mut models = routes.get(&id.name)?.iter();
    models.find(|route| route.namespace == id.namespace)
}

/// The version that a client names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestedVersion {
    /// `-1`.
    Latest,
    /// A number, which may be one that no version can have.
    Number(u64),
}

/// Reads a version as C's `stol` does, and therefore Triton: white space, a sign, digits. Further characters are
/// ignored, so that `1.0.0` is 1.
pub(super) fn requested_version(text: &str) -> Result<RequestedVersion, RuntimeError> {
    let number = text.trim_start_matches(|c| matches!(c, ' ' | '\t'..='\r'));
    let digits = number.strip_prefix(['-', '+']).unwrap_or(number);
    let digit_count = digits.chars().take_while(char::is_ascii_digit).count();
    let length = number.len() - digits.len() + digit_count;
    match number[..length].parse::<i64>() {
        Ok(-1) => Ok(RequestedVersion::Latest),
        Ok(number @ 0..) => Ok(RequestedVersion::Number(number.unsigned_abs())),
        _ => Err(RuntimeError::invalid(format!(
            "failed to get model version from specified version string '{text}' (details: stol), version should be an integral value > 0"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_like_stol() {
        for (text, expected) in [
            ("1", Some(RequestedVersion::Number(1))),
            ("007", Some(RequestedVersion::Number(7))),
            ("1.0.0", Some(RequestedVersion::Number(1))),
            (" 1", Some(RequestedVersion::Number(1))),
            ("\t\n\x0b\x0c\r+2 ", Some(RequestedVersion::Number(2))),
            ("3rd", Some(RequestedVersion::Number(3))),
            ("0", Some(RequestedVersion::Number(0))),
            ("-0", Some(RequestedVersion::Number(0))),
            (
                "9223372036854775807",
                Some(RequestedVersion::Number(i64::MAX.unsigned_abs())),
            ),
            ("-1", Some(RequestedVersion::Latest)),
            (" -1.0", Some(RequestedVersion::Latest)),
            ("9223372036854775808", None),
            ("-2", None),
            ("--1", None),
            ("+-1", None),
            ("- 1", None),
            ("v1", None),
            (".5", None),
            (" ", None),
            ("\u{a0}1", None),
            ("\u{661}", None),
        ] {
            assert_eq!(requested_version(text).ok(), expected, "{text:?}");
        }
    }
}
