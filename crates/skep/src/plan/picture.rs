//! Plans as pictures: time by address.

use super::compare::Study;

pub(super) fn svg(_: &[Study]) -> String {
    String::new()
}
pub(super) fn html(_: &[Study]) -> String {
    String::new()
}
