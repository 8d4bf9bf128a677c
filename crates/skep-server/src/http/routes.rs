//! Every path of the HTTP port, with its handlers and the restriction of its group.

use std::sync::Arc;

use axum::{
    Router,
    routing::{MethodRouter, get, post},
};

use super::{
    docs, generate, infer, logging, management, page,
    reply::{method_not_allowed, not_found},
    repository, shared_memory, traces,
};
use crate::{
    edge,
    restrict::{CallGroup, Restrictions},
    state::ServerState,
};

/// The routes, each behind the restriction of its group.
struct RouteTable<'a> {
    restrictions: &'a Restrictions,
    router: Router<Arc<ServerState>>,
    /// All paths, for the tests.
    paths: Vec<String>,
}

impl RouteTable<'_> {
    fn route(mut self, path: &str, route: MethodRouter<Arc<ServerState>>) -> Self {
        let route = self.restrictions.guard(path, route, method_not_allowed);
        self.router = self.router.route(path, route);
        self.paths.push(path.to_owned());
        self
    }
}

/// The routes of the HTTP port.
pub(crate) fn routes(state: &Arc<ServerState>) -> edge::PortRoutes {
    let all = edge::PortRoutes::from(router(Arc::clone(state)));
    if state.http_restrictions.restricts(CallGroup::Inference) {
        return all;
    }
    all.with_shortcut(Arc::new(infer::DirectInference(Arc::clone(state))))
}

fn router(state: Arc<ServerState>) -> Router {
    all_routes(&state.http_restrictions)
        .router
        .fallback(|| async { not_found() })
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(state)
}

/// The paths of a call on a model, without and with a version.
fn of_model(call: &str) -> [String; 2] {
    [
        format!("/v2/models/{{model}}{call}"),
        format!("/v2/models/{{model}}/versions/{{version}}{call}"),
    ]
}

/// All routes.
fn all_routes(restrictions: &Restrictions) -> RouteTable<'_> {
    let routes = RouteTable {
        restrictions,
        router: Router::new(),
        paths: Vec::new(),
    };
    let mut router = routes
        .route("/", get(page::page))
        .route("/docs", get(docs::index))
        .route("/docs/", get(docs::index))
        .route("/docs/{*page}", get(docs::page))
        .route("/v2/health/live", get(management::live))
        .route("/v2/health/ready", get(management::server_ready))
        .route("/v2", get(management::server_metadata))
        .route("/v2/", get(management::server_metadata))
        .route("/v2/models/stats", get(management::all_statistics))
        .route("/v2/skep/residency", get(management::residency_status))
        .route("/v2/logging", get(logging::show).post(logging::change))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route(
            "/v2/repository/models/{model}/unload",
            post(repository::unload),
        )
        .route(
            // The repository's name is ignored here, unlike by load and unload; Triton does the same.
            "/v2/repository/{repository}/index",
            post(repository::index),
        )
        .route(
            "/v2/repository/{repository}/models/{model}/load",
            post(repository::named_repository),
        )
        .route(
            "/v2/repository/{repository}/models/{model}/unload",
            post(repository::named_repository),
        );
    router = shared_memory_routes(router);
    let settings = get(traces::show).post(traces::change);
    router = router.route("/v2/trace/setting", settings);
    for path in of_model("/trace/setting") {
        let settings = get(traces::show_of_model).post(traces::change_of_model);
        router = router.route(&path, settings);
    }
    for path in of_model("") {
        router = router.route(&path, get(management::model_metadata));
    }
    for path in of_model("/ready") {
        router = router.route(&path, get(management::model_ready));
    }
    for path in of_model("/config") {
        router = router.route(&path, get(management::model_config));
    }
    for path in of_model("/stats") {
        router = router.route(&path, get(management::model_statistics));
    }
    for path in of_model("/infer") {
        router = router.route(&path, post(infer::infer));
    }
    for path in of_model("/generate") {
        router = router.route(&path, post(generate::generate));
    }
    for path in of_model("/generate_stream") {
        router = router.route(&path, post(generate::generate_stream));
    }
    router
}

/// Clients' shared-memory regions: a region by its name, or all.
fn shared_memory_routes(routes: RouteTable<'_>) -> RouteTable<'_> {
    use shared_memory as memory;
    let system = "/v2/systemsharedmemory";
    let cuda = "/v2/cudasharedmemory";
    let of = |kind: &str, call: &str| format!("{kind}/region/{{region}}/{call}");
    routes
        .route(&format!("{system}/status"), get(memory::system_status))
        .route(&of(system, "status"), get(memory::system_status))
        .route(&of(system, "register"), post(memory::system_register))
        .route(&of(system, "unregister"), post(memory::system_unregister))
        .route(
            &format!("{system}/unregister"),
            post(memory::system_unregister),
        )
        .route(&format!("{cuda}/status"), get(memory::cuda_status))
        .route(&of(cuda, "status"), get(memory::cuda_status))
        .route(&of(cuda, "register"), post(memory::cuda_register))
        .route(&of(cuda, "unregister"), post(memory::cuda_unregister))
        .route(&format!("{cuda}/unregister"), post(memory::cuda_unregister))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_of_the_protocol_can_be_restricted() {
        let restrictions = Restrictions::default();
        let paths = all_routes(&restrictions).paths;
        assert!(paths.len() > 20);
        for path in paths {
            // The pages are not calls of the protocol.
            let is_page = path == "/" || path.starts_with("/docs");
            assert_eq!(CallGroup::of_route(&path).is_some(), !is_page, "{path}");
        }
    }
}
