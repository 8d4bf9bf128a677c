//! `skep store WHAT`: the tensor store of a node, served and looked at.

mod serve;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Subcommand};
use skep_store::{Store, Tenant, default_directory};

#[derive(Debug, Args)]
pub(crate) struct StoreArgs {
    #[command(subcommand)]
    what: StoreCommand,
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Keep tensors for all processes of this user, until a signal
    Serve(serve::ServeArgs),
    /// Show what is stored, and what sharing saves
    Stat(ClientArgs),
    /// List tensors
    Ls(ClientArgs),
    /// Drop unused tensors
    Gc(ClientArgs),
}

#[derive(Debug, Args)]
struct ClientArgs {
    /// The daemon's directory; $XDG_RUNTIME_DIR/skep by default, /tmp/skep-<user id> without that variable
    #[arg(long, value_name = "PATH", conflicts_with = "socket")]
    directory: Option<PathBuf>,
    /// The path of one tenant's socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// This tenant's store alone, `general` for the one that any instance may use; may be given several times; all that
    /// the daemon has by default
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    tenant: Vec<Tenant>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

impl ClientArgs {
    /// The store, and the tenants that are asked for.
    fn open(&self) -> anyhow::Result<(Store, Vec<Tenant>)> {
        let directory = || self.directory.clone().unwrap_or_else(default_directory);
        let path = self.socket.clone().unwrap_or_else(directory);
        let store = Store::connect(&path)?;
        let mut tenants = self.tenant.clone();
        if tenants.is_empty() {
            tenants = store.tenants()?;
        }
        if tenants.is_empty() {
            anyhow::bail!(
                "no tensor store at `{}`: there is no socket in it\nis `skep store serve` running?",
                path.display()
            );
        }
        Ok((store, tenants))
    }
}

/// A tenant by its name; the general store has one here only.
fn tenant(text: &str) -> Result<Tenant, String> {
    if text == Tenant::GENERAL.to_string() {
        return Ok(Tenant::GENERAL);
    }
    Tenant::named(text).map_err(|error| error.to_string())
}

pub(crate) fn run(args: StoreArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        StoreCommand::Serve(args) => serve::run(args),
        StoreCommand::Stat(args) => {
            let (store, tenants) = args.open()?;
            show::stat(&store, &tenants, args.json)
        }
        StoreCommand::Ls(args) => {
            let (store, tenants) = args.open()?;
            show::ls(&store, &tenants, args.json)
        }
        StoreCommand::Gc(args) => {
            let (store, tenants) = args.open()?;
            show::gc(&store, &tenants, args.json)
        }
    }
}
