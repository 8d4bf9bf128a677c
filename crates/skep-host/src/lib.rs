//! What the machine and its control groups offer the process.
//!
//! Every default that depends on the size of the machine (requests in memory, memory of a run, the store's budget) uses
//! [`memory()`], so that all of them respect a container's limit. [`open_file`] and [`read_file`] read files that may be
//! anything, [`read_named`] those that a command line names. [`end_process`] ends a server whose parts do not end.
//! [`set_variable_before_threads`] sets environment variables for libraries. [`replace_pages`] exchanges the pages of a
//! mapping. [`with_niceness`] runs work that others go before, [`on_cpus`] work that has CPUs of its own. [`ThreadCounters`]
//! counts cache misses and the like. [`lock()`] is the one way to lock a mutex whose poisoning does not matter.

mod affinity;
mod counters;
mod cpu;
mod environment;
mod exit;
mod files;
mod lock;
mod memory;
mod pages;
mod pressure;
mod priority;

pub use affinity::{bind_process, bind_thread, on_cpus, own_cpus};
pub use counters::{EventCounts, ThreadCounters};
pub use cpu::process_cpu_time;
pub use environment::set_variable_before_threads;
pub use exit::end_process;
pub use files::{open_file, read_file, read_named, read_named_text, read_text};
pub use lock::lock;
pub use memory::{Memory, memory, private_bytes, private_bytes_of};
pub use pages::replace_pages;
pub use pressure::PressureWatch;
pub use priority::with_niceness;
