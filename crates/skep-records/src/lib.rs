//! Usage records for [`skep_planner`] out of what other tools write.
//!
//! [`Records`] are a problem whose buffers have names. Pure: bytes in, records out, no file is opened here.

mod error;
mod records;

pub use error::RecordsError;
pub use records::Records;
