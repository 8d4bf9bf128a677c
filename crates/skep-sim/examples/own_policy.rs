//! A batching policy of one's own beside the server's: `cargo run --release -p skep-sim --example own_policy`.
//!
//! It waits until a batch is full or half of what the oldest request can wait is over. To try another rule, change
//! [`HalfSlack::decide`].

use std::time::Duration;

use skep_sim::{
    Arrivals, BatchPolicy, Contender, Decision, LatencyTable, ObjectivePolicy, OperatingPoint,
    OwnPolicy, PolicyFigures, SimulatedModel, WaitingRequests,
};

/// What the policy knows: the model's latencies, as a warm-up measures them, and the objective.
struct HalfSlack {
    table: LatencyTable,
    request_size: usize,
    objective: Duration,
}

impl BatchPolicy for HalfSlack {
    fn decide(&mut self, waiting: &WaitingRequests<'_>) -> Decision {
        let count = waiting.available();
        let latency = |requests: usize| self.table.latency(requests * self.request_size);
        let deadline = waiting.arrivals[0] + self.objective;
        if waiting.now + latency(1) > deadline {
            // It would be late even alone.
            return Decision::GiveUp(1);
        }
        if count == waiting.most {
            return Decision::Run(count);
        }
        let slack = self.objective.saturating_sub(latency(count));
        let leave = waiting.arrivals[0] + slack / 2;
        if waiting.now < leave {
            Decision::Wait(Some(leave))
        } else {
            Decision::Run(count)
        }
    }
}

/// Answers in time of each policy, at each load.
pub(crate) fn compare(loads: &[f64]) -> Vec<(f64, Vec<PolicyFigures>)> {
    let table = LatencyTable::affine(1.87, 0.087, 64).expect("a valid table");
    let model = SimulatedModel::new(table, 1);
    let own = OwnPolicy::new("half_slack", |model, objective| {
        Box::new(HalfSlack {
            table: model.table.clone(),
            request_size: model.request_size,
            objective,
        })
    });
    let contenders = [
        Contender::TritonDefault,
        Contender::Objective(ObjectivePolicy::Auto),
        Contender::Own(own),
        Contender::Bound,
    ];
    let at = |&load: &f64| {
        let point = OperatingPoint {
            model: &model,
            objective: Duration::from_millis(10),
            arrivals: &Arrivals::Poisson,
            rate: load * model.capacity().rate,
            requests: 5000,
            warm_up: 500,
            seeds: &[0, 1, 2],
        };
        (load, point.compare(&contenders))
    };
    loads.iter().map(at).collect()
}

fn main() {
    println!("Answers within 10 ms, in % of the requests: the median of three traces.\n");
    for (load, figures) in compare(&[0.3, 0.6, 0.9]) {
        print!("load {load}:");
        for figures in figures {
            let percent = 100.0 * figures.in_time.median;
            print!("  {} {percent:.1}", figures.contender.name());
        }
        println!();
    }
}
