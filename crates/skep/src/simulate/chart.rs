//! The results as a picture: goodput over load, a panel for each model, objective and pattern of arrivals.
//!
//! Plain SVG: axes, lines and words are all there is to it.

use std::fmt::Write;

use skep_sim::Contender;

use super::{
    batching::{Panel, Study},
    show::ms,
};
use crate::axis::{self, number, step, ticks};

const WRITES: &str = "a string takes all";

/// Of a panel's plot, and the room around it for words; all in pixels.
const WIDTH: f64 = 270.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
const CELL_WIDTH: f64 = LEFT + WIDTH + 22.0;
const CELL_HEIGHT: f64 = TOP + HEIGHT + 46.0;
const MARGIN: f64 = 16.0;
/// Title and what it means; a line of the legend.
const HEAD: f64 = 52.0;
const LEGEND_LINE: f64 = 20.0;

/// A policy's line: colours after Okabe and Ito, which people with any vision tell apart; Skep's own stands out.
fn style(contender: Contender) -> (&'static str, f64, &'static str) {
    match contender.name() {
        "none" => ("#999999", 1.6, ""),
        "triton_default" => ("#e69f00", 1.6, ""),
        "static_best" => ("#a65628", 1.6, "7 3"),
        "static_timeout" => ("#a65628", 1.6, ""),
        "aimd" => ("#cc79a7", 1.6, ""),
        "quantile" => ("#f781bf", 1.6, "5 3"),
        "edf" => ("#56b4e9", 1.8, ""),
        "deferred" => ("#009e73", 1.8, ""),
        "auto" => ("#d32f2f", 2.6, ""),
        _ => ("#222222", 1.4, "2 3"),
    }
}

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
    let width = 2.0 * MARGIN + columns as f64 * CELL_WIDTH;
    let (legend, legend_lines) = legend(study, width);
    let head = HEAD + f64::from(legend_lines) * LEGEND_LINE + 14.0;
    let height = head + MARGIN + rows as f64 * CELL_HEIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"26\" font-size=\"16\" font-weight=\"600\">Goodput over load</text>\n\
         <text x=\"{MARGIN}\" y=\"43\" fill=\"#777\">shares of what full batches carry; thin: all requests</text>\n{legend}"
    )
    .expect(WRITES);
    for (index, panel) in study.panels.iter().enumerate() {
        let x = MARGIN + (index % columns) as f64 * CELL_WIDTH;
        let y = head + (index / columns) as f64 * CELL_HEIGHT;
        writeln!(svg, "<g transform=\"translate({x} {y})\">").expect(WRITES);
        draw(&mut svg, panel);
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// The names of the lines, and how many lines of text they take.
fn legend(study: &Study, width: f64) -> (String, u32) {
    let mut svg = String::new();
    let (mut x, mut lines) = (MARGIN, 1);
    let loads = study.panels.first().and_then(|panel| panel.loads.first());
    let figures = loads.map(|(_, figures)| figures.as_slice());
    for figures in figures.unwrap_or_default() {
        let (color, stroke, dashes) = style(figures.contender);
        let name = figures.contender.name();
        let room = 30.0 + 7.0 * name.len() as f64;
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

/// One panel, at the origin.
fn draw(svg: &mut String, panel: &Panel) {
    let capacity = panel.model.capacity();
    let highest = panel
        .loads
        .iter()
        .map(|(load, _)| *load)
        .fold(0.1, f64::max);
    let goodputs = panel.loads.iter().flat_map(|(_, figures)| figures);
    let top = goodputs.map(|f| f.goodput / capacity).fold(0.05, f64::max);
    let (x_step, y_step) = (step(highest / 5.0), step(top / 5.0));
    let (x_end, y_end) = (
        (highest / x_step).ceil() * x_step,
        (top / y_step).ceil() * y_step,
    );
    let x = |load: f64| LEFT + load / x_end * WIDTH;
    let y = |share: f64| TOP + HEIGHT - share / y_end * HEIGHT;
    title(svg, panel);
    for tick in ticks(0.0, y_end, y_step) {
        writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#e8e8e8\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y(tick) + 4.0,
            number(tick),
            y = y(tick),
        )
        .expect(WRITES);
    }
    for tick in ticks(0.0, x_end, x_step) {
        writeln!(
            svg,
            "<path d=\"M{x:.1} {}v4\" stroke=\"#999\"/><text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            TOP + HEIGHT,
            TOP + HEIGHT + 16.0,
            number(tick),
            x = x(tick),
        )
        .expect(WRITES);
    }
    let all = x_end.min(y_end);
    writeln!(
        svg,
        "<path d=\"M{LEFT} {bottom}h{WIDTH}\" stroke=\"#999\"/>\
         <path d=\"M{LEFT} {bottom}L{:.1} {:.1}\" stroke=\"#bbb\" stroke-width=\"0.8\"/>\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777\">load</text>\
         <text transform=\"translate(8 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#777\">goodput</text>",
        x(all),
        y(all),
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 32.0,
        TOP + HEIGHT / 2.0,
        bottom = TOP + HEIGHT,
    )
    .expect(WRITES);
    let contenders = panel.loads.first().map_or(0, |(_, figures)| figures.len());
    for index in 0..contenders {
        let points: Vec<String> = panel
            .loads
            .iter()
            .map(|(load, figures)| {
                let share = figures[index].goodput / capacity;
                format!("{:.1} {:.1}", x(*load), y(share))
            })
            .collect();
        let (color, width, dashes) = style(panel.loads[0].1[index].contender);
        writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\" \
             stroke-linejoin=\"round\" stroke-linecap=\"round\"/>",
            points.join("L")
        )
        .expect(WRITES);
    }
}

fn title(svg: &mut String, panel: &Panel) {
    let objective = ms(panel.objective.as_secs_f64() * 1e3);
    let plural = if panel.model.instances == 1 { "" } else { "s" };
    writeln!(
        svg,
        "<text x=\"{LEFT}\" y=\"13\" font-size=\"12\" font-weight=\"600\">{}, objective {objective} ms</text>\
         <text x=\"{LEFT}\" y=\"27\" fill=\"#777\">{}, {} instance{plural}</text>",
        name(&panel.arrival),
        name(&panel.table),
        panel.model.instances,
    )
    .expect(WRITES);
}

/// The names that users give, mostly of files: of long paths the end.
fn name(text: &str) -> String {
    axis::escaped(&axis::ending(text, 28))
}
