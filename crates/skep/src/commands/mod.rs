//! The subcommands, a module each. What several of them share lies beside this folder.

pub(crate) mod bake;
pub(crate) mod check;
pub(crate) mod doctor;
pub(crate) mod generate;
pub(crate) mod infer;
pub(crate) mod pack;
pub(crate) mod plan;
pub(crate) mod profile;
pub(crate) mod replay;
pub(crate) mod sandbox;
pub(crate) mod serve;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod trace;
