//! The results as a picture: goodput over load, a panel for each model, objective and pattern of arrivals.
//!
//! Plain SVG: axes, lines and words are all there is to it.

use std::fmt::Write;

use skep_sim::{Contender, PolicyFigures};

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
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
const CELL_WIDTH: f64 = LEFT + WIDTH + 22.0;
const CELL_HEIGHT: f64 = TOP + HEIGHT + 46.0;
const MARGIN: f64 = 16.0;
/// Title and what it means; a line of the legend.
const HEAD: f64 = 52.0;
const LEGEND_LINE: f64 = 20.0;
const SUBTITLE_LINE: f64 = 14.0;
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
    ("#7f2704", 1.6, "2 2"),
];

/// Colours after Okabe and Ito, which people with any vision tell apart; Skep's own stands out. `other` counts the policies
/// before it that have no line of their own.
fn style(contender: &Contender, other: usize) -> Style {
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
fn styles(figures: &[PolicyFigures]) -> Vec<Style> {
    let mut others = 0;
    let mut next = |figures: &PolicyFigures| {
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
    /// Whether both axes are requests a second, and not shares of what batches of the best size carry.
    by_rate: bool,
}

impl Axes {
    fn of(study: &Study) -> Self {
        let by_rate = study.by_rate;
        let (mut load, mut share) = if by_rate {
            (0.001, 0.001)
        } else {
            (0.1_f64, 0.05_f64)
        };
        for panel in &study.panels {
            let unit = unit(by_rate, panel);
            for (rate, figures) in &panel.loads {
                load = load.max(rate.rate / unit);
                let goodputs = figures.iter().map(|f| f.goodput.max / unit);
                share = goodputs.fold(share, f64::max);
            }
        }
        let (x_step, y_step) = (step(load / 5.0), step(share / 5.0));
        Self {
            x_end: (load / x_step).ceil() * x_step,
            x_step,
            y_end: (share / y_step).ceil() * y_step,
            y_step,
            by_rate,
        }
    }

    fn x(&self, load: f64) -> f64 {
        LEFT + load / self.x_end * WIDTH
    }

    fn y(&self, share: f64) -> f64 {
        TOP + HEIGHT - share / self.y_end * HEIGHT
    }
}

/// Requests a second that the axes count as 1.
fn unit(by_rate: bool, panel: &Panel) -> f64 {
    if by_rate {
        1.0
    } else {
        panel.model.capacity().rate
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

/// A text in lines that fit the picture, whose letters are about so wide: broken after spaces, and within words that are
/// longer than a line.
fn wrapped(text: &str, width: f64, letter: f64) -> Vec<String> {
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

/// One panel, at the origin.
fn draw(svg: &mut String, panel: &Panel, axes: &Axes) {
    let Axes {
        x_end,
        x_step,
        y_end,
        y_step,
        by_rate,
    } = *axes;
    let label = if by_rate {
        format!(
            "requests/s; load 1 is {}",
            short(panel.model.capacity().rate.round())
        )
    } else {
        "load".to_owned()
    };
    let x = |load: f64| axes.x(load);
    let y = |share: f64| axes.y(share);
    title(svg, panel);
    for tick in ticks(0.0, y_end, y_step) {
        writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}h{WIDTH}\" stroke=\"#e8e8e8\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y(tick) + 4.0,
            short(tick),
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
            short(tick),
            x = x(tick),
        )
        .expect(WRITES);
    }
    let all = x_end.min(y_end);
    writeln!(
        svg,
        "<path d=\"M{LEFT} {bottom}h{WIDTH}\" stroke=\"#999\"/>\
         <path d=\"M{LEFT} {bottom}L{:.1} {:.1}\" stroke=\"#bbb\" stroke-width=\"0.8\"/>\
         <text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#777\">{label}</text>\
         <text transform=\"translate(8 {:.1}) rotate(-90)\" text-anchor=\"middle\" fill=\"#777\">goodput</text>",
        x(all),
        y(all),
        LEFT + WIDTH / 2.0,
        TOP + HEIGHT + 32.0,
        TOP + HEIGHT / 2.0,
        bottom = TOP + HEIGHT,
    )
    .expect(WRITES);
    lines(svg, panel, axes);
}

/// The policies' lines: wide ones below, so that those of equal height are seen above them.
fn lines(svg: &mut String, panel: &Panel, axes: &Axes) {
    let unit = unit(axes.by_rate, panel);
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
            let (x, y) = (axes.x(rate.rate / unit), |goodput: f64| {
                axes.y(goodput / unit)
            });
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

/// A number that fits beside an axis.
fn short(value: f64) -> String {
    match value {
        value if value >= 1e7 => format!("{}M", number(value / 1e6)),
        value if value >= 1e5 => format!("{}k", number(value / 1e3)),
        value => number(value),
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
