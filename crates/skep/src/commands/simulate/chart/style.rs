//! The lines of policies: colours that people with any vision tell apart, widths, dashes.

use skep_sim::{Contender, PolicyFigures};

/// A policy's line: colour, width, dashes.
pub(super) type LineStyle = (&'static str, f64, &'static str);

/// Of policies that have no line of their own.
const OTHERS: [LineStyle; 4] = [
    ("#5e3c99", 1.6, ""),
    ("#0072b2", 1.6, "6 2 1 2"),
    ("#d55e00", 1.6, "6 2 1 2"),
    ("#7f2704", 1.6, "2 2"),
];

/// Colours after Okabe and Ito, which people with any vision tell apart; Skep's own stands out. `other` counts the
/// policies before it that have no line of their own.
fn style(contender: &Contender, other: usize) -> LineStyle {
    match contender.name() {
        "none" => ("#999999", 1.6, ""),
        "triton_default" => ("#e69f00", 1.6, ""),
        "static_best" => ("#a65628", 1.6, "7 3"),
        "static_timeout" => ("#7a8b00", 1.6, ""),
        "aimd" => ("#cc79a7", 1.6, ""),
        "quantile" => ("#f781bf", 1.6, "5 3"),
        "edf" => ("#56b4e9", 1.8, "8 3"),
        "deferred" => ("#009e73", 1.8, "3 3"),
        "auto" => ("#d32f2f", 3.2, ""),
        "bound" => ("#222222", 1.4, "2 3"),
        _ => OTHERS[other % OTHERS.len()],
    }
}

/// The lines of all policies, in their order.
pub(super) fn styles(figures: &[PolicyFigures]) -> Vec<LineStyle> {
    let mut others = 0;
    let mut next = |figures: &PolicyFigures| {
        let known = Contender::ALL.contains(&figures.contender);
        let style = style(&figures.contender, others);
        others += usize::from(!known);
        style
    };
    figures.iter().map(&mut next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_policies_share_a_colour() {
        let known = Contender::ALL.iter().map(|contender| style(contender, 0));
        let mut colours: Vec<&str> = known.chain(OTHERS).map(|(colour, ..)| colour).collect();
        colours.sort_unstable();
        let count = colours.len();
        colours.dedup();
        assert_eq!(colours.len(), count);
    }
}
