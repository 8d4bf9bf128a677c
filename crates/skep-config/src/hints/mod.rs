//! Hints: what the user probably meant, and what to write instead.

pub(crate) mod foreign;
pub(crate) mod near_miss;
pub(crate) mod suggest;
