//! The vocabulary of all other modules: names of backends, notices, the wire's datatypes, rules for paths.

pub(crate) mod backends;
pub(crate) mod context;
pub(crate) mod datatypes;
pub(crate) mod notice;
pub(crate) mod paths;
