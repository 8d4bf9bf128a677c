//! Restricted groups of calls: each asks for a header with a value that only some clients know.
//!
//! The check is put before the routes of a restricted group when the server starts; any other route, and a server
//! without restrictions, does not know of it. Source: Triton, "Limit Endpoint Access", and answers of a Triton 2.51.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use axum::{
    extract::{Request, State},
    handler::Handler,
    middleware::{self, Next},
    response::Response,
    routing::MethodRouter,
};
use constant_time_eq::constant_time_eq;
use futures_util::future::Either;
use http::{HeaderMap, HeaderName, StatusCode};
use tonic::{Status, server::NamedService};
use tower::Service;

use crate::{
    error::{PLAIN, error_response},
    verbose,
};

/// What may be restricted, by Triton's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CallGroup {
    Health,
    Metadata,
    Inference,
    SharedMemory,
    ModelConfig,
    ModelRepository,
    Statistics,
    Trace,
    Logging,
}

impl CallGroup {
    const NAMES: [(&str, Self); 9] = [
        ("health", Self::Health),
        ("metadata", Self::Metadata),
        ("inference", Self::Inference),
        ("state-memory", Self::SharedMemory),
        ("model-config", Self::ModelConfig),
        ("model-repository", Self::ModelRepository),
        ("statistics", Self::Statistics),
        ("trace", Self::Trace),
        ("logging", Self::Logging),
    ];

    fn named(name: &str) -> Option<Self> {
        let mut names = Self::NAMES.iter();
        names
            .find(|(known, _)| *known == name)
            .map(|(_, group)| *group)
    }

    fn name(self) -> &'static str {
        let mut names = Self::NAMES.iter();
        names
            .find(|(_, group)| *group == self)
            .map_or("", |(name, _)| name)
    }

    /// The group of an HTTP route; `None` for what is no call of the protocol.
    pub(crate) fn of_route(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix("/v2")?.split('/').skip(1);
        match segments.next() {
            None | Some("") => Some(Self::Metadata),
            Some("health") => Some(Self::Health),
            Some("repository") => Some(Self::ModelRepository),
            Some("logging") => Some(Self::Logging),
            Some("trace") => Some(Self::Trace),
            Some("systemsharedmemory" | "cudasharedmemory") => Some(Self::SharedMemory),
            Some("models") => match (segments.next()?, segments.next(), segments.nth(1)) {
                ("stats", None, _) => Some(Self::Statistics),
                (_, Some("versions"), action) | (_, action, _) => Self::of_model_action(action),
            },
            Some(_) => None,
        }
    }

    fn of_model_action(action: Option<&str>) -> Option<Self> {
        match action {
            None => Some(Self::Metadata),
            Some("ready") => Some(Self::Health),
            Some("infer" | "generate" | "generate_stream") => Some(Self::Inference),
            Some("config") => Some(Self::ModelConfig),
            Some("stats") => Some(Self::Statistics),
            Some("trace") => Some(Self::Trace),
            Some(_) => None,
        }
    }

    /// The group of a gRPC call, by its path; `None` for reflection.
    pub(crate) fn of_call(path: &str) -> Option<Self> {
        let (service, call) = path.strip_prefix('/')?.split_once('/')?;
        if service == "grpc.health.v1.Health" {
            return Some(Self::Health);
        }
        match call {
            "ServerLive" | "ServerReady" | "ModelReady" => Some(Self::Health),
            "ServerMetadata" | "ModelMetadata" => Some(Self::Metadata),
            "ModelInfer" | "ModelStreamInfer" => Some(Self::Inference),
            "ModelConfig" => Some(Self::ModelConfig),
            "ModelStatistics" => Some(Self::Statistics),
            "TraceSetting" => Some(Self::Trace),
            "LogSettings" => Some(Self::Logging),
            call if call.starts_with("Repository") => Some(Self::ModelRepository),
            call if call.contains("SharedMemory") => Some(Self::SharedMemory),
            _ => None,
        }
    }
}

/// A header that must be there, and its value, which may change.
struct HeaderRule {
    header: HeaderName,
    value: ArcSwap<Box<[u8]>>,
}

impl fmt::Debug for HeaderRule {
    /// Without the value: it is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.header).finish()
    }
}

impl HeaderRule {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(&self.header);
        // How long the comparison takes tells nothing of the value but its length.
        given.is_some_and(|given| constant_time_eq(given.as_bytes(), &self.value.load()))
    }
}

