//! Files of `skep plan`: tables, and XLA's dumps.

use skep_planner::{Budget, Plan, Strategy, UsageRecords, validate};
use skep_records::{Format, csv, unpack, xla};

/// What is unpacked may be a million times as long, which is as it should be and would be slow.
const MOST_BYTES: usize = 1 << 20;

/// Records that are taken can be planned, and come back from the table that they are written as.
pub fn records(data: &[u8]) {
    let Ok(plain) = unpack(data) else {
        return;
    };
    if plain.len() > MOST_BYTES {
        return;
    }
    let taken = match Format::of(&plain) {
        Some(Format::Csv) => csv::read(&plain).map(|table| vec![(String::new(), table.records)]),
        Some(Format::BufferAssignment) => {
            // The two files that belong together, one behind the other.
            let both = plain.windows(12).position(|part| part == b"HloLiveRange");
            let (assignment, ranges) = plain.split_at(both.unwrap_or(plain.len()));
            xla::read_text(assignment, ranges)
        }
        Some(Format::HloProto) => xla::read_proto(&plain),
        _ => return,
    };
    for (_, records) in taken.unwrap_or_default() {
        come_back(&records);
    }
}

fn come_back(records: &UsageRecords) {
    let problem = records.problem();
    assert_eq!(records.names().len(), problem.len());
    let table = csv::read(csv::write(records, None).as_bytes()).expect("written");
    assert_eq!(table.records.problem().buffers(), problem.buffers());
    let strategy = Strategy::named("offsets.greedy_by_size").expect("in the list");
    let budget = Budget::nodes(1000);
    let Ok(Plan::Offsets(plan)) = strategy.plan(problem, &budget) else {
        panic!("a plan of offsets for anything");
    };
    let placed = csv::read(csv::write(records, Some(&plan.offsets)).as_bytes()).expect("written");
    let fixed = placed.records.problem().buffers().iter();
    let fixed: Vec<u64> = fixed.filter_map(|buffer| buffer.fixed).collect();
    assert_eq!(fixed, plan.offsets);
    assert_eq!(validate(problem, &Plan::Offsets(plan)), Ok(()));
}
