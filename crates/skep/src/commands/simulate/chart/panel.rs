//! One panel: the goodput of all policies for a model, an objective and a pattern of arrivals.

use std::fmt::Write;

use super::{WRITES, style::styles};
use crate::{
    axis::{self, number, step, ticks},
    commands::simulate::{
        batching::{Panel, Study},
        show::ms,
    },
};

/// The plot, and the room around it for words; all in pixels.
const WIDTH: f64 = 330.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 34.0;
pub(super) const CELL_WIDTH: f64 = LEFT + WIDTH + 22.0;
pub(super) const CELL_HEIGHT: f64 = TOP + HEIGHT + 46.0;

/// How far the error bars of two policies that follow each other stand apart, so that both are seen.
const APART: f64 = 1.5;

/// Where the axes of all panels end, so that panels can be compared, and the distances of their ticks.
pub(super) struct Axes {
    x_end: f64,
    x_step: f64,
    y_end: f64,
    y_step: f64,
    /// Whether both axes are requests a second, and not shares of what batches of the best size carry.
    by_rate: bool,
}

impl Axes {
    pub(super) fn of(study: &Study) -> Self {
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

/// One panel, at the origin.
pub(super) fn draw(svg: &mut String, panel: &Panel, axes: &Axes) {
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
            // A bar below a pixel is not drawn.
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
