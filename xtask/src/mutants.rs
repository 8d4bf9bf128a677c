//! Mutation tests: `cargo xtask mutants [CRATE] [-- OPTIONS]` changes one operator or result after the other in the
//! crates that decide, and counts the changes that no test notices.
//!
//! Mutants that no test can tell from the original are listed in `.cargo/mutants.toml`, each with the reason. `OPTIONS`
//! go to cargo-mutants: `--iterate` leaves out what an earlier run caught, `--shard 1/4` takes a quarter, `--file
//! '**/latency.rs'` one file.

use std::{fs, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// A crate whose tests must notice mutants.
struct Mutated {
    package: &'static str,
    /// The only files that are mutated; empty for all.
    files: &'static [&'static str],
    /// Files that are left out.
    without: &'static [&'static str],
}

const CRATES: [Mutated; 7] = [
    Mutated {
        package: "skep-scheduler",
        files: &[],
        without: &[],
    },
    // A mutated search finds other plans that are as valid: the validator and the bounds, which are mutated, guard what
    // it returns, and a benchmark how good that is.
    Mutated {
        package: "skep-planner",
        files: &[],
        without: &[
            "crates/skep-planner/src/auto.rs",
            "crates/skep-planner/src/evict.rs",
            "crates/skep-planner/src/exact/**",
            "crates/skep-planner/src/local.rs",
            "crates/skep-planner/src/baselines/**",
            "crates/skep-planner/src/objects/breadth.rs",
            "crates/skep-planner/src/objects/in_order.rs",
            "crates/skep-planner/src/objects/min_cost_flow.rs",
            "crates/skep-planner/src/objects/reallocation.rs",
            "crates/skep-planner/src/objects/shaped.rs",
            "crates/skep-planner/src/objects/size.rs",
            "crates/skep-planner/src/offsets/order.rs",
            "crates/skep-planner/src/offsets/skyline.rs",
            "crates/skep-planner/src/pieces.rs",
        ],
    },
    // The rest of the crate is sockets, mappings and threads.
    Mutated {
        package: "skep-store",
        files: &["crates/skep-store/src/ledger/*.rs"],
        without: &[],
    },
    Mutated {
        package: "skep-config",
        files: &[],
        without: &[],
    },
    // The rules that skep-alloc carries out.
    Mutated {
        package: "skep-layout",
        files: &[],
        without: &["crates/skep-layout/src/conformance.rs"],
    },
    Mutated {
        package: "skep-alloc",
        files: &[],
        without: &[],
    },
    // How good its choices are a simulation shows; how they are made is tested.
    Mutated {
        package: "skep-placer",
        files: &[],
        without: &[],
    },
];

/// A crate fails below this share of caught mutants, in percent.
const LEAST_CAUGHT_PERCENT: f64 = 95.0;

/// How long a mutant's tests may run, several times as long as those of the slowest crate. A mutant that runs longer loops
/// or waits for ever.
const TEST_SECONDS: u32 = 20;

/// Property tests try the same cases for each mutant.
const SEED: &str = "1";

/// How the mutants of one crate ended.
#[derive(Debug, Default, PartialEq)]
struct Outcomes {
    caught: usize,
    missed: Vec<String>,
    /// Loops, or what is as good as one: caught.
    timed_out: usize,
    /// Did not compile: counts for nothing.
    unviable: usize,
}

/// Mutates one crate, or all of them.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let separator = args.iter().position(|arg| arg == "--");
    let (named, options) = args.split_at(separator.unwrap_or(args.len()));
    let options = options.get(1..).unwrap_or_default();
    let packages: Vec<&str> = CRATES.iter().map(|krate| krate.package).collect();
    let chosen: Vec<&Mutated> = match named {
        [] => CRATES.iter().collect(),
        [name] => CRATES
            .iter()
            .filter(|krate| krate.package == name)
            .collect(),
        _ => Vec::new(),
    };
    if chosen.is_empty() {
        bail!(
            "usage: cargo xtask mutants [{}] [-- OPTIONS OF CARGO-MUTANTS]",
            packages.join("|")
        );
    }
    install()?;
    let mut failed = Vec::new();
    for krate in chosen {
        let outcomes = mutate(root, krate, options)?;
        println!("\n{}", outcomes.line(krate.package));
        for missed in &outcomes.missed {
            println!("  missed: {missed}");
        }
        if outcomes.caught_percent() < LEAST_CAUGHT_PERCENT {
            failed.push(krate.package);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "less than {LEAST_CAUGHT_PERCENT} % of the mutants were caught in {}",
        failed.join(", ")
    )
}

