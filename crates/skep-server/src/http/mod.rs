//! HTTP: the Open Inference Protocol with Triton's extensions, and the web page.

mod compression;
mod docs;
mod extract;
mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod generate;
mod infer;
mod lean;
mod logging;
mod management;
mod members;
mod object;
mod page;
mod parameters;
mod raw;
mod repository;
mod request;
mod response;
mod sequence;

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get, post},
};

pub(crate) use page::render as render_page;

use crate::{
    edge, error,
    restrict::{Group, Restrictions},
    server::Shared,
};

/// The routes, each behind the restriction of its group.
struct Routes<'a> {
    restrictions: &'a Restrictions,
    router: Router<Arc<Shared>>,
    /// As they were given, for those who must know all of them.
    paths: Vec<String>,
}

impl Routes<'_> {
    fn route(mut self, path: &str, route: MethodRouter<Arc<Shared>>) -> Self {
        let route = self.restrictions.guard(path, route, method_not_allowed);
        self.router = self.router.route(path, route);
        self.paths.push(path.to_owned());
        self
    }
}

/// What answers on the port.
pub(crate) fn routes(shared: &Arc<Shared>) -> edge::Routes {
    let all = edge::Routes::from(router(Arc::clone(shared)));
    if shared.http_restrictions.restricts(Group::Inference) {
        return all;
    }
    all.with_shortcut(Arc::new(infer::Direct(Arc::clone(shared))))
}

fn router(shared: Arc<Shared>) -> Router {
    all_routes(&shared.http_restrictions)
        .router
        .fallback(|| async { not_found() })
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(shared)
}

/// The answer on a path that is none.
fn not_found() -> Response {
    plain(StatusCode::NOT_FOUND, "Not Found")
}

async fn method_not_allowed() -> Response {
    plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
}

/// All routes.
fn all_routes(restrictions: &Restrictions) -> Routes<'_> {
    let model = |suffix: &str| format!("/v2/models/{{model}}{suffix}");
    let version = |suffix: &str| format!("/v2/models/{{model}}/versions/{{version}}{suffix}");
    let routes = Routes {
        restrictions,
        router: Router::new(),
        paths: Vec::new(),
    };
    let mut router = routes
        .route("/", get(page::page))
        .route("/docs", get(docs::index))
        .route("/docs/", get(docs::index))
        .route("/docs/{page}", get(docs::page))
        .route("/v2/health/live", get(management::live))
        .route("/v2/health/ready", get(management::server_ready))
        .route("/v2", get(management::server_metadata))
        .route("/v2/", get(management::server_metadata))
        .route("/v2/models/stats", get(management::all_statistics))
        .route("/v2/logging", get(logging::show).post(logging::change))
        .route("/v2/repository/index", post(repository::index))
        .route("/v2/repository/models/{model}/load", post(repository::load))
        .route(
            "/v2/repository/models/{model}/unload",
            post(repository::unload),
        )
        .route(
            // As if the name were not there, unlike load and unload: so does Triton.
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
    for path in ["systemsharedmemory", "cudasharedmemory"] {
        let path = |suffix: &str| format!("/v2/{path}{suffix}");
        router = router
            .route(&path("/status"), get(management::no_shared_memory))
            .route(
                &path("/region/{region}/status"),
                get(management::no_shared_memory),
            )
            .route(
                &path("/region/{region}/register"),
                post(management::no_shared_memory),
            )
            .route(
                &path("/region/{region}/unregister"),
                post(management::no_shared_memory),
            )
            .route(&path("/unregister"), post(management::no_shared_memory));
    }
    for path in [
        "/v2/trace/setting".to_owned(),
        model("/trace/setting"),
        version("/trace/setting"),
    ] {
        let route = get(management::no_traces).post(management::no_traces);
        router = router.route(&path, route);
    }
    for path in [model(""), version("")] {
        router = router.route(&path, get(management::model_metadata));
    }
    for path in [model("/ready"), version("/ready")] {
        router = router.route(&path, get(management::model_ready));
    }
    for path in [model("/config"), version("/config")] {
        router = router.route(&path, get(management::model_config));
    }
    for path in [model("/stats"), version("/stats")] {
        router = router.route(&path, get(management::model_statistics));
    }
    for path in [model("/infer"), version("/infer")] {
        router = router.route(&path, post(infer::infer));
    }
    for path in [model("/generate"), version("/generate")] {
        router = router.route(&path, post(generate::generate));
    }
    for path in [model("/generate_stream"), version("/generate_stream")] {
        router = router.route(&path, post(generate::generate_stream));
    }
    router
}

/// A status with its text as Triton's HTTP library words it, in the body of an error; as plain text, which is how Triton
/// labels what it refuses before it looks into a request.
fn plain(status: StatusCode, text: &str) -> Response {
    error::error_response(status, error::PLAIN, text)
}

fn json_response(status: StatusCode, body: impl Into<Body>) -> Response {
    (
        status,
        [(header::CONTENT_TYPE, "application/json")],
        body.into(),
    )
        .into_response()
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
            // The page is no call of the protocol.
            let is_page = path == "/" || path.starts_with("/docs");
            assert_eq!(Group::of_route(&path).is_some(), !is_page, "{path}");
        }
    }
}
