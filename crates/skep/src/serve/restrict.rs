//! Flags about restricted calls.

use anyhow::Context;
use clap::Args;
use skep_server::Restrictions;

#[derive(Debug, Args)]
#[command(next_help_heading = "Restricted calls")]
pub(super) struct RestrictArgs {
    /// HTTP calls that ask for a header, `<api>[,<api>...]:<header>=<value>`; of health, metadata, inference,
    /// shared-memory, model-config, model-repository, statistics, trace, logging; may be given several times
    #[arg(long, value_name = "SETTING")]
    http_restricted_api: Vec<String>,
    /// gRPC calls that ask for a header, of the same groups; `triton-grpc-protocol-` comes before the header's name; may
    /// be given several times
    #[arg(long, value_name = "SETTING")]
    grpc_restricted_protocol: Vec<String>,
}

impl RestrictArgs {
    pub(super) fn http(&self) -> anyhow::Result<Restrictions> {
        Restrictions::http(&self.http_restricted_api).context("--http-restricted-api")
    }

    pub(super) fn grpc(&self) -> anyhow::Result<Restrictions> {
        Restrictions::grpc(&self.grpc_restricted_protocol).context("--grpc-restricted-protocol")
    }
}
