//! What every other module may use: names of backends, notices, the wire's datatypes, rules for paths. It uses none of
//! them.

pub(crate) mod backends;
pub(crate) mod context;
pub(crate) mod datatypes;
pub(crate) mod notice;
pub(crate) mod paths;
