//! A line of verbose logs for each request.

/// A line for each gRPC call, in verbose logs.
pub(crate) fn log_call<B>(request: &http::Request<B>) {
    tracing::debug!("gRPC request: {}", request.uri().path());
}

/// A line for each HTTP request, in verbose logs.
pub(crate) fn log_request<B>(request: &http::Request<B>) {
    tracing::debug!(
        "HTTP request: {} {}",
        request.method(),
        request.uri().path()
    );
}
