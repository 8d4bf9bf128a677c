//! The memory estimate as text and as JSON.

use serde_json::{Value, json};
use skep_estimate::MemoryEstimate;

use super::recorded;
use crate::units::human;

/// What is said of a model beside its plans.
pub(crate) struct EstimateReport {
    /// The batch size of the plans; `None` where the file or the arguments leave none open.
    pub(super) batch: Option<usize>,
    /// Bytes of inputs and outputs at that batch size.
    pub(super) input_bytes: u64,
    pub(super) output_bytes: u64,
    pub(super) instances: Vec<u32>,
    /// Nodes whose inner tensors are not counted.
    pub(super) left_out: Vec<String>,
    /// An estimate for each batch size.
    pub(super) rows: Vec<(Option<usize>, MemoryEstimate)>,
}

impl EstimateReport {
    /// Whether a plan of this title is of a part of the tensors alone. A run leaves nothing out.
    pub(crate) fn leaves_out(&self, title: &str) -> bool {
        !self.left_out.is_empty() && title != recorded::NAME
    }

    /// What the plans are of.
    pub(crate) fn heading(&self) -> String {
        let batch = self
            .batch
            .map_or_else(String::new, |batch| format!("batch {batch}, "));
        format!(
            "{batch}in the caller's memory: inputs {}, outputs {}\n\n",
            human(self.input_bytes),
            human(self.output_bytes)
        )
    }

    /// A line for each batch size: the classes of one instance, and the sum with each number of instances.
    pub(crate) fn table(&self) -> String {
        let fixed = ["batch", "weights", "intermediates", "workspace", "runtime"];
        let mut lines: Vec<Vec<String>> = vec![fixed.map(str::to_owned).to_vec()];
        lines[0].extend(self.instances.iter().map(|&count| match count {
            1 => "1 instance".to_owned(),
            count => format!("{count} instances"),
        }));
        let (least, sums) = match self.left_out.is_empty() {
            true => ("", ""),
            false => ("at least ", ", and sums are at least what is said"),
        };
        let first = self.instances.first().copied().unwrap_or(1);
        for (batch, estimate) in &self.rows {
            let classes = estimate.with_instances(first.into());
            let mut line =
                vec![batch.map_or_else(|| "fixed".to_owned(), |batch| batch.to_string())];
            line.extend([
                human(classes.weights),
                format!("{least}{}", human(classes.intermediates)),
                human(classes.workspace),
                human(classes.runtime),
            ]);
            let totals = self.instances.iter();
            line.extend(totals.map(|&n| human(estimate.with_instances(n.into()).total())));
            lines.push(line);
        }
        let of_one = match first {
            1 => "one instance".to_owned(),
            count => format!("{count} instances"),
        };
        format!(
            "\nmemory of a server with this model alone, on ONNX Runtime, estimated; classes are those of {of_one}{sums}\n\n{}",
            aligned(&lines)
        )
    }

    /// The members that the report adds to a document.
    pub(crate) fn members(&self) -> Vec<(&'static str, Value)> {
        let mut rows = Vec::new();
        for (batch, estimate) in &self.rows {
            for &instances in &self.instances {
                let classes = estimate.with_instances(instances.into());
                rows.push(json!({
                    "batch": batch,
                    "instances": instances,
                    "weights": classes.weights,
                    "intermediates": classes.intermediates,
                    "workspace": classes.workspace,
                    "runtime": classes.runtime,
                    "total": classes.total(),
                }));
            }
        }
        vec![
            ("batch", json!(self.batch)),
            ("input_bytes", json!(self.input_bytes)),
            ("output_bytes", json!(self.output_bytes)),
            ("not_counted", json!(self.left_out)),
            ("estimate", json!(rows)),
        ]
    }
}

/// Columns side by side, each to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:>width$}"))
            .collect();
        format!("  {}\n", cells.join("  "))
    };
    lines.iter().map(line).collect()
}
