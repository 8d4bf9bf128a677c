//! The results as a picture: goodput over load, a panel for each model, objective and pattern of arrivals.
//!
//! Plain SVG: axes, lines and words are all there is to it.

use std::fmt::Write;

use skep_sim::{Contender, Figures};

use super::{
    batching::{Panel, Study},
    show::ms,
};
use crate::{
    axis::{self, number, step, ticks},
    origin,
};

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
/// A line of the version and command.
const FOOT_LINE: f64 = 13.0;

/// How far the error bars of two policies that follow each other stand apart, so that both are seen.
const APART: f64 = 1.5;

/// A policy's line: colour, width, dashes.
type Style = (&'static str, f64, &'static str);

/// Of policies that have no line of their own.
const OTHERS: [Style; 4] = [
    ("#5e3c99", 1.6, ""),
    ("#0072b2", 1.6, "6 2 1 2"),
    ("#d55e00", 1.6, "6 2 1 2"),
    ("#5e3c99", 1.6, "2 2"),
];

/// Colours after Okabe and Ito, which people with any vision tell apart; Skep's own stands out. `other` counts the policies
/// before it that have no line of their own.
fn style(contender: &Contender, other: usize) -> Style {
    match contender.name() {
        "none" => ("#999999", 1.6, ""),
        "triton_default" => ("#e69f00", 1.6, ""),
        "static_best" => ("#a65628", 1.6, "7 3"),
        "static_timeout" => ("#a65628", 1.6, ""),
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
fn styles(figures: &[Figures]) -> Vec<Style> {
    let mut others = 0;
    let mut next = |figures: &Figures| {
        let known = Contender::ALL.contains(&figures.contender);
        let style = style(&figures.contender, others);
        others += usize::from(!known);
        style
    };
    figures.iter().map(&mut next).collect()
}

/// Where the axes of all panels end, so that panels can be compared, and the distances of their ticks.
struct Axes {
    x_end: f64,
    x_step: f64,
    y_end: f64,
    y_step: f64,
}

impl Axes {
    fn of(panels: &[Panel]) -> Self {
        let (mut load, mut share) = (0.1_f64, 0.05_f64);
        for panel in panels {
            for (rate, figures) in &panel.loads {
                load = load.max(rate.load);
                let goodputs = figures
                    .iter()
                    .map(|f| f.goodput.max / panel.model.capacity().rate);
                share = goodputs.fold(share, f64::max);
            }
        }
        let (x_step, y_step) = (step(load / 5.0), step(share / 5.0));
        Self {
            x_end: (load / x_step).ceil() * x_step,
            x_step,
            y_end: (share / y_step).ceil() * y_step,
            y_step,
        }
    }

    fn x(&self, load: f64) -> f64 {
        LEFT + load / self.x_end * WIDTH
    }

    fn y(&self, share: f64) -> f64 {
        TOP + HEIGHT - share / self.y_end * HEIGHT
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
    let from = origin::line(&study.command);
    let foot = foot(&from, width);
    let foot_height = foot.len() as f64 * FOOT_LINE;
    let height = head + MARGIN + rows as f64 * CELL_HEIGHT + foot_height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"11\" fill=\"#333\">\n\
         <desc>{}</desc>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        axis::escaped(&from)
    );
    let bars = match study.seeds.len() {
        1 => String::new(),
        count => format!("; bars: the least and the most of {count} traces"),
    };
    writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"26\" font-size=\"16\" font-weight=\"600\">Goodput over load</text>\n\
         <text x=\"{MARGIN}\" y=\"43\" fill=\"#777\">shares of what batches of the best size carry; thin: all requests{bars}</text>\n{legend}"
    )
    .expect(WRITES);
    let axes = Axes::of(&study.panels);
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

/// A text in lines that fit the picture.
fn foot(text: &str, width: f64) -> Vec<String> {
    // A letter of 10 pixels is about 5.6 wide; there is room for ten at least. The cast saturates.
    #[allow(clippy::cast_sign_loss)]
    let letters = ((width - 2.0 * MARGIN) / 5.6).max(10.0) as usize;
    let letters_of: Vec<char> = text.chars().collect();
    let lines = letters_of.chunks(letters);
    lines.map(|line| line.iter().collect()).collect()
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
fn draw(svg: &mut String, panel: &Panel, axes: &Axes) {
    let capacity = panel.model.capacity().rate;
    let Axes {
        x_end,
        x_step,
        y_end,
        y_step,
    } = *axes;
    let x = |load: f64| axes.x(load);
    let y = |share: f64| axes.y(share);
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
    lines(svg, panel, axes, capacity);
}

/// The policies' lines: wide ones below, so that those of equal height are seen above them.
fn lines(svg: &mut String, panel: &Panel, axes: &Axes, capacity: f64) {
    let first = panel.loads.first().map(|(_, figures)| figures.as_slice());
    let styles = styles(first.unwrap_or_default());
    let middle = styles.len() as f64 / 2.0;
    let mut order: Vec<usize> = (0..styles.len()).collect();
    order.sort_by(|a, b| styles[*b].1.total_cmp(&styles[*a].1));
    for index in order {
        let (color, width, dashes) = styles[index];
        let (mut points, mut bars) = (Vec::new(), String::new());
        for (rate, figures) in &panel.loads {
            let goodput = figures[index].goodput;
            let (x, y) = (axes.x(rate.load), |goodput: f64| axes.y(goodput / capacity));
            points.push(format!("{x:.1} {:.1}", y(goodput.median)));
            let (low, high) = (y(goodput.min), y(goodput.max));
            // What is below a pixel is no bar.
            if low - high >= 1.0 {
                let x = x + (index as f64 - middle) * APART;
                write!(bars, "M{:.1} {high:.1}h4m-2 0V{low:.1}m-2 0h4", x - 2.0).expect(WRITES);
            }
        }
        if !bars.is_empty() {
            writeln!(
                svg,
                "<path d=\"{bars}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1\" class=\"spread\"/>"
            )
            .expect(WRITES);
        }
        writeln!(
            svg,
            "<path d=\"M{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"{width}\" stroke-dasharray=\"{dashes}\" \
             stroke-linejoin=\"round\" stroke-linecap=\"butt\"/>",
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
