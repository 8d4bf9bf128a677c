//! `skep status`: which models of a running server are in memory, with how many instances, and why.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use skep_client::{Client, DecisionRow, DeviceRow, ModelStatus, ResidencyStatus};

use crate::{
    colour::{Colour, Colours},
    output::{OutputError, out, outln},
    server_flags::ServerArgs,
    table::{TextCell, TextTable},
    units::human,
};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// List all models, those that are not in memory included
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// List the models in these states: known, stored, wanted, loading, resident, leaving. Without this flag and --all,
    /// those that are in memory or about to be
    #[arg(long, value_name = "STATES", value_delimiter = ',')]
    state: Vec<String>,
    /// How many of the last decisions are shown
    #[arg(long, value_name = "N", default_value = "5")]
    decisions: usize,
    /// Print one JSON document, each time on one line with --watch
    #[arg(long)]
    json: bool,
    /// Show the status again and again, every so many seconds, until a signal; 2 without a number
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = interval)]
    watch: Option<Duration>,
    #[command(flatten)]
    server: ServerArgs,
}

/// A shorter interval would keep a core of the server busy.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

fn interval(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds")?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|interval| *interval >= SHORTEST_INTERVAL)
        .ok_or_else(|| "expected at least 0.1 seconds".to_owned())
}

pub(crate) fn run(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(show(args))
}

async fn show(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let Client::Http(client) = args.server.connect().await? else {
        bail!("the status comes over HTTP alone, expected `--url http://...` or `https://...`");
    };
    let states = args.states();
    loop {
        let status = client.residency(&states, false).await;
        let status = status.map_err(|error| args.server.explain(error))?;
        args.print(&status)?;
        let Some(interval) = args.watch else {
            return Ok(ExitCode::SUCCESS);
        };
        tokio::time::sleep(interval).await;
    }
}

impl StatusArgs {
    fn states(&self) -> Vec<String> {
        match (self.all, &self.state[..]) {
            (true, _) => Vec::new(),
            (false, []) => ["wanted", "loading", "resident", "leaving"]
                .map(str::to_owned)
                .into(),
            (false, states) => states.to_vec(),
        }
    }

    fn print(&self, status: &ResidencyStatus) -> anyhow::Result<()> {
        if self.json {
            let text = match self.watch {
                Some(_) => serde_json::to_string(status)?,
                None => serde_json::to_string_pretty(status)?,
            };
            return Ok(outln!("{text}")?);
        }
        let is_screen = self.watch.is_some() && io::stdout().is_terminal();
        if is_screen {
            // To the top left corner, and clear what is below it.
            out!("\x1b[H\x1b[J")?;
        }
        self.print_text(status)?;
        if self.watch.is_some() && !is_screen {
            outln!()?;
        }
        Ok(())
    }

    fn print_text(&self, status: &ResidencyStatus) -> Result<(), OutputError> {
        let colours = Colours::of_output();
        outln!("memory  {}", memory(status))?;
        outln!("models  {}", models(status))?;
        for row in &status.devices {
            outln!("device  {}", device(row))?;
        }
        if !status.models.is_empty() {
            outln!()?;
            out!("{}", table(&status.models).lines(colours))?;
        }
        let live = status.models.iter().filter_map(|model| {
            let why = &model.configuration.as_ref()?.why;
            Some(format!("  {}: {why}", model.name))
        });
        let live: Vec<String> = live.collect();
        if !live.is_empty() {
            outln!()?;
            outln!("live configurations")?;
            for line in live {
                outln!("{line}")?;
            }
        }
        let decisions = &status.decisions[..status.decisions.len().min(self.decisions)];
        if !decisions.is_empty() {
            outln!()?;
            outln!("last decisions")?;
            for decision in decisions {
                outln!("  {}", line(decision))?;
            }
        }
        Ok(())
    }
}

/// What is held and saved, in one line.
fn memory(status: &ResidencyStatus) -> String {
    let memory = &status.memory;
    let budget = match memory.budget {
        Some(budget) => format!(" of {}", human(budget)),
        None => ", no budget".to_owned(),
    };
    let saved = memory.unshared.saturating_sub(memory.held);
    let mut text = format!("{} in use{budget}", human(memory.used));
    if saved > 0 {
        text += &format!("; sharing saves {}", human(saved));
    }
    for (bytes, what) in [
        (memory.kept, "kept without a model"),
        (memory.leaving, "being freed"),
    ] {
        if bytes > 0 {
            text += &format!("; {} {what}", human(bytes));
        }
    }
    text
}