/// The restricted groups of one protocol.
#[derive(Debug, Clone, Default)]
pub struct Restrictions(BTreeMap<CallGroup, Arc<HeaderRule>>);

/// Why a restriction cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestrictionError {
    /// Not of the form of the setting.
    #[error("expected <names>:<key>=<value>, got `{0}`")]
    Form(String),
    /// No such group.
    #[error("`{name}` cannot be restricted, expected one or more of {}", names())]
    UnknownGroup {
        /// What was named.
        name: String,
    },
    /// Which of the two values would have to be given?
    #[error("`{name}` is restricted twice")]
    Doubled {
        /// What was named again.
        name: String,
    },
    /// Not the name of a header.
    #[error("`{key}` cannot name a header")]
    Key {
        /// The name.
        key: String,
    },
}

fn names() -> String {
    CallGroup::NAMES.map(|(name, _)| name).join(", ")
}

impl Restrictions {
    /// Restrictions of HTTP out of settings `<group>[,<group>...]:<header>=<value>`.
    ///
    /// # Errors
    /// [`RestrictionError`] for the first one that cannot be taken.
    pub fn http(settings: &[String]) -> Result<Self, RestrictionError> {
        Self::parse(settings, "")
    }

    /// Restrictions of gRPC; Triton's prefix comes before each key.
    ///
    /// # Errors
    /// [`RestrictionError`] for the first one that cannot be taken.
    pub fn grpc(settings: &[String]) -> Result<Self, RestrictionError> {
        Self::parse(settings, "triton-grpc-protocol-")
    }

    fn parse(settings: &[String], prefix: &str) -> Result<Self, RestrictionError> {
        let mut all = Self::default();
        for setting in settings {
            let form = || RestrictionError::Form(setting.clone());
            let (groups, rule) = setting.split_once(':').ok_or_else(form)?;
            let (key, value) = rule.split_once('=').ok_or_else(form)?;
            if key.is_empty() || value.is_empty() {
                return Err(form());
            }
            let header = format!("{prefix}{key}").to_ascii_lowercase();
            let header = HeaderName::try_from(header).map_err(|_| RestrictionError::Key {
                key: key.to_owned(),
            })?;
            for name in groups.split(',') {
                let name = || name.to_owned();
                let group = CallGroup::named(&name())
                    .ok_or_else(|| RestrictionError::UnknownGroup { name: name() })?;
                // One each: values may change group by group.
                let rule = Arc::new(HeaderRule {
                    header: header.clone(),
                    value: ArcSwap::from_pointee(value.as_bytes().into()),
                });
                if all.0.insert(group, rule).is_some() {
                    return Err(RestrictionError::Doubled { name: name() });
                }
            }
        }
        Ok(all)
    }

    /// These and others, none of whose groups may be among these.
    ///
    /// # Errors
    /// [`RestrictionError::Doubled`].
    pub fn and(mut self, others: &Self) -> Result<Self, RestrictionError> {
        for (group, rule) in &others.0 {
            if self.0.insert(*group, Arc::clone(rule)).is_some() {
                let name = group.name().to_owned();
                return Err(RestrictionError::Doubled { name });
            }
        }
        Ok(self)
    }

    /// Takes over the values of `new`, wherever these restrictions are in use. `false`, and nothing changes, where it restricts
    /// other groups or asks for other headers: what is before which call is decided when a server starts.
    #[must_use]
    pub fn take_values(&self, new: &Self) -> bool {
        let headers = |all: &Self| -> Vec<(CallGroup, HeaderName)> {
            let all = all.0.iter();
            all.map(|(group, rule)| (*group, rule.header.clone()))
                .collect()
        };
        let are_same = headers(self) == headers(new);
        if are_same {
            for (old, new) in self.0.values().zip(new.0.values()) {
                old.value.store(new.value.load_full());
            }
        }
        are_same
    }

    /// The names of the groups that these restrict and others do not.
    #[must_use]
    pub fn beyond(&self, others: &Self) -> Vec<&'static str> {
        let mine = self.0.keys();
        mine.filter(|group| !others.0.contains_key(group))
            .map(|group| group.name())
            .collect()
    }

    /// A route behind its group's restriction, if it has one. `otherwise` answers the methods that it does not have: which
    /// ones it has is for those who know the value.
    pub(crate) fn guard<S, H, T>(
        &self,
        path: &str,
        route: MethodRouter<S>,
        otherwise: H,
    ) -> MethodRouter<S>
    where
        S: Clone + Send + Sync + 'static,
        H: Handler<T, S>,
        T: 'static,
    {
        match CallGroup::of_route(path).and_then(|group| self.0.get(&group)) {
            None => route,
            Some(rule) => route
                .fallback(otherwise)
                .layer(middleware::from_fn_with_state(Arc::clone(rule), check)),
        }
    }

    /// Whether a group is restricted.
    pub(crate) fn restricts(&self, group: CallGroup) -> bool {
        self.0.contains_key(&group)
    }

    /// A gRPC service behind the restrictions.
    pub(crate) fn guard_service<S>(&self, service: S) -> Guarded<S> {
        Guarded {
            service,
            restrictions: (!self.0.is_empty()).then(|| Arc::new(self.clone())),
        }
    }
}

