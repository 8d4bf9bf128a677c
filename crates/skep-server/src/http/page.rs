//! The page at `/`: the server's models and how they perform.

use std::sync::Arc;

use axum::{extract::State, response::Html};

use crate::state::ServerState;

const PAGE: &str = include_str!("page.html");

/// The page of a server whose metrics are on `metrics_port`, if they are served.
pub(crate) fn render(metrics_port: Option<u16>) -> String {
    let port = metrics_port.map_or_else(String::new, |port| port.to_string());
    PAGE.replace("{{version}}", env!("CARGO_PKG_VERSION"))
        .replace("{{metrics_port}}", &port)
}

pub(super) async fn page(State(state): State<Arc<ServerState>>) -> Html<String> {
    Html(state.page.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_is_filled_in() {
        for port in [None, Some(8002)] {
            let page = render(port);
            assert!(!page.contains("{{"), "a place is left");
            assert!(page.contains(concat!("data-version=\"", env!("CARGO_PKG_VERSION"), "\"")));
        }
        assert!(render(Some(8002)).contains("data-metrics-port=\"8002\""));
    }
}
