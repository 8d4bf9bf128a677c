//! A scenario as a file.

use std::{path::Path, time::Duration};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use skep_perf::profile::ProfileFile;
use skep_sim::{
    Jitter,
    cluster::{
        Application, ClusterModel, ClusterScenario, Configuration, LatencyFormula, Resources,
        StartCosts, TensorKey,
    },
};

use super::arrival::ClusterArrival;
use crate::commands::{pack::tensor_key, simulate::flags};

/// The name of the scenario that comes with the program.
pub(super) const FOUR_APPLICATIONS: &str = "four-applications";

const FOUR_APPLICATIONS_TEXT: &str = include_str!("four-applications.json");

const MIB: f64 = (1 << 20) as f64;

/// The most configurations of a model.
const MAX_CONFIGURATIONS: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScenarioDocument {
    pub(super) nodes: NodesDocument,
    pub(super) minutes: f64,
    #[serde(default)]
    pub(super) seed: u64,
    /// The deviation of the logarithm of execution times.
    #[serde(default)]
    pub(super) jitter: f64,
    pub(super) keep_alive_s: f64,
    /// What a CPU is worth beside memory.
    #[serde(default = "cpu_mib")]
    pub(super) cpu_mib: f64,
    #[serde(default = "one")]
    pub(super) spread: f64,
    pub(super) start: StartDocument,
    pub(super) models: Vec<ModelDocument>,
    pub(super) applications: Vec<ApplicationDocument>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodesDocument {
    pub(super) count: usize,
    pub(super) cpus: u32,
    pub(super) memory_gib: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StartDocument {
    process_ms: f64,
    process_mib: f64,
    instance_ms: f64,
    read_mib_per_s: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelDocument {
    name: String,
    slo_ms: f64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    cpus: Vec<u32>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    tensors: Vec<TensorDocument>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    formula: Option<FormulaDocument>,
    /// A file of `skep profile`, or a table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorDocument {
    name: String,
    mib: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FormulaDocument {
    fixed_ms: f64,
    item_ms: f64,
    parallel: f64,
    private_mib: f64,
    request_mib: f64,
    max_batch: u32,
    max_concurrency: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplicationDocument {
    name: String,
    stages: Vec<String>,
    pub(super) requests_per_s: f64,
    pub(super) arrival: String,
}

/// Tensors with their bytes.
type Tensors = Vec<(TensorKey, u64)>;

const fn cpu_mib() -> f64 {
    16.0
}

const fn one() -> f64 {
    1.0
}

impl ScenarioDocument {
    /// The scenario that comes with the program, or that of a file.
    pub(super) fn load(name: &str) -> anyhow::Result<Self> {
        if name == FOUR_APPLICATIONS {
            return Ok(serde_json::from_str(FOUR_APPLICATIONS_TEXT)?);
        }
        let text = flags::read(name)
            .with_context(|| format!("SCENARIO: expected {FOUR_APPLICATIONS} or a file"))?;
        serde_json::from_str(&text)
            .with_context(|| format!("`{name}` is not a scenario of `skep simulate cluster`"))
    }

    /// Keeps only these applications; an empty list keeps all.
    pub(super) fn keep_applications(&mut self, names: &[String]) -> anyhow::Result<()> {
        let known: Vec<&str> = self.applications.iter().map(|one| &*one.name).collect();
        if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
            bail!(
                "--application {unknown}: the scenario has no such application, but {}",
                known.join(", ")
            );
        }
        if !names.is_empty() {
            self.applications.retain(|one| names.contains(&one.name));
        }
        Ok(())
    }

    /// As a file has it.
    pub(super) fn text(&self) -> String {
        let text = serde_json::to_string_pretty(self).expect("numbers and texts");
        text + "\n"
    }

    /// What is simulated, but for the requests. Files lie relative to `directory`.
    pub(super) fn scenario(&self, directory: &Path) -> anyhow::Result<ClusterScenario> {
        self.check()?;
        let start = &self.start;
        let costs = StartCosts {
            process: millis(start.process_ms),
            process_bytes: bytes(start.process_mib),
            instance: millis(start.instance_ms),
            bytes_per_second: start.read_mib_per_s * MIB,
        };
        let models = self.models.iter();
        let models = models.map(|model| model.model(directory, &costs));
        Ok(ClusterScenario {
            nodes: self.nodes.count,
            node: Resources {
                bytes: bytes(self.nodes.memory_gib * 1024.0),
                millicores: u64::from(self.nodes.cpus) * 1000,
            },
            models: models.collect::<anyhow::Result<_>>()?,
            applications: Vec::new(),
            span: Duration::from_secs_f64(self.minutes * 60.0),
            costs,
            jitter: match self.jitter > 0.0 {
                true => Jitter::LogNormal(self.jitter),
                false => Jitter::None,
            },
            keep_alive: Duration::from_secs_f64(self.keep_alive_s),
            bytes_per_cpu: bytes(self.cpu_mib),
            spread: self.spread,
            seed: self.seed,
        })
    }

    /// The applications with their requests: as the scenario says, or all by `arrival`.
    pub(super) fn applications(
        &self,
        arrival: Option<&ClusterArrival>,
    ) -> anyhow::Result<Vec<Application>> {
        let span = Duration::from_secs_f64(self.minutes * 60.0);
        let one = |(index, application): (usize, &ApplicationDocument)| {
            let name = &application.name;
            let own: ClusterArrival;
            let arrival = match arrival {
                Some(arrival) => arrival,
                None => {
                    own = ClusterArrival::parse(&application.arrival)
                        .with_context(|| format!("application `{name}`"))?;
                    &own
                }
            };
            let seed = self.seed.wrapping_mul(1009).wrapping_add(index as u64);
            Ok(Application {
                name: name.clone(),
                stages: self.stages(application)?,
                arrivals: arrival.moments(application.requests_per_s, span, seed),
            })
        };
        self.applications.iter().enumerate().map(one).collect()
    }

    fn stages(&self, application: &ApplicationDocument) -> anyhow::Result<Vec<usize>> {
        let find = |stage: &String| {
            let place = self.models.iter().position(|model| model.name == *stage);
            place.with_context(|| {
                let known: Vec<&str> = self.models.iter().map(|model| &*model.name).collect();
                format!(
                    "application `{}`: stage `{stage}` is no model, expected one of {}",
                    application.name,
                    known.join(", ")
                )
            })
        };
        application.stages.iter().map(find).collect()
    }

    fn check(&self) -> anyhow::Result<()> {
        within("nodes.count", self.nodes.count as f64, 1.0, 100_000.0)?;
        within("nodes.cpus", f64::from(self.nodes.cpus), 1.0, 10_000.0)?;
        within("nodes.memory_gib", self.nodes.memory_gib, 0.001, 1e6)?;
        within("minutes", self.minutes, 0.1, 1e6)?;
        within("jitter", self.jitter, 0.0, 2.0)?;
        within("keep_alive_s", self.keep_alive_s, 1.0, 1e7)?;
        within("cpu_mib", self.cpu_mib, 0.0, 1e6)?;
        within("spread", self.spread, 0.0, 1.0)?;
        within("start.process_ms", self.start.process_ms, 0.0, 1e7)?;
        within("start.process_mib", self.start.process_mib, 0.0, 1e6)?;
        within("start.instance_ms", self.start.instance_ms, 0.0, 1e7)?;
        within("start.read_mib_per_s", self.start.read_mib_per_s, 0.1, 1e7)?;
        for application in &self.applications {
            let name = format!("applications, `{}`, requests_per_s", application.name);
            within(&name, application.requests_per_s, 0.0, 1e7)?;
        }
        let mut names: Vec<&str> = self.models.iter().map(|model| &*model.name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            bail!("two models are named `{}`", pair[0]);
        }
        Ok(())
    }
}

impl ModelDocument {
    fn model(&self, directory: &Path, costs: &StartCosts) -> anyhow::Result<ClusterModel> {
        let named = || format!("model `{}`", self.name);
        let (tensors, configurations) = self.figures(directory, costs).with_context(named)?;
        within("slo_ms", self.slo_ms, 0.001, 1e9).with_context(named)?;
        Ok(ClusterModel {
            name: self.name.clone(),
            objective: millis(self.slo_ms),
            tensors,
            configurations,
        })
    }

    fn figures(
        &self,
        directory: &Path,
        costs: &StartCosts,
    ) -> anyhow::Result<(Tensors, Vec<Configuration>)> {
        let mut tensors = Vec::new();
        for tensor in &self.tensors {
            within(
                &format!("tensor `{}`, mib", tensor.name),
                tensor.mib,
                0.0,
                1e6,
            )?;
            let key = blake3::hash(tensor.name.as_bytes());
            tensors.push((TensorKey(*key.as_bytes()), bytes(tensor.mib)));
        }
        match (&self.formula, &self.profile) {
            (Some(formula), None) => Ok((tensors, formula.configurations(&self.cpus)?)),
            (None, Some(file)) => {
                ensure!(
                    self.cpus.is_empty(),
                    "`cpus` belongs to a `formula`: a profile says itself on which it was measured"
                );
                let path = directory.join(file);
                let text = flags::read(&path.to_string_lossy())?;
                let read = match text.trim_start().starts_with('{') {
                    true => self.measured(&text, tensors),
                    false => table(&text, &tensors, costs).map(|rows| (tensors, rows)),
                };
                read.with_context(|| format!("`{}`", path.display()))
            }
            _ => bail!("expected either a `formula` or a `profile`"),
        }
    }

    /// Out of a file of `skep profile`.
    fn measured(
        &self,
        text: &str,
        tensors: Tensors,
    ) -> anyhow::Result<(Tensors, Vec<Configuration>)> {
        ensure!(
            tensors.is_empty(),
            "`tensors` belongs to a `formula` or a table: a profile has its own"
        );
        let file = ProfileFile::read(text)?;
        let profile = file.models.iter().find(|model| model.name == self.name);
        let profile = profile.with_context(|| {
            let names: Vec<&str> = file.models.iter().map(|model| &*model.name).collect();
            format!("it has no such model, but {}", names.join(", "))
        })?;
        let tensors = profile.tensors.iter();
        let tensors = tensors.map(|tensor| (tensor_key(&tensor.digest), tensor.bytes));
        let configurations = profile.configurations.iter().map(|one| Configuration {
            cpus: one.cpus,
            concurrency: one.instances,
            batch: one.batch,
            latency: millis(one.latency.p95_ms),
            private_bytes: one.private_bytes,
        });
        Ok((tensors.collect(), configurations.collect()))
    }
}

impl FormulaDocument {
    fn configurations(&self, cpus: &[u32]) -> anyhow::Result<Vec<Configuration>> {
        within("fixed_ms", self.fixed_ms, 0.0, 1e7)?;
        within("item_ms", self.item_ms, 0.001, 1e7)?;
        within("parallel", self.parallel, 0.0, 1.0)?;
        within("private_mib", self.private_mib, 0.0, 1e6)?;
        within("request_mib", self.request_mib, 0.0, 1e6)?;
        within("max_batch", f64::from(self.max_batch), 1.0, 1024.0)?;
        within(
            "max_concurrency",
            f64::from(self.max_concurrency),
            1.0,
            1024.0,
        )?;
        ensure!(
            !cpus.is_empty() && cpus.iter().all(|count| (1..=10_000).contains(count)),
            "`cpus`: expected numbers of CPUs as in [2, 4, 8]"
        );
        let count = cpus.len() * (self.max_batch * self.max_concurrency) as usize;
        ensure!(
            count <= MAX_CONFIGURATIONS,
            "the formula has {count} configurations, expected {MAX_CONFIGURATIONS} at most"
        );
        let formula = LatencyFormula {
            fixed_ms: self.fixed_ms,
            item_ms: self.item_ms,
            parallel: self.parallel,
            private_bytes: bytes(self.private_mib),
            request_bytes: bytes(self.request_mib),
            max_batch: self.max_batch,
            max_concurrency: self.max_concurrency,
        };
        Ok(formula.configurations(cpus))
    }
}

/// A line for each configuration: a name, CPUs, batches at a time, their size, milliseconds and MB of a process with
/// everything in it.
fn table(
    text: &str,
    tensors: &[(TensorKey, u64)],
    costs: &StartCosts,
) -> anyhow::Result<Vec<Configuration>> {
    let shared: u64 = tensors.iter().map(|(_, bytes)| *bytes).sum();
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let parts: Vec<&str> = line.split_whitespace().collect();
        let row = match parts[..] {
            [_, cpus, concurrency, batch, ms, mb] => row([cpus, concurrency, batch], ms, mb),
            _ => None,
        };
        let (mut one, whole) = row.with_context(|| {
            let start: String = line.chars().take(80).collect();
            format!(
                "line {}: expected `NAME CPUS CONCURRENCY BATCH MS MB`, got `{start}`",
                index + 1
            )
        })?;
        one.private_bytes = whole.saturating_sub(shared + costs.process_bytes);
        rows.push(one);
        ensure!(
            rows.len() <= MAX_CONFIGURATIONS,
            "more than {MAX_CONFIGURATIONS} lines"
        );
    }
    ensure!(!rows.is_empty(), "it has no lines");
    Ok(rows)
}

fn row(counts: [&str; 3], ms: &str, mb: &str) -> Option<(Configuration, u64)> {
    let [cpus, concurrency, batch] = counts.map(|text| {
        let count: Option<u32> = text.parse().ok();
        count.filter(|count| (1..=10_000).contains(count))
    });
    let ms: f64 = ms.parse().ok()?;
    let mb: f64 = mb.parse().ok()?;
    let is_sound = (0.001..=1e9).contains(&ms) && (0.0..=1e9).contains(&mb);
    let one = Configuration {
        cpus: cpus?,
        concurrency: concurrency?,
        batch: batch?,
        latency: is_sound.then(|| millis(ms))?,
        private_bytes: 0,
    };
    Some((one, bytes(mb * 1e6 / MIB)))
}

fn within(name: &str, value: f64, least: f64, most: f64) -> anyhow::Result<()> {
    ensure!(
        (least..=most).contains(&value),
        "`{name}` is {value}, expected {least} to {most}"
    );
    Ok(())
}

fn millis(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}

#[expect(clippy::cast_sign_loss, reason = "checked before")]
fn bytes(mib: f64) -> u64 {
    (mib * MIB) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> ScenarioDocument {
        ScenarioDocument::load(FOUR_APPLICATIONS).expect("it comes with the program")
    }

    #[test]
    fn the_scenario_that_comes_along_is_sound() {
        let document = document();
        let scenario = document.scenario(Path::new(".")).expect("sound");
        assert_eq!(scenario.models.len(), 10);
        let applications = document.applications(None).expect("sound");
        let stages: Vec<usize> = applications.iter().map(|one| one.stages.len()).collect();
        assert_eq!(stages, [3, 3, 1, 3]);
        // 880 requests a second for an hour.
        let requests: usize = applications.iter().map(|one| one.arrivals.len()).sum();
        assert!((3_150_000..=3_180_000).contains(&requests), "{requests}");
    }

    #[test]
    fn mistakes_are_named() {
        let fails = |change: &dyn Fn(&mut ScenarioDocument)| {
            let mut document = document();
            change(&mut document);
            let scenario = document.scenario(Path::new("."));
            let applications = document.applications(None);
            let error = scenario.err().or(applications.err()).expect("a mistake");
            format!("{error:#}")
        };
        let nodes = fails(&|document| document.nodes.count = 0);
        assert_eq!(nodes, "`nodes.count` is 0, expected 1 to 100000");
        let rate = fails(&|document| document.applications[1].requests_per_s = f64::NAN);
        assert!(
            rate.contains("`QA-Audio`, requests_per_s` is NaN"),
            "{rate}"
        );
        let stage = fails(&|document| document.applications[0].stages[0] = "vgg".to_owned());
        assert!(
            stage.contains("stage `vgg` is no model, expected one of ssd, "),
            "{stage}"
        );
        let both = fails(&|document| document.models[2].profile = Some("x".to_owned()));
        assert!(
            both.contains("model `resnet-50`: expected either"),
            "{both}"
        );
        let twice = fails(&|document| document.models[1].name = "ssd".to_owned());
        assert_eq!(twice, "two models are named `ssd`");
    }

    #[test]
    fn a_table_says_what_a_process_holds() {
        let costs = StartCosts {
            process: Duration::ZERO,
            process_bytes: 50_000_000,
            instance: Duration::ZERO,
            bytes_per_second: 1.0,
        };
        let tensors = [(TensorKey([1; 32]), 100_000_000)];
        let rows = table("m 2 1 4 120.5 199\n\nm 4 2 1 60 150.5\n", &tensors, &costs);
        let rows = rows.expect("two lines");
        assert_eq!(
            (rows[0].cpus, rows[0].concurrency, rows[0].batch),
            (2, 1, 4)
        );
        assert_eq!(rows[0].latency, Duration::from_micros(120_500));
        assert!((49_000_000..=49_000_001).contains(&rows[0].private_bytes));
        for wrong in ["m 2 1 4 120.5", "m 0 1 1 5 100", "m 1 1 1 NaN 100", ""] {
            assert!(table(wrong, &tensors, &costs).is_err(), "{wrong}");
        }
    }
}