async fn check(State(rule): State<Arc<HeaderRule>>, request: Request, next: Next) -> Response {
    if rule.admits(request.headers()) {
        return next.run(request).await;
    }
    let text = format!("This API is restricted, expecting header '{}'", rule.header);
    error_response(StatusCode::FORBIDDEN, PLAIN, text)
}

/// A gRPC service whose restricted calls are refused without the right header.
#[derive(Debug, Clone)]
pub(crate) struct Guarded<S> {
    service: S,
    restrictions: Option<Arc<Restrictions>>,
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

type GrpcRequest = http::Request<tonic::body::Body>;
type GrpcResponse = http::Response<tonic::body::Body>;

impl<S> Service<GrpcRequest> for Guarded<S>
where
    S: Service<GrpcRequest, Response = GrpcResponse, Error = Infallible>,
{
    type Response = GrpcResponse;
    type Error = Infallible;
    type Future = Either<S::Future, Ready<Result<GrpcResponse, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: GrpcRequest) -> Self::Future {
        verbose::log_call(&request);
        let rule = self.restrictions.as_ref().and_then(|restrictions| {
            let group = CallGroup::of_call(request.uri().path())?;
            restrictions.0.get(&group)
        });
        match rule {
            Some(rule) if !rule.admits(request.headers()) => {
                let text = format!(
                    "This protocol is restricted, expecting header '{}'",
                    rule.header
                );
                Either::Right(ready(Ok(Status::unavailable(text).into_http())))
            }
            _ => Either::Left(self.service.call(request)),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn http(settings: &[&str]) -> Result<Restrictions, String> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        Restrictions::http(&settings).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_tritons() {
        let all = http(&["health,model-repository:Admin-Key=a=b", "logging:k=v"]).expect("valid");
        let rule = |group| {
            all.0
                .get(&group)
                .map(|rule| (rule.header.as_str(), rule.value.load().to_vec()))
        };
        assert_eq!(
            rule(CallGroup::Health),
            Some(("admin-key", b"a=b".to_vec()))
        );
        assert_eq!(rule(CallGroup::ModelRepository), rule(CallGroup::Health));
        assert_eq!(rule(CallGroup::Logging), Some(("k", b"v".to_vec())));
        assert_eq!(rule(CallGroup::Inference), None);
        let grpc = Restrictions::grpc(&["trace:K=v".to_owned()]).expect("valid");
        let header = grpc.0[&CallGroup::Trace].header.as_str();
        assert_eq!(header, "triton-grpc-protocol-k");
    }

    #[test]
    fn what_is_no_restriction_is_refused() {
        for (settings, text) in [
            (
                &["health"][..],
                "expected <names>:<key>=<value>, got `health`",
            ),
            (&["health:k"], "expected <names>"),
            (&["health:=v"], "expected <names>"),
            (&["health:k="], "expected <names>"),
            (&[":k=v"], "`` cannot be restricted"),
            (
                &["nosuch:k=v"],
                "`nosuch` cannot be restricted, expected one or more of health,",
            ),
            (
                &["health, metadata:k=v"],
                "` metadata` cannot be restricted",
            ),
            (&["health,health:k=v"], "`health` is restricted twice"),
            (
                &["health:k=v", "health:k2=v2"],
                "`health` is restricted twice",
            ),
            (&["health:a b=v"], "`a b` cannot name a header"),
        ] {
            let error = http(settings).expect_err(text);
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn values_change_wherever_they_are_in_use() {
        let from_file = http(&["health,trace:k=old"]).expect("valid");
        let all = http(&["logging:l=v"]).expect("valid");
        let all = all.and(&from_file).expect("other groups");
        assert!(all.clone().and(&from_file).is_err(), "restricted twice");
        let admits = |group, value: &'static str| {
            let name = HeaderName::from_static("k");
            let headers = [(name, HeaderValue::from_static(value))];
            all.0[&group].admits(&headers.into_iter().collect())
        };
        assert!(admits(CallGroup::Health, "old") && admits(CallGroup::Trace, "old"));
        let changed = http(&["health:k=new", "trace:k=newer"]).expect("valid");
        assert!(from_file.take_values(&changed));
        assert!(admits(CallGroup::Health, "new") && admits(CallGroup::Trace, "newer"));
        assert!(!admits(CallGroup::Health, "old"));
        for other in [
            &["health:k=x"][..],
            &["health,trace,logging:k=x"],
            &["health:k=x", "trace:other=x"],
        ] {
            assert!(
                !from_file.take_values(&http(other).expect("valid")),
                "{other:?}"
            );
        }
        assert!(admits(CallGroup::Health, "new"), "nothing has changed");
    }

    #[test]
    fn what_only_one_protocol_restricts_is_named() {
        let one = http(&["inference,logging:k=v"]).expect("valid");
        let other = Restrictions::grpc(&["logging:k=v".to_owned()]).expect("valid");
        assert_eq!(one.beyond(&other), ["inference"]);
        assert!(other.beyond(&one).is_empty());
    }

    #[test]
    fn a_secret_is_in_no_log() {
        let all = http(&["health:k=secret"]).expect("valid");
        assert!(!format!("{all:?}").contains("secret"));
    }

    #[test]
    fn only_the_very_value_admits() {
        let restrictions = http(&["health:k=secret"]).expect("valid");
        let rule = &restrictions.0[&CallGroup::Health];
        let admits = |value: Option<&'static str>| {
            let value = value.map(|value| {
                (
                    HeaderName::from_static("k"),
                    HeaderValue::from_static(value),
                )
            });
            rule.admits(&value.into_iter().collect())
        };
        assert!(admits(Some("secret")));
        for value in [
            None,
            Some(""),
            Some("secre"),
            Some("secret "),
            Some("Secret"),
        ] {
            assert!(!admits(value), "{value:?}");
        }
    }

    #[test]
    fn routes_have_the_groups_of_triton() {
        for (path, group) in [
            ("/v2", CallGroup::Metadata),
            ("/v2/", CallGroup::Metadata),
            ("/v2/health/live", CallGroup::Health),
            ("/v2/models/stats", CallGroup::Statistics),
            ("/v2/models/{model}", CallGroup::Metadata),
            ("/v2/models/{model}/versions/{version}", CallGroup::Metadata),
            ("/v2/models/{model}/ready", CallGroup::Health),
            (
                "/v2/models/{model}/versions/{version}/ready",
                CallGroup::Health,
            ),
            ("/v2/models/{model}/infer", CallGroup::Inference),
            (
                "/v2/models/{model}/versions/{version}/generate_stream",
                CallGroup::Inference,
            ),
            ("/v2/models/{model}/config", CallGroup::ModelConfig),
            ("/v2/models/{model}/stats", CallGroup::Statistics),
            ("/v2/models/{model}/trace/setting", CallGroup::Trace),
            ("/v2/trace/setting", CallGroup::Trace),
            ("/v2/logging", CallGroup::Logging),
            ("/v2/repository/index", CallGroup::ModelRepository),
            ("/v2/systemsharedmemory/status", CallGroup::SharedMemory),
            (
                "/v2/cudasharedmemory/region/{region}/status",
                CallGroup::SharedMemory,
            ),
        ] {
            assert_eq!(CallGroup::of_route(path), Some(group), "{path}");
        }
        for path in ["/", "/v2/nosuch", "/v2/models", "/v2/models/{model}/nosuch"] {
            assert_eq!(CallGroup::of_route(path), None, "{path}");
        }
    }

    #[test]
    fn every_call_can_be_restricted() {
        let services = skep_proto::descriptors().services();
        let calls: Vec<String> = services
            .flat_map(|service| service.methods().collect::<Vec<_>>())
            .map(|call| format!("/{}/{}", call.parent_service().full_name(), call.name()))
            .collect();
        assert!(calls.len() >= 19, "{calls:?}");
        for call in &calls {
            assert!(CallGroup::of_call(call).is_some(), "{call}");
        }
        assert_eq!(
            CallGroup::of_call("/grpc.health.v1.Health/Check"),
            Some(CallGroup::Health)
        );
        assert_eq!(
            CallGroup::of_call("/inference.GRPCInferenceService/ModelConfig"),
            Some(CallGroup::ModelConfig)
        );
        assert_eq!(
            CallGroup::of_call("/inference.GRPCInferenceService/Nosuch"),
            None
        );
    }
}
