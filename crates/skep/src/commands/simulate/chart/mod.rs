//! The results as a picture: goodput over load, a panel for each model, objective and pattern of arrivals.
//!
//! Plain SVG: axes, lines and words are all there is to it.

mod panel;
mod style;

use std::fmt::Write;

use super::batching::Study;
use crate::{axis, origin};

use panel::{Axes, CELL_HEIGHT, CELL_WIDTH, draw};
use style::styles;

const WRITES: &str = "a string takes all";

/// Around the picture, in pixels.
pub(super) const MARGIN: f64 = 16.0;
/// Title and what it means; a line of the legend.
const HEAD: f64 = 52.0;
const LEGEND_LINE: f64 = 20.0;
const SUBTITLE_LINE: f64 = 14.0;
/// A line of the version and command.
pub(super) const FOOT_LINE: f64 = 13.0;

/// The whole picture. Panels of one pattern stand below each other, those of one model and objective side by side.
pub(super) fn svg(study: &Study) -> String {
    let mut patterns: Vec<&str> = Vec::new();
    for panel in &study.panels {
        if !patterns.contains(&panel.arrival.as_str()) {
            patterns.push(&panel.arrival);
        }
    }
    let columns = patterns.len().max(1);
    let rows = study.panels.len().div_ceil(columns);
    let room = (columns as f64 * CELL_WIDTH).max(longest_name(study));
    let width = 2.0 * MARGIN + room;
    let (legend, legend_lines) = legend(study, width);
    let subtitle = subtitle(study, width);
    // The first line of it is in `HEAD`.
    let below = (subtitle.len() as f64 - 1.0) * SUBTITLE_LINE;
    let head = HEAD + below + f64::from(legend_lines) * LEGEND_LINE + 14.0;
    let from = origin::line(&study.command);
    let foot = wrapped(&from, width, 5.6);
    let foot_height = foot.len() as f64 * FOOT_LINE;
    let height = head + MARGIN + rows as f64 * CELL_HEIGHT + foot_height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <desc>{}</desc>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        axis::escaped(&from)
    );
    let load = if study.by_rate { "rate" } else { "load" };
    writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"26\" font-size=\"16\" font-weight=\"600\">Goodput over {load}</text>"
    )
    .expect(WRITES);
    for (index, line) in subtitle.iter().enumerate() {
        let y = 43.0 + index as f64 * SUBTITLE_LINE;
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" fill=\"#777\">{line}</text>"
        )
        .expect(WRITES);
    }
    writeln!(
        svg,
        "<g transform=\"translate(0 {below})\" class=\"legend\">\n{legend}</g>"
    )
    .expect(WRITES);
    let axes = Axes::of(study);
    for (index, panel) in study.panels.iter().enumerate() {
        let x = MARGIN + (index % columns) as f64 * CELL_WIDTH;
        let y = head + (index / columns) as f64 * CELL_HEIGHT;
        writeln!(svg, "<g transform=\"translate({x} {y})\">").expect(WRITES);
        draw(&mut svg, panel, &axes);
        svg.push_str("</g>\n");
    }
    for (index, line) in foot.iter().enumerate() {
        let y = height - MARGIN - foot_height + (index as f64 + 1.0) * FOOT_LINE;
        let line = axis::escaped(line);
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"10\" fill=\"#777\">{line}</text>"
        )
        .expect(WRITES);
    }
    svg.push_str("</svg>\n");
    svg
}

/// What the axes and lines mean.
fn subtitle(study: &Study, width: f64) -> Vec<String> {
    let axes = if study.by_rate {
        "requests a second"
    } else {
        "shares of what batches of the best size carry"
    };
    let bars = match study.seeds.len() {
        1 => String::new(),
        count => format!("; bars: the least and the most of {count} traces"),
    };
    wrapped(&format!("{axes}; thin: all requests{bars}"), width, 6.2)
}

/// A text in lines that fit the picture, whose letters are about so wide: broken after spaces, and within words that
/// are longer than a line.
pub(super) fn wrapped(text: &str, width: f64, letter: f64) -> Vec<String> {
    // There is room for ten at least. The cast saturates.
    #[allow(clippy::cast_sign_loss)]
    let room = ((width - 2.0 * MARGIN) / letter).max(10.0) as usize;
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        if used > 0 && used + length > room {
            lines.push(String::new());
            used = 0;
        }
        for letter in word.chars() {
            // A space may hang over the end.
            if used >= room && letter != ' ' {
                lines.push(String::new());
                used = 0;
            }
            lines.last_mut().expect("there is a line").push(letter);
            used += 1;
        }
    }
    lines
}

/// What the legend needs for the longest name.
fn longest_name(study: &Study) -> f64 {
    let loads = study.panels.first().and_then(|panel| panel.loads.first());
    let figures = loads.map(|(_, figures)| figures.as_slice());
    let figures = figures.unwrap_or_default().iter();
    figures
        .map(|f| entry_width(f.contender.name()))
        .fold(0.0, f64::max)
}

/// A line and its name.
fn entry_width(name: &str) -> f64 {
    30.0 + 7.0 * name.chars().count() as f64
}

/// The names of the lines, and how many lines of text they take.
fn legend(study: &Study, width: f64) -> (String, u32) {
    let mut svg = String::new();
    let (mut x, mut lines) = (MARGIN, 1);
    let loads = study.panels.first().and_then(|panel| panel.loads.first());
    let figures = loads.map(|(_, figures)| figures.as_slice());
    let figures = figures.unwrap_or_default();
    for (figures, (color, stroke, dashes)) in figures.iter().zip(styles(figures)) {
        let name = axis::escaped(figures.contender.name());
        let room = entry_width(figures.contender.name());
        if x > MARGIN && x + room > width - MARGIN {
            (x, lines) = (MARGIN, lines + 1);
        }
        let y = HEAD + f64::from(lines) * LEGEND_LINE - 6.0;
        writeln!(
            svg,
            "<path d=\"M{x} {}h24\" stroke=\"{color}\" stroke-width=\"{stroke}\" stroke-dasharray=\"{dashes}\"/>\
             <text x=\"{}\" y=\"{y}\" font-size=\"12\">{name}</text>",
            y - 4.0,
            x + 30.0
        )
        .expect(WRITES);
        x += room + 16.0;
    }
    (svg, lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_break_after_spaces() {
        // Room for ten letters.
        let lines = |text: &str| wrapped(text, 2.0 * MARGIN + 50.0, 5.0);
        assert_eq!(
            lines("skep 0.1: --slo-ms 5x"),
            ["skep 0.1: ", "--slo-ms ", "5x"]
        );
        assert_eq!(
            lines("a /path/that/is/long b"),
            ["a ", "/path/that", "/is/long b"]
        );
        assert_eq!(lines(""), [""]);
    }
}