/// What is taken of a device, in one line.
fn device(row: &DeviceRow) -> String {
    let instances = match row.instances {
        1 => "1 instance".to_owned(),
        count => format!("{count} instances"),
    };
    format!(
        "{}: CPUs {}, {} of {} in use, {} of {} cores, {instances}",
        row.name,
        row.cpus,
        human(row.memory_used),
        human(row.memory),
        row.cores_used,
        row.cores
    )
}

/// How many models there are in each state, in one line.
fn models(status: &ResidencyStatus) -> String {
    let present = status.states.iter().filter(|(_, count)| **count > 0);
    let counts: Vec<String> = present
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    match counts.is_empty() {
        true => "none".to_owned(),
        false => counts.join(", "),
    }
}

fn table(models: &[ModelStatus]) -> TextTable {
    let mut table = TextTable::new(&[0, 1, 9]);
    let heading = [
        "model",
        "state",
        "instances",
        "private",
        "shared",
        "rate/s",
        "idle",
        "requests",
        "loads",
        "last decision",
    ];
    table.row(heading.map(TextCell::from).into());
    for model in models {
        table.row(row(model));
    }
    table
}

fn row(model: &ModelStatus) -> Vec<TextCell> {
    let state = TextCell {
        text: model.state.clone(),
        colour: match (&model.failure, &*model.state) {
            (Some(_), _) => Some(Colour::Red),
            (None, "resident") => Some(Colour::Green),
            _ => None,
        },
    };
    let mut instances = model.instances.to_string();
    if let Some(most) = model.max_instances {
        instances += &format!(" of {most}");
    }
    if !model.devices.is_empty() {
        let places = model.devices.iter();
        let places: Vec<String> = places
            .map(|(device, count)| format!("{count} on {device}"))
            .collect();
        instances += &format!(": {}", places.join(", "));
    }
    // An estimate until the first load.
    let about = if model.measured { "" } else { "~" };
    let why = model.decision.as_ref().map(|decision| {
        let ago = age(decision.seconds_ago);
        format!("{} {ago} ago: {}", decision.what, first_line(&decision.why))
    });
    let failure = model.failure.as_ref();
    let failure = failure.map(|why| format!("failed: {}", first_line(why)));
    vec![
        model.name.clone().into(),
        state,
        instances.into(),
        format!("{about}{}", human(model.private_bytes)).into(),
        human(model.shared_bytes).into(),
        format!("{:.2}", model.rate).into(),
        age(model.idle_seconds).into(),
        model.requests.to_string().into(),
        model.loads.to_string().into(),
        failure.or(why).unwrap_or_default().into(),
    ]
}

fn line(decision: &DecisionRow) -> String {
    format!(
        "{} ago  {} {}: {}",
        age(decision.seconds_ago),
        decision.what,
        decision.model,
        first_line(&decision.why)
    )
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A duration in its largest whole unit.
fn age(seconds: f64) -> String {
    for (unit, length) in [("d", 86_400.0), ("h", 3600.0), ("min", 60.0)] {
        if seconds >= length {
            return format!("{:.0} {unit}", (seconds / length).floor());
        }
    }
    format!("{seconds:.0} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_the_largest_whole_unit() {
        let ages = [0.2, 59.0, 60.0, 3599.0, 7200.0, 200_000.0].map(age);
        assert_eq!(ages, ["0 s", "59 s", "1 min", "59 min", "2 h", "2 d"]);
    }

    #[test]
    fn intervals_are_bounded() {
        assert_eq!(interval("0.5"), Ok(Duration::from_millis(500)));
        for text in ["0", "-1", "nan", "1e30", "x"] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_is_said_in_one_line() {
        let mut status = ResidencyStatus::default();
        assert_eq!(memory(&status), "0 B in use, no budget");
        status.memory.budget = Some(1 << 30);
        status.memory.used = 3 << 20;
        status.memory.held = 2 << 20;
        status.memory.unshared = 7 << 20;
        status.memory.kept = 1 << 20;
        assert_eq!(
            memory(&status),
            "3.00 MiB in use of 1.00 GiB; sharing saves 5.00 MiB; 1.00 MiB kept without a model"
        );
        status.states.insert("known".to_owned(), 3);
        status.states.insert("loading".to_owned(), 0);
        assert_eq!(models(&status), "3 known");
    }
}
