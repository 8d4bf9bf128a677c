//! The figures of platforms as a picture: a bar of memory for each, with its late requests beside it.

use std::fmt::Write;

use skep_sim::cluster::ClusterOutcome;

use super::ClusterPanel;
use crate::{
    axis::{escaped, number, step, ticks},
    commands::simulate::chart::{FOOT_LINE, MARGIN, wrapped},
    origin,
};

const WRITES: &str = "a string takes all";

/// Pixels.
const WIDTH: f64 = 760.0;
const NAMES: f64 = 110.0;
const BARS: f64 = 420.0;
const LINE: f64 = 20.0;
const HEAD: f64 = 74.0;
/// A panel's title, and its axis.
const TITLE: f64 = 26.0;
const AXIS: f64 = 40.0;

/// What a bar consists of, in colours after Okabe and Ito, which people with any vision tell apart.
const PARTS: [(&str, &str); 3] = [
    ("tensors, each once in the cluster", "#0072b2"),
    ("copies of them", "#e69f00"),
    ("private memory and processes", "#999999"),
];

pub(super) fn svg(panels: &[ClusterPanel], command: &str) -> String {
    let rows: usize = panels.iter().map(|panel| panel.outcomes.len()).sum();
    let from = origin::line(command);
    let foot = wrapped(&from, WIDTH, 5.6);
    let top = HEAD + panels.len() as f64 * (TITLE + AXIS) + rows as f64 * LINE;
    let height = top + foot.len() as f64 * FOOT_LINE + MARGIN;
    let from = escaped(&from);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <desc>{from}</desc>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"{MARGIN}\" y=\"26\" font-size=\"16\" font-weight=\"600\">Memory of platforms, mean over time</text>\n"
    );
    let mut x = MARGIN;
    for (name, colour) in PARTS {
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"42\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"52\">{name}</text>",
            x + 18.0
        )
        .expect(WRITES);
        x += 40.0 + 6.0 * name.chars().count() as f64;
    }
    let mut y = HEAD;
    for panel in panels {
        draw(&mut svg, panel, y);
        y += TITLE + AXIS + panel.outcomes.len() as f64 * LINE;
    }
    for (index, line) in foot.iter().enumerate() {
        writeln!(
            svg,
            "<text x=\"{MARGIN}\" y=\"{}\" font-size=\"10\" fill=\"#777\">{}</text>",
            top + (index as f64 + 1.0) * FOOT_LINE,
            escaped(line)
        )
        .expect(WRITES);
    }
    svg.push_str("</svg>\n");
    svg
}

/// One panel, whose bars have an axis of their own.
fn draw(svg: &mut String, panel: &ClusterPanel, top: f64) {
    let most = panel.outcomes.iter().map(|one| one.mean_bytes / 1e9);
    let most = most.fold(0.001, f64::max);
    let distance = step(most / 5.0);
    let end = (most / distance).ceil() * distance;
    let left = MARGIN + NAMES;
    let bars = top + TITLE;
    let bottom = bars + panel.outcomes.len() as f64 * LINE;
    let (title, late) = (escaped(&panel.title()), left + BARS + 20.0);
    writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{y}\" font-size=\"12\" font-weight=\"600\">{title}</text>\
         <text x=\"{late}\" y=\"{y}\" fill=\"#777\">late %, cores, instances per GB</text>",
        y = top + 12.0
    )
    .expect(WRITES);
    for tick in ticks(0.0, end, distance) {
        let x = left + tick / end * BARS;
        writeln!(
            svg,
            "<path d=\"M{x:.1} {bars}V{bottom}\" stroke=\"#e8e8e8\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 14.0,
            number(tick)
        )
        .expect(WRITES);
    }
    writeln!(
        svg,
        "<text x=\"{late}\" y=\"{}\" fill=\"#777\">GB</text>",
        bottom + 14.0
    )
    .expect(WRITES);
    for (index, outcome) in panel.outcomes.iter().enumerate() {
        bar(svg, outcome, bars + index as f64 * LINE, end);
    }
}

fn bar(svg: &mut String, outcome: &ClusterOutcome, top: f64, end: f64) {
    let left = MARGIN + NAMES;
    let middle = top + 14.0;
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
        left - 8.0,
        outcome.platform
    )
    .expect(WRITES);
    let bytes = [
        outcome.mean_distinct_bytes,
        outcome.mean_tensor_bytes - outcome.mean_distinct_bytes,
        outcome.mean_bytes - outcome.mean_tensor_bytes,
    ];
    let mut x = left;
    for ((_, colour), bytes) in PARTS.iter().zip(bytes) {
        let width = bytes / 1e9 / end * BARS;
        writeln!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"/>",
            top + 3.0
        )
        .expect(WRITES);
        x += width;
    }
    writeln!(
        svg,
        "<text x=\"{}\" y=\"{middle}\">{:.2} %, {:.1}, {:.1}</text>",
        left + BARS + 20.0,
        100.0 * outcome.late_part(),
        outcome.mean_cores,
        outcome.instances_per_gb()
    )
    .expect(WRITES);
}
