//! Selection and packing beside exact solutions: `cargo xtask bench packing [PROFILE...]`.
//!
//! A profile is a table with spaces between the columns: model, CPUs, instances, batch, milliseconds, MB of memory.
//! Prints a JSON object a row. Random instances come from fixed seeds.

use std::{
    fs,
    str::FromStr,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use skep_placer::{
    packing::{PackingRule, Resources, pack},
    selection::{Configuration, SelectionRule, SelectionTerms, select},
};

const MB: u64 = 1_000_000;

fn main() {
    selection("random profiles", &random_profiles());
    for path in std::env::args().skip(1) {
        let profile = read(&path);
        let name = profile.first().map_or("no model", |(name, _)| name);
        let configurations: Vec<Configuration> = profile.iter().map(|(_, one)| *one).collect();
        let rates = (1..=1000).map(|step| f64::from(step) * 0.5);
        let instances: Vec<_> = rates.map(|rate| (configurations.clone(), rate)).collect();
        selection(name, &instances);
    }
    for (name, shape) in SHAPES {
        for count in [10, 20, 40] {
            packing(name, shape, count);
        }
    }
    many();
}

fn say(row: &Value) {
    println!("{row}");
}

/// SplitMix64 (Steele and others, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least 0 and below 1.
    fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.next() % (most - least + 1)
    }
}

/// A thousand models: a latency that is affine in the batch and falls with cores, memory of its own that grows with
/// batch and instances.
fn random_profiles() -> Vec<(Vec<Configuration>, f64)> {
    let mut random = Random(17);
    (0..1000)
        .map(|_| {
            let (base, each) = (2.0 + 60.0 * random.share(), 1.0 + 40.0 * random.share());
            let (fixed, grows) = (random.between(20, 400), random.between(1, 60));
            let parallel = 0.3 + 0.65 * random.share();
            let mut configurations = Vec::new();
            for cpus in [1_u32, 2, 4, 8] {
                for instances in (1..=cpus).filter(|count| count.is_power_of_two()) {
                    for batch in [1_u32, 2, 4, 8, 16, 32] {
                        let threads = f64::from(cpus / instances);
                        let speed = 1.0 / (1.0 - parallel + parallel / threads);
                        let noise = 0.9 + 0.2 * random.share();
                        let millis = noise * (base + each * f64::from(batch)) / speed;
                        configurations.push(Configuration {
                            cpus,
                            concurrency: instances,
                            batch,
                            latency: Duration::from_secs_f64(millis / 1e3),
                            private_bytes: MB
                                * (fixed + grows * u64::from(batch) * u64::from(instances)),
                        });
                    }
                }
            }
            let rate = 10_f64.powf(3.0 * random.share());
            (configurations, rate)
        })
        .collect()
}

fn read(path: &str) -> Vec<(String, Configuration)> {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fn number<T: FromStr>(fields: &[&str], column: usize) -> T {
            let field = fields.get(column).and_then(|field| field.parse().ok());
            field.unwrap_or_else(|| panic!("{fields:?}: no number in column {column}"))
        }
        let one = Configuration {
            cpus: number(&fields, 1),
            concurrency: number(&fields, 2),
            batch: number(&fields, 3),
            latency: Duration::from_secs_f64(number::<f64>(&fields, 4) / 1e3),
            private_bytes: bytes(number(&fields, 5)),
        };
        (fields[0].to_owned(), one)
    };
    text.lines().map(line).collect()
}

/// Of megabytes.
#[expect(clippy::cast_sign_loss, reason = "figures of memory are not below 0")]
fn bytes(megabytes: f64) -> u64 {
    (megabytes * MB as f64) as u64
}

