//! `skep store serve`: the daemon.

use std::{fmt, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context;
use clap::Args;
use skep_store::{Daemon, StoreOptions, Tenant, default_directory};
use tokio::task::spawn_blocking;

use super::tenant;
use crate::{
    descriptors,
    output::outln,
    pressure,
    signals::{SignalMeaning, Signals},
};

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The directory of the sockets; $XDG_RUNTIME_DIR/skep by default, /tmp/skep-<user id> without that variable
    #[arg(long, value_name = "PATH")]
    directory: Option<PathBuf>,
    /// A tenant with a store of its own, beside the general one; may be given several times
    #[arg(long, value_name = "NAME", value_parser = tenant)]
    tenant: Vec<Tenant>,
    /// Bytes of a tenant's store above which it drops unused tensors at once, the least recently used first; 4 GiB by
    /// default, at most half of the machine's memory
    #[arg(long, value_name = "BYTES")]
    budget: Option<u64>,
    /// How long the store keeps an unused tensor within the budget, in seconds; 600 by default
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,
    /// The most bytes in a tenant's store; the machine's memory by default
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    /// Connections to a tenant's store; 1024 by default
    #[arg(long, value_name = "N")]
    max_connections: Option<u64>,
    /// How long after the start no process may fill a missing tensor, in seconds: processes that held it when the last
    /// daemon died hand it back; 2 by default
    #[arg(long, value_name = "SECONDS")]
    adoption_window: Option<u64>,
}

impl ServeArgs {
    fn options(&self) -> StoreOptions {
        let default = StoreOptions::default();
        StoreOptions {
            budget_bytes: self.budget.unwrap_or(default.budget_bytes),
            keep_alive: self
                .keep_alive
                .map_or(default.keep_alive, Duration::from_secs),
            max_tenant_bytes: self.max_bytes.unwrap_or(default.max_tenant_bytes),
            max_holders: self.max_connections.unwrap_or(default.max_holders),
            adoption_window: self
                .adoption_window
                .map_or(default.adoption_window, Duration::from_secs),
            ..default
        }
    }

    /// The general store, and each other one once.
    fn tenants(&self) -> Vec<Tenant> {
        let mut tenants = vec![Tenant::GENERAL];
        tenants.extend(self.tenant.iter().cloned());
        tenants.sort();
        tenants.dedup();
        tenants
    }
}

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    // A segment is a descriptor, and so is a connection.
    descriptors::raise();
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(serve(args))
}

/// Prints a line if there is a reader; a daemon continues without one.
fn tell(text: fmt::Arguments<'_>) {
    drop(outln!("{text}"));
}

/// The name of the next signal that asks for a stop; of others it is said that they mean nothing.
async fn stop_signal(signals: &mut Signals) -> &'static str {
    loop {
        match signals.next().await {
            (name, SignalMeaning::Stop) => return name,
            (name, SignalMeaning::Reload | SignalMeaning::Nothing) => {
                tell(format_args!("ignored {name}; SIGTERM stops the daemon"))
            }
        }
    }
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    // Before anybody can see that the process is there, and end it by a signal that nothing handles.
    let mut signals = Signals::new()?;
    let tenants = args.tenants();
    let directory = args.directory.clone().unwrap_or_else(default_directory);
    let daemon = Daemon::bind(&directory, &tenants, args.options())?;
    for (tenant, socket) in tenants.iter().zip(daemon.sockets()) {
        tell(format_args!(
            "store of tenant `{tenant}` at {}",
            socket.display()
        ));
    }
    let stopper = daemon.stopper();
    let _pressure = pressure::watch_store(daemon.reliever());
    let mut running = spawn_blocking(move || daemon.run());
    let outcome = tokio::select! {
        outcome = &mut running => outcome,
        name = stop_signal(&mut signals) => {
            tell(format_args!("received {name}, stopping"));
            stopper.stop();
            running.await
        }
    };
    outcome.context("the daemon panicked")??;
    Ok(ExitCode::SUCCESS)
}
