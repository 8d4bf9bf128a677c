//! What `--list` prints: allocators, their options, and the costs of the device.

use std::fmt::Write;

use skep_lab::CostModel;
use skep_layout::allocator::CATALOGUE;

use super::PLANNED;

const WRITES: &str = "a string takes all";

pub(super) fn text(cost: &CostModel) -> String {
    let mut text = String::from("allocators, with their options and defaults:\n");
    for entry in CATALOGUE {
        write!(text, "\n{}: {}\n", entry.name, entry.text).expect(WRITES);
        for option in entry.options() {
            writeln!(
                text,
                "    {}={}  {}",
                option.name, option.default, option.text
            )
            .expect(WRITES);
        }
    }
    write!(
        text,
        "\n{PLANNED}: the offline optimum of the trace itself, replayed\n\ncosts of the device, for --cost:\n"
    )
    .expect(WRITES);
    for (name, value) in cost.entries() {
        writeln!(text, "    {name}={}", (value * 1e6).round() / 1e6).expect(WRITES);
    }
    text
}