/// How much more each rule weighs than the exact solution.
fn selection(name: &str, instances: &[(Vec<Configuration>, f64)]) {
    for (rule_name, rule) in [
        ("decreasing throughput", SelectionRule::DecreasingThroughput),
        ("covering tail", SelectionRule::CoveringTail),
        ("exact", SelectionRule::Exact),
    ] {
        let (mut gaps, mut unproven, mut took) = (Vec::new(), 0, Duration::ZERO);
        for (configurations, rate) in instances {
            let terms = SelectionTerms {
                objective: Duration::from_millis(400),
                rate: *rate,
                tensor_bytes: 0,
                shares: true,
                bytes_per_cpu: 500 * MB,
            };
            let exact = select(configurations, &terms, SelectionRule::Exact);
            let began = Instant::now();
            let selection = select(configurations, &terms, rule);
            took += began.elapsed();
            let (Ok(exact), Ok(selection)) = (exact, selection) else {
                continue;
            };
            gaps.push(100.0 * (selection.weight / exact.weight - 1.0));
            unproven += usize::from(exact.weight > exact.weight_bound * (1.0 + 1e-9));
        }
        gaps.sort_by(f64::total_cmp);
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        say(&json!({
            "table": "selection", "instances": name, "rule": rule_name, "count": gaps.len(),
            "mean_gap_percent": mean, "p99_gap_percent": gaps[gaps.len() * 99 / 100],
            "most_gap_percent": gaps.last(), "unproven": unproven,
            "ms_for_all": took.as_secs_f64() * 1e3,
        }));
    }
}

type Shape = fn(&mut Random) -> Resources;

/// Shares of a device of 1,000 by 1,000.
const SHAPES: [(&str, Shape); 4] = [
    ("uniform", |random| Resources {
        bytes: random.between(50, 600),
        millicores: random.between(50, 600),
    }),
    ("correlated", |random| {
        let bytes = random.between(50, 600);
        Resources {
            bytes,
            millicores: (bytes + random.between(0, 100)).saturating_sub(50).max(1),
        }
    }),
    ("opposite", |random| {
        let bytes = random.between(50, 600);
        Resources {
            bytes,
            millicores: 650 - bytes,
        }
    }),
    ("small", |random| Resources {
        bytes: random.between(20, 250),
        millicores: random.between(20, 250),
    }),
];

/// Instances of each shape and number of items.
const ROUNDS: usize = 100;

fn packing(name: &str, shape: Shape, count: usize) {
    let mut random = Random(count as u64);
    let device = Resources {
        bytes: 1000,
        millicores: 1000,
    };
    let rules = [
        PackingRule::FirstFitDecreasing,
        PackingRule::BestFit,
        PackingRule::BestFitDecreasing,
        PackingRule::Search,
    ];
    let mut sums = [0_usize; 4];
    let (mut worse, mut unproven, mut gap, mut bounds) = (0, 0, 0, 0);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let items: Vec<Resources> = (0..count).map(|_| shape(&mut random)).collect();
        let devices = vec![device; count];
        let began = Instant::now();
        let packings = rules.map(|rule| pack(&items, &devices, rule));
        times.push(began.elapsed());
        let used = packings.each_ref().map(|packing| packing.devices_used());
        for (sum, used) in sums.iter_mut().zip(used) {
            *sum += used;
        }
        let least = packings[3].least_devices;
        worse += usize::from(used[3] > used[2]);
        unproven += usize::from(used[3] > least);
        gap = gap.max(used[3] - least);
        bounds += least;
    }
    times.sort();
    say(&json!({
        "table": "packing", "shape": name, "items": count, "count": ROUNDS,
        "first_fit_decreasing": sums[0], "best_fit": sums[1], "best_fit_decreasing": sums[2],
        "search": sums[3], "bound": bounds, "worse_than_bfd": worse, "unproven": unproven,
        "most_gap": gap, "median_ms": times[ROUNDS / 2].as_secs_f64() * 1e3,
        "most_ms": times[ROUNDS - 1].as_secs_f64() * 1e3,
    }));
}

/// A thousand instances on devices that hold about ten.
fn many() {
    let mut random = Random(1);
    let items: Vec<Resources> = (0..1000).map(|_| SHAPES[3].1(&mut random)).collect();
    let devices = vec![
        Resources {
            bytes: 1000,
            millicores: 1000,
        };
        1000
    ];
    for (name, rule) in [
        ("first fit decreasing", PackingRule::FirstFitDecreasing),
        ("best fit decreasing", PackingRule::BestFitDecreasing),
        ("search", PackingRule::Search),
    ] {
        let began = Instant::now();
        let packing = pack(&items, &devices, rule);
        say(&json!({
            "table": "a thousand instances", "rule": name, "devices": packing.devices_used(),
            "bound": packing.least_devices, "ms": began.elapsed().as_secs_f64() * 1e3,
        }));
    }
}
