//! Flags on what clients may take: connections, memory, time.

use std::{
    num::{NonZeroU64, NonZeroUsize},
    sync::Arc,
    time::Duration,
};

use clap::Args;
use skep_runtime::Device;
use skep_server::{GrpcConnections, Limits};
use skep_tensor::MemoryBudget;
use skep_types::DeviceId;

use crate::{descriptors, flag_values::boolean};

/// File descriptors that are not connections: models, libraries, pipes, logs, the reactor's own.
const OTHER_DESCRIPTORS: u64 = 512;

/// More than any balancer keeps open, at a few KiB each.
const DEFAULT_CONNECTIONS: usize = 20_000;

const DEFAULT_WAITING: NonZeroUsize =
    NonZeroUsize::new(skep_runtime::DEFAULT_MAX_WAITING).expect("more than none");

/// That of the scheduler, which says why.
const DEFAULT_TURN_MS: u64 = 2;

/// No head that a client sends on purpose has more; the map that holds them ends at 24,576.
const MAX_HEADER_FIELDS: i64 = 4096;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArgs {
    /// The largest JSON part of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    http_max_input_size: usize,
    /// Open connections over HTTP and gRPC, idle ones are closed to make room; 20000 by default, or as many as the
    /// limit on open files leaves (Skep's own)
    #[arg(long, value_name = "N")]
    max_connections: Option<NonZeroUsize>,
    /// Memory of all requests: what comes in, what it becomes, what its run needs, and its answer until that is
    /// written; in bytes, half of the machine's or the cgroup's memory by default (Skep's own)
    #[arg(long, value_name = "BYTES")]
    max_request_memory: Option<NonZeroUsize>,
    /// Requests that wait for an instance, over all models; the next one is refused (Skep's own)
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WAITING)]
    max_waiting_requests: NonZeroUsize,
    /// How many loads, unloads and looks at the index may wait for those that run; the next one is refused (Skep's own)
    #[arg(long, value_name = "N", default_value = "256")]
    max_waiting_loads: NonZeroUsize,
    /// Threads that compute at once, over all models; an execution waits until there are enough for it. 0 for no bound;
    /// by default the cores that the process may use (Skep's own)
    #[arg(long, value_name = "N")]
    cpu_slots: Option<u32>,
    /// How long an execution keeps its slots at least while shorter ones of other models wait, in milliseconds; one
    /// that takes longer shares its cores with them (Skep's own)
    #[arg(long, value_name = "MS", default_value_t = DEFAULT_TURN_MS)]
    cpu_turn_ms: u64,
    /// How long a TLS handshake and a request's head may take, in milliseconds (Skep's own)
    #[arg(long, value_name = "MS", default_value = "30000")]
    head_timeout_ms: NonZeroU64,
    /// How long a request's body may bring less than 1 KiB, in milliseconds (Skep's own)
    #[arg(long, value_name = "MS", default_value = "30000")]
    body_timeout_ms: NonZeroU64,
    /// How long a client may take less than 16 KiB of an answer, in milliseconds (Skep's own)
    #[arg(long, value_name = "MS", default_value = "60000")]
    write_timeout_ms: NonZeroU64,
    /// How long a connection without requests stays open, in milliseconds (Skep's own)
    #[arg(long, value_name = "MS", default_value = "3600000")]
    idle_timeout_ms: NonZeroU64,
    /// How long the server waits for an answer to begin after an HTTP/1.1 client stopped sending, in milliseconds. A
    /// client that closed looks the same. 0 cancels the request at once (Skep's own)
    #[arg(long, value_name = "MS", default_value_t = 5000)]
    half_close_timeout_ms: u64,
    /// Fields of a request's head; a request with more is refused (Skep's own)
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=MAX_HEADER_FIELDS))]
    max_header_fields: u16,
    #[command(flatten)]
    grpc: GrpcArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
struct GrpcArgs {
    /// After how long the server pings a silent gRPC connection, in milliseconds
    #[arg(long, value_name = "MS", default_value = "7200000")]
    grpc_keepalive_time: NonZeroU64,
    /// How long the server waits for the ping's answer before it closes the connection, in milliseconds
    #[arg(long, value_name = "MS", default_value = "20000")]
    grpc_keepalive_timeout: NonZeroU64,
    /// After how long a gRPC connection accepts no more calls, in milliseconds
    #[arg(long, value_name = "MS")]
    grpc_max_connection_age: Option<NonZeroU64>,
    /// How long its calls may then continue, in milliseconds
    #[arg(long, value_name = "MS")]
    grpc_max_connection_age_grace: Option<NonZeroU64>,
}

