//! The groups of calls that may be restricted, and which group a call is in.

/// A group of calls that may be restricted, by Triton's name.
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
    pub(super) const NAMES: [(&str, Self); 9] = [
        ("health", Self::Health),
        ("metadata", Self::Metadata),
        ("inference", Self::Inference),
        ("shared-memory", Self::SharedMemory),
        ("model-config", Self::ModelConfig),
        ("model-repository", Self::ModelRepository),
        ("statistics", Self::Statistics),
        ("trace", Self::Trace),
        ("logging", Self::Logging),
    ];

    pub(super) fn named(name: &str) -> Option<Self> {
        let mut names = Self::NAMES.iter();
        names
            .find(|(known, _)| *known == name)
            .map(|(_, group)| *group)
    }

    pub(super) fn name(self) -> &'static str {
        let mut names = Self::NAMES.iter();
        names
            .find(|(_, group)| *group == self)
            .map_or("", |(name, _)| name)
    }

    /// The group of an HTTP route; `None` for a route that is not a call of the protocol.
    pub(crate) fn of_route(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix("/v2")?.split('/').skip(1);
        match segments.next() {
            None | Some("") => Some(Self::Metadata),
            Some("health") => Some(Self::Health),
            Some("repository") => Some(Self::ModelRepository),
            // What models were used for is as telling as their statistics.
            Some("skep") => Some(Self::Statistics),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_the_groups_of_triton() {
        for (path, group) in [
            ("/v2", CallGroup::Metadata),
            ("/v2/", CallGroup::Metadata),
            ("/v2/health/live", CallGroup::Health),
            ("/v2/models/stats", CallGroup::Statistics),
            ("/v2/skep/residency", CallGroup::Statistics),
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
