//! What the machine, and the control groups that the process is in, offer it.
//!
//! Every default that depends on the size of the machine (requests in memory, memory of a run, the store's budget)
//! reads it here, so that a limit of a container is seen by all of them. [`open_file`] and its like read files that may
//! be anything, [`read_named`] those that a command line names. [`end_process`] is how a server ends when parts of it
//! do not. [`set_variable_before_threads`] tells libraries what they read from the environment. [`lock`] is the one way
//! to lock a mutex whose poisoning does not matter.

mod environment;
mod exit;
mod files;
mod lock;
mod memory;
mod pages;
mod pressure;

pub use environment::set_variable_before_threads;
pub use exit::end_process;
pub use files::{open_file, read_file, read_named, read_named_text, read_text};
pub use lock::lock;
pub use memory::{Memory, memory};
pub use pages::replace_pages;
pub use pressure::PressureWatch;
