//! The figures of platforms as tables, and as rows.

use serde_json::json;
use skep_sim::cluster::{ClusterOutcome, memory_dollars};

use super::{ClusterPanel, document::ScenarioDocument};
use crate::{
    colour::{Colour, Colours},
    commands::simulate::rows::FigureRow,
    origin,
    table::{TextCell, TextTable},
};

pub(super) fn text(
    document: &ScenarioDocument,
    panels: &[ClusterPanel],
    colours: Colours,
) -> String {
    let nodes = &document.nodes;
    let mut text = format!(
        "{} nodes with {} CPUs and {} GiB, {} minutes.\n",
        nodes.count, nodes.cpus, nodes.memory_gib, document.minutes
    );
    for panel in panels {
        text += &format!("\n{}, {} requests\n\n", panel.title(), panel.requests);
        text += &panel.table().lines(colours);
        for outcome in &panel.outcomes {
            if outcome.unplaced > 0 {
                text += &format!(
                    "{}: {} instances found no node with room\n",
                    outcome.platform, outcome.unplaced
                );
            }
            if outcome.overrun_bytes > 0 {
                text += &format!(
                    "{}: a node would have held {:.2} GB more than it has, since sizes are guessed\n",
                    outcome.platform,
                    outcome.overrun_bytes as f64 / 1e9
                );
            }
        }
    }
    text += "\nMemory and cores are means over time, in GB (10^9 bytes): what instances hold, and own. bound: the platform's \
             own tensors,\neach once in the cluster; above: memory beyond that. late: not answered within the sum of the \
             stages' objectives, or\ngiven up. cold: waited for the start of an instance. $/100: 100 requests' memory at \
             $0.0504 for a GB and an hour, which\nis the price of an r6g.medium with 8 GiB, as the authors of Tetris count \
             it.\n";
    text
}

impl ClusterPanel {
    /// How requests come, and how instances are placed where that is not the platforms' own way.
    pub(super) fn title(&self) -> String {
        let arrival = match &self.arrival {
            Some(arrival) => format!("{arrival} arrivals"),
            None => "arrivals as the scenario says".to_owned(),
        };
        match self.placement {
            Some(placement) => format!("{arrival}, placement {placement}"),
            None => arrival,
        }
    }

    fn table(&self) -> TextTable {
        let mut table = TextTable::new(&[0]);
        let heading = [
            "platform",
            "memory",
            "peak",
            "bound",
            "above",
            "cores",
            "instances",
            "per GB",
            "nodes",
            "late %",
            "cold %",
            "starts",
            "GB s/100",
            "$/100",
        ];
        table.row(heading.map(TextCell::from).into());
        let least = self
            .outcomes
            .iter()
            .map(|outcome| outcome.mean_bytes)
            .fold(f64::INFINITY, f64::min);
        for outcome in &self.outcomes {
            let mut cells = cells(outcome);
            if outcome.mean_bytes <= least {
                cells[1].colour = Some(Colour::Green);
            }
            table.row(cells);
        }
        table
    }
}

fn cells(outcome: &ClusterOutcome) -> Vec<TextCell> {
    let gb = |bytes: f64| format!("{:.2}", bytes / 1e9);
    let part = |count: usize| {
        let part = 100.0 * count as f64 / outcome.requests.max(1) as f64;
        format!("{part:.2}")
    };
    let used = outcome.gb_seconds_per_100();
    vec![
        outcome.platform.name().into(),
        gb(outcome.mean_bytes).into(),
        gb(outcome.peak_bytes as f64).into(),
        gb(outcome.mean_distinct_bytes).into(),
        gb(outcome.bytes_above_bound()).into(),
        format!("{:.1}", outcome.mean_cores).into(),
        format!("{:.1}", outcome.mean_instances).into(),
        format!("{:.1}", outcome.instances_per_gb()).into(),
        format!("{:.1}", outcome.mean_nodes).into(),
        part(outcome.late()).into(),
        part(outcome.cold).into(),
        outcome.starts.to_string().into(),
        format!("{used:.2}").into(),
        format!("{:.6}", memory_dollars(used)).into(),
    ]
}

pub(super) fn rows<'a>(
    panels: &'a [ClusterPanel],
    command: &'a str,
) -> impl Iterator<Item = FigureRow> + 'a {
    panels.iter().flat_map(move |panel| {
        let outcomes = panel.outcomes.iter();
        outcomes.map(move |outcome| row(panel, outcome, command))
    })
}

fn row(panel: &ClusterPanel, outcome: &ClusterOutcome, command: &str) -> FigureRow {
    let late_of = panel.applications.iter().zip(&outcome.late_of);
    let late_of = late_of.map(|(name, late)| (name.clone(), json!(late)));
    let used = outcome.gb_seconds_per_100();
    vec![
        ("arrival", json!(panel.arrival)),
        ("placement", json!(panel.placement.map(|one| one.name()))),
        ("platform", json!(outcome.platform.name())),
        ("requests", json!(outcome.requests)),
        ("late", json!(outcome.late())),
        ("given_up", json!(outcome.given_up)),
        ("cold", json!(outcome.cold)),
        ("late_of", json!(late_of.collect::<serde_json::Map<_, _>>())),
        ("starts", json!(outcome.starts)),
        ("unplaced", json!(outcome.unplaced)),
        ("read_bytes", json!(outcome.read_bytes)),
        ("mean_bytes", json!(outcome.mean_bytes)),
        ("mean_tensor_bytes", json!(outcome.mean_tensor_bytes)),
        ("bound_bytes", json!(outcome.mean_distinct_bytes)),
        ("above_bound_bytes", json!(outcome.bytes_above_bound())),
        ("peak_bytes", json!(outcome.peak_bytes)),
        ("overrun_bytes", json!(outcome.overrun_bytes)),
        ("mean_cores", json!(outcome.mean_cores)),
        ("mean_instances", json!(outcome.mean_instances)),
        ("peak_instances", json!(outcome.peak_instances)),
        ("instances_per_gb", json!(outcome.instances_per_gb())),
        ("mean_nodes", json!(outcome.mean_nodes)),
        ("seconds", json!(outcome.span.as_secs_f64())),
        ("gb_seconds_per_100", json!(used)),
        ("dollars_per_100", json!(memory_dollars(used))),
        ("version", json!(origin::VERSION)),
        ("command", json!(command)),
    ]
}