/// Installs cargo-mutants where it is missing.
fn install() -> Result<()> {
    let mut probe = cargo();
    probe.args(["mutants", "--version"]);
    probe.stdout(Stdio::null()).stderr(Stdio::null());
    if probe.status().is_ok_and(|status| status.success()) {
        return Ok(());
    }
    println!("cargo-mutants is missing: cargo install cargo-mutants --locked");
    let mut install = cargo();
    install.args(["install", "cargo-mutants", "--locked"]);
    let status = install.status().context("cannot run cargo")?;
    if !status.success() {
        bail!("cargo-mutants could not be installed: {status}");
    }
    Ok(())
}

fn mutate(root: &Path, krate: &Mutated, options: &[String]) -> Result<Outcomes> {
    let folder = root.join("target/mutants");
    let output = folder.join(krate.package);
    fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let mut command = cargo();
    command
        .args(["mutants", "--package", krate.package])
        .args(["--profile", "mutants", "--jobs", "1", "--no-shuffle"])
        .args(["--timeout", &TEST_SECONDS.to_string()])
        // Not nextest, which starts a process for each test: that takes longer than these tests run. No doc tests, which
        // are compiled one by one.
        .args(["--test-tool", "cargo", "--cargo-test-arg=--tests"])
        .arg("--output")
        .arg(&output)
        // Dependencies are built once for all runs; the mutated copy of the tree lies elsewhere.
        .env("CARGO_TARGET_DIR", folder.join("build"))
        .env("PROPTEST_RNG_SEED", SEED)
        // Tests of memory look at all of their process.
        .env("RUST_TEST_THREADS", "1")
        .current_dir(root);
    for file in krate.files {
        command.args(["--file", file]);
    }
    for file in krate.without {
        command.args(["--exclude", file]);
    }
    let status = command
        .args(options)
        .status()
        .context("cannot run cargo-mutants")?;
    // 2: some were missed; 3: some timed out.
    if !matches!(status.code(), Some(0 | 2 | 3)) {
        bail!("cargo-mutants failed for {}: {status}", krate.package);
    }
    Outcomes::read(&output.join("mutants.out"))
}

impl Outcomes {
    /// Reads the lists that cargo-mutants writes.
    fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            caught: lines(&folder.join("caught.txt"))?.len(),
            missed: lines(&folder.join("missed.txt"))?,
            timed_out: lines(&folder.join("timeout.txt"))?.len(),
            unviable: lines(&folder.join("unviable.txt"))?.len(),
        })
    }

    /// The share of the viable mutants that tests noticed.
    fn caught_percent(&self) -> f64 {
        let caught = self.caught + self.timed_out;
        let viable = caught + self.missed.len();
        match viable {
            0 => 100.0,
            _ => 100.0 * caught as f64 / viable as f64,
        }
    }

    fn line(&self, package: &str) -> String {
        format!(
            "{package}: {:.1} % caught; {} caught, {} timed out, {} missed, {} unviable",
            self.caught_percent(),
            self.caught,
            self.timed_out,
            self.missed.len(),
            self.unviable
        )
    }
}

fn lines(path: &Path) -> Result<Vec<String>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_outs_are_caught_and_unviable_mutants_do_not_count() {
        let outcomes = Outcomes {
            caught: 17,
            missed: vec!["a".to_owned()],
            timed_out: 2,
            unviable: 9,
        };
        assert_eq!(
            outcomes.line("p"),
            "p: 95.0 % caught; 17 caught, 2 timed out, 1 missed, 9 unviable"
        );
        assert!(outcomes.caught_percent() >= LEAST_CAUGHT_PERCENT);
        let worse = Outcomes {
            caught: 16,
            ..outcomes
        };
        assert!(worse.caught_percent() < LEAST_CAUGHT_PERCENT);
    }

    #[test]
    fn without_mutants_nothing_is_missed() {
        assert!(Outcomes::default().caught_percent() >= LEAST_CAUGHT_PERCENT);
    }

    /// A file that moved would be mutated or left out unseen.
    #[test]
    fn every_named_file_exists() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for file in CRATES
            .iter()
            .flat_map(|krate| krate.files.iter().chain(krate.without))
        {
            let path = file.trim_end_matches("/**").trim_end_matches("/*.rs");
            assert!(root.join(path).exists(), "{file}");
        }
    }
}