/// Triton's flags on gRPC's pings that mean nothing here.
#[derive(Debug, Args)]
#[command(next_help_heading = "Accepted without effect")]
pub(super) struct GrpcPings {
    /// Pings are sent whether or not calls are in flight
    #[arg(long, value_name = "BOOL", value_parser = boolean, action = clap::ArgAction::Set)]
    grpc_keepalive_permit_without_calls: Option<bool>,
    /// Pings are not counted
    #[arg(long, value_name = "N")]
    grpc_http2_max_pings_without_data: Option<u64>,
    /// Clients may send pings as often as they like
    #[arg(long, value_name = "MS")]
    grpc_http2_min_recv_ping_interval_without_data: Option<u64>,
    /// Clients may send pings as often as they like
    #[arg(long, value_name = "N")]
    grpc_http2_max_ping_strikes: Option<u64>,
}

impl GrpcPings {
    /// Each with whether it was given, and why it means nothing.
    pub(super) const fn notices(&self) -> [(bool, &'static str); 4] {
        [
            (
                self.grpc_keepalive_permit_without_calls.is_some(),
                "--grpc-keepalive-permit-without-calls: pings are sent whether or not calls are in flight",
            ),
            (
                self.grpc_http2_max_pings_without_data.is_some(),
                "--grpc-http2-max-pings-without-data: pings are not counted",
            ),
            (
                self.grpc_http2_min_recv_ping_interval_without_data
                    .is_some(),
                "--grpc-http2-min-recv-ping-interval-without-data: clients may send pings as often as they like",
            ),
            (
                self.grpc_http2_max_ping_strikes.is_some(),
                "--grpc-http2-max-ping-strikes: clients may send pings as often as they like",
            ),
        ]
    }
}

impl LimitArgs {
    pub(super) const fn max_json_bytes(&self) -> usize {
        self.http_max_input_size
    }

    /// The CPU whose cores the models share, of this many by itself; none where they do not share.
    pub(super) fn cpu(&self, cores: NonZeroUsize) -> Option<Arc<Device>> {
        let cores = u32::try_from(cores.get()).unwrap_or(u32::MAX);
        let slots = self.cpu_slots.unwrap_or(cores);
        let turn = Duration::from_millis(self.cpu_turn_ms);
        (slots > 0).then(|| Device::with_min_turn(DeviceId::default(), slots, turn))
    }

    pub(super) const fn max_waiting_loads(&self) -> usize {
        self.max_waiting_loads.get()
    }

    pub(super) const fn max_waiting_requests(&self) -> usize {
        self.max_waiting_requests.get()
    }

    /// The limits, as far as the system lets them be. Raises the process's limit on descriptors.
    pub(super) fn limits(&self) -> Limits {
        let possible = descriptors::raise()
            .saturating_sub(OTHER_DESCRIPTORS)
            .max(1);
        let possible = usize::try_from(possible).unwrap_or(usize::MAX);
        if let Some(wanted) = self
            .max_connections
            .filter(|wanted| wanted.get() > possible)
        {
            tracing::warn!(
                "--max-connections={wanted}: at most {possible}, since the process may not open more files (ulimit -n)"
            );
        }
        let wanted = self
            .max_connections
            .map_or(DEFAULT_CONNECTIONS, NonZeroUsize::get);
        let half = || usize::try_from(skep_host::memory().total / 2).unwrap_or(usize::MAX);
        Limits {
            connections: wanted.min(possible),
            request_memory: MemoryBudget::new(
                self.max_request_memory.map_or_else(half, NonZeroUsize::get),
            ),
            head: millis(self.head_timeout_ms),
            body: millis(self.body_timeout_ms),
            write: millis(self.write_timeout_ms),
            idle: millis(self.idle_timeout_ms),
            half_closed: Duration::from_millis(self.half_close_timeout_ms),
            header_fields: usize::from(self.max_header_fields),
        }
    }

    pub(super) fn grpc_connections(&self) -> GrpcConnections {
        let grpc = &self.grpc;
        GrpcConnections {
            keepalive_time: Some(millis(grpc.grpc_keepalive_time)),
            keepalive_timeout: millis(grpc.grpc_keepalive_timeout),
            max_age: grpc.grpc_max_connection_age.map(millis),
            max_age_grace: grpc.grpc_max_connection_age_grace.map(millis),
        }
    }
}

const fn millis(value: NonZeroU64) -> Duration {
    Duration::from_millis(value.get())
}
