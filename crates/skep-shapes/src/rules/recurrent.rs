//! Recurrent layers: `RNN`, `GRU`, `LSTM`.

use super::OutputShapes;
use crate::{
    call::{OperatorCall, size},
    error::RuleRefusal,
};

/// All outputs of the sequence, then the last state, and for `LSTM` the last cell state.
pub(crate) fn recurrent(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let (input, weight) = (call.ranked(0, 3)?, call.ranked(2, 3)?);
    let hidden = match call.int("hidden_size", 0) {
        0 => weight[2],
        stated => size(i128::from(stated))?,
    };
    let directions = match call.text("direction") {
        None | Some("" | "forward" | "reverse") => 1,
        Some("bidirectional") => 2,
        Some(other) => {
            return Err(RuleRefusal::Invalid(format!(
                "has direction {other}, which is none"
            )));
        }
    };
    let (y, state) = if call.flag("layout") {
        let [batch, length, _] = [input[0], input[1], input[2]];
        (
            vec![batch, length, directions, hidden],
            vec![batch, directions, hidden],
        )
    } else {
        let [length, batch, _] = [input[0], input[1], input[2]];
        (
            vec![length, directions, batch, hidden],
            vec![directions, batch, hidden],
        )
    };
    Ok(vec![y, state.clone(), state])
}
