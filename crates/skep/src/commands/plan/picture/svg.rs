//! A picture that is complete as it stands: the smallest plan, each buffer with its name for the mouse.

use std::{collections::HashMap, fmt::Write};

use skep_planner::Buffer;

use super::{FILLS, curve::loads, offsets};
use crate::{
    axis::{ending, escaped, number, step, ticks, whole_step},
    commands::plan::{
        compare::{Comparison, StrategyRow},
        show::waste,
    },
    units::human,
};

const WRITES: &str = "a string takes all";

/// Of a plot, and the room around it for words; all in pixels.
const WIDTH: f64 = 1120.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 28.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 54.0;
const PANEL: f64 = TOP + HEIGHT + BOTTOM;

/// With more buffers than this most are smaller than a pixel: rectangles are drawn on whole pixels, at least one wide
/// and high, and one for all that would be the same.
const DENSE: usize = 3000;

/// A rectangle with less room than this has no words in it.
const LABEL_WIDTH: f64 = 44.0;
const LABEL_HEIGHT: f64 = 13.0;
/// Of a letter, in the picture's font at its size.
const LETTER: f64 = 5.6;

/// Colours for light and dark; the picture follows what its viewer prefers.
const STYLE: &str = "\
svg{--paper:#fff;--ink:#1d2329;--soft:#667280;--rule:#e3e7eb;--bound:#c62828}\
@media(prefers-color-scheme:dark){svg{--paper:#14181d;--ink:#e8ecf0;--soft:#98a4b0;--rule:#2a3139;--bound:#ff7b72}}\
text{fill:var(--ink)}.s{fill:var(--soft)}.g{stroke:var(--rule)}\
.n{font-size:10px;fill:#15191d;stroke:#fff7;stroke-width:2.5px;paint-order:stroke;pointer-events:none}\
rect.b:hover{stroke:var(--ink);stroke-width:1.5}";

/// A panel for each of the records, below each other; `from` says where they come from.
pub(in crate::commands::plan) fn svg(studies: &[Comparison], from: &str) -> String {
    let (width, height) = (LEFT + WIDTH + RIGHT, PANEL * studies.len().max(1) as f64);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"system-ui, 'Segoe UI', Helvetica, Arial, sans-serif\" font-size=\"12\">\n<desc>{}</desc>\n<style>{STYLE}",
        escaped(from)
    );
    for (index, fill) in FILLS.iter().enumerate() {
        write!(svg, ".c{index}{{fill:{fill}}}").expect(WRITES);
    }
    svg.push_str("</style>\n<rect width=\"100%\" height=\"100%\" fill=\"var(--paper)\"/>\n");
    for (index, study) in studies.iter().enumerate() {
        writeln!(
            svg,
            "<g transform=\"translate({LEFT} {})\">",
            PANEL * index as f64 + TOP
        )
        .expect(WRITES);
        match study.best() {
            Some(row) => PlanPanel::new(study, row).draw(&mut svg),
            None => writeln!(svg, "<text>{}: no plan</text>", escaped(&study.title)).expect(WRITES),
        }
        svg.push_str("</g>\n");
    }
    svg.push_str("</svg>\n");
    svg
}

/// A plan, and how steps and bytes become pixels.
struct PlanPanel<'a> {
    study: &'a Comparison,
    row: &'a StrategyRow,
    offsets: Vec<u64>,
    first: f64,
    last: f64,
    /// Bytes at the upper edge.
    top: f64,
    /// Names, which are drawn last: lines may cross rectangles, not words.
    names: String,
}

impl<'a> PlanPanel<'a> {
    fn new(study: &'a Comparison, row: &'a StrategyRow) -> Self {
        let steps = study.records.problem().timeline().steps();
        let end = |step: Option<&u64>| step.map_or(0.0, |step| *step as f64);
        Self {
            study,
            row,
            offsets: offsets(study.records.problem(), row),
            first: end(steps.first()),
            last: end(steps.last()),
            top: (row.plan.size().max(1) as f64) * 1.04,
            names: String::new(),
        }
    }

    fn x(&self, step: f64) -> f64 {
        (step - self.first) / (self.last - self.first).max(1.0) * WIDTH
    }

    fn y(&self, bytes: f64) -> f64 {
        HEIGHT * (1.0 - bytes / self.top)
    }

    fn draw(mut self, svg: &mut String) {
        let (study, row) = (self.study, self.row);
        writeln!(
            svg,
            "<text y=\"-38\" font-size=\"16\" font-weight=\"600\">{}</text>\n<text class=\"s\" y=\"-18\">{} buffers; {}: {}, {}</text>",
            escaped(&study.title),
            study.records.problem().len(),
            row.strategy.name,
            human(row.plan.size()),
            waste(study, row).replace('+', "over the bound by "),
        )
        .expect(WRITES);
        self.grid(svg);
        if study.records.problem().len() > DENSE {
            self.pixels(svg);
        } else {
            self.rectangles(svg);
        }
        self.load(svg);
        self.bounds(svg);
        svg.push_str(&self.names);
    }

    /// Lines and numbers of both axes.
    fn grid(&self, svg: &mut String) {
        let (name, bytes) = unit(self.row.plan.size());
        let highest = self.top / bytes;
        for tick in ticks(0.0, highest, step(highest / 7.0)) {
            let y = self.y(tick * bytes);
            writeln!(
                svg,
                "<path class=\"g\" d=\"M0 {y:.1}H{WIDTH}\"/><text class=\"s\" x=\"-8\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                y + 4.0,
                number(tick)
            )
            .expect(WRITES);
        }
        let distance = whole_step((self.last - self.first) / 10.0);
        for tick in ticks(self.first, self.last, distance) {
            let x = self.x(tick);
            writeln!(
                svg,
                "<path class=\"g\" d=\"M{x:.1} {HEIGHT}v5\"/><text class=\"s\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                HEIGHT + 19.0,
                number(tick)
            )
            .expect(WRITES);
        }
        writeln!(
            svg,
            "<text class=\"s\" x=\"-8\" y=\"-8\" text-anchor=\"end\">{name}</text>\
             <text class=\"s\" x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>",
            WIDTH / 2.0,
            HEIGHT + 38.0
        )
        .expect(WRITES);
    }

    /// Left, right, lower and upper edge of a buffer.
    fn edges(&self, number: usize, buffer: &Buffer) -> (f64, f64, f64, f64) {
        let offset = self.offsets[number] as f64;
        (
            self.x(buffer.start as f64),
            self.x(buffer.end as f64),
            self.y(offset),
            self.y(offset + buffer.size as f64),
        )
    }

    /// What the mouse is told of a buffer.
    fn words(&self, number: usize, buffer: &Buffer) -> String {
        format!(
            "{}\n{} at {}\nsteps {} to {}",
            escaped(&self.study.records.names()[number]),
            human(buffer.size),
            human(self.offsets[number]),
            buffer.start,
            buffer.end - 1
        )
    }

    /// Each buffer where it is, with a line of paper between it and others, and its name if there is room.
    fn rectangles(&mut self, svg: &mut String) {
        let study = self.study;
        let sized = study.records.problem().buffers().iter().enumerate();
        for (number, buffer) in sized.filter(|(_, buffer)| buffer.size > 0) {
            let (left, right, low, high) = self.edges(number, buffer);
            let (width, height) = (right - left, low - high);
            let gap = |length: f64| if length > 4.0 { 0.8 } else { 0.0 };
            let (gap_x, gap_y) = (gap(width), gap(height));
            writeln!(
                svg,
                "<rect class=\"b c{}\" x=\"{left:.2}\" y=\"{high:.2}\" width=\"{:.2}\" height=\"{:.2}\"><title>{}</title></rect>",
                number % FILLS.len(),
                (width - gap_x).max(0.4),
                (height - gap_y).max(0.4),
                self.words(number, buffer)
            )
            .expect(WRITES);
            if width >= LABEL_WIDTH && height >= LABEL_HEIGHT {
                self.name(number, left, (low + high) / 2.0, width);
            }
        }
    }

    /// As much of a name as there is room for.
    fn name(&mut self, number: usize, left: f64, middle: f64, width: f64) {
        #[expect(clippy::cast_sign_loss, reason = "a share of a width")]
        let letters = ((width - 10.0) / LETTER) as usize;
        let name = escaped(&ending(&self.study.records.names()[number], letters));
        let (x, y) = (left + 4.0, middle + 3.5);
        writeln!(
            self.names,
            "<text class=\"n\" x=\"{x:.1}\" y=\"{y:.1}\">{name}</text>"
        )
        .expect(WRITES);
    }

    /// Buffers on whole pixels, large ones below.
    fn pixels(&mut self, svg: &mut String) {
        let problem = self.study.records.problem();
        let mut order: Vec<usize> = (0..problem.len())
            .filter(|&number| problem.buffers()[number].size > 0)
            .collect();
        let area = |number: &usize| {
            let buffer = &problem.buffers()[*number];
            (buffer.end - buffer.start) as f64 * buffer.size as f64
        };
        order.sort_by(|a, b| area(b).total_cmp(&area(a)));
        // By rectangle: the buffer that names it, and how many further ones it stands for.
        let mut drawn: HashMap<[i64; 4], (usize, usize)> = HashMap::new();
        let mut rectangles = Vec::new();
        for number in order {
            let (left, right, low, high) = self.edges(number, &problem.buffers()[number]);
            let (x, y) = (left.floor(), high.floor());
            let (width, height) = ((right.floor() - x).max(1.0), (low.floor() - y).max(1.0));
            let key = [x, y, width, height].map(|length| length as i64);
            let entry = drawn.entry(key).or_insert_with(|| {
                rectangles.push(key);
                (number, 0)
            });
            entry.1 += usize::from(entry.0 != number);
        }
        svg.push_str("<g shape-rendering=\"crispEdges\">\n");
        for key in rectangles {
            let (number, more) = drawn[&key];
            let [x, y, width, height] = key;
            write!(
                svg,
                "<rect class=\"b c{}\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"><title>{}",
                number % FILLS.len(),
                self.words(number, &problem.buffers()[number])
            )
            .expect(WRITES);
            if more > 0 {
                write!(svg, "\nand {more} more").expect(WRITES);
            }
            svg.push_str("</title></rect>\n");
            let [left, high, width, height] = key.map(|length| length as f64);
            if width >= LABEL_WIDTH && height >= LABEL_HEIGHT {
                self.name(number, left, high + height / 2.0, width);
            }
        }
        svg.push_str("</g>\n");
    }

    /// What is live, over time: in each column of pixels the most.
    fn load(&self, svg: &mut String) {
        let problem = self.study.records.problem();
        let loads = loads(problem, &self.offsets);
        let steps = problem.timeline().steps();
        // Corners, of which a column of half a pixel keeps the highest.
        let mut corners: Vec<(f64, u64)> = Vec::new();
        for (section, load) in loads.iter().enumerate() {
            let x = (self.x(steps[section] as f64) * 2.0).floor() / 2.0;
            match corners.last_mut() {
                Some((last, highest)) if (x - *last).abs() < 0.25 => {
                    *highest = (*highest).max(*load)
                }
                _ => corners.push((x, *load)),
            }
        }
        let mut path = String::new();
        for (index, (x, load)) in corners.iter().enumerate() {
            let y = self.y(*load as f64);
            if index == 0 {
                write!(path, "M{x:.1} {y:.1}").expect(WRITES);
            } else {
                write!(path, "H{x:.1}V{y:.1}").expect(WRITES);
            }
        }
        writeln!(
            svg,
            "<g fill=\"none\" pointer-events=\"none\"><path d=\"{path}H{WIDTH}\" stroke=\"var(--paper)\" stroke-width=\"3.5\" opacity=\"0.7\"/>\
             <path d=\"{path}H{WIDTH}\" stroke=\"var(--ink)\" stroke-width=\"1.3\"/></g>"
        )
        .expect(WRITES);
    }

    /// The lower bound, and what the lines are.
    fn bounds(&self, svg: &mut String) {
        let bound = self.study.lower_bound;
        let y = self.y(bound as f64);
        writeln!(
            svg,
            "<path d=\"M0 {y:.1}H{WIDTH}\" stroke=\"var(--bound)\" stroke-width=\"1.5\" stroke-dasharray=\"7 4\"/>\n\
             <g transform=\"translate({WIDTH} -18)\" text-anchor=\"end\">\
             <text class=\"s\">lower bound {}</text><path d=\"M-158 -4h22\" stroke=\"var(--bound)\" stroke-width=\"1.5\" stroke-dasharray=\"7 4\"/>\
             <text class=\"s\" x=\"-176\">live bytes</text><path d=\"M-262 -4h22\" stroke=\"var(--ink)\" stroke-width=\"1.3\"/></g>",
            human(bound)
        )
        .expect(WRITES);
    }
}

/// The unit in which so many bytes have one to four digits before the point, and its bytes.
fn unit(most: u64) -> (&'static str, f64) {
    let units = [("GiB", 30), ("MiB", 20), ("KiB", 10)];
    let unit = units.into_iter().find(|(_, bits)| most >= 1 << bits);
    unit.map_or(("bytes", 1.0), |(name, bits)| (name, f64::from(1 << bits)))
}
