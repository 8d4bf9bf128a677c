//! The list of strategies in docs/memory-planning.md is `Strategy::ALL`.

use std::{fmt::Write, fs, path::Path};

use skep_planner::{Budget, Buffer, Plan, Problem, Strategy};

const BEGIN: &str = "<!-- Written from crates/skep-planner/src/strategy.rs: change that, then run\nSKEP_UPDATE_DOCS=1 cargo test -p skep-planner --test docs. -->\n\n";
const END: &str = "\n<!-- Up to here. -->\n";

/// What each strategy gives, and whether it leaves buffers where they are, found by trying.
fn table() -> String {
    let free = Problem::new(vec![Buffer::new(4, 0, 1)]).expect("valid");
    let fixed = Problem::new(vec![Buffer::new(4, 0, 1).at(4)]).expect("valid");
    let mut table = String::from(
        "| strategy | gives | keeps fixed buffers | in a few words |\n|---|---|---|---|\n",
    );
    for strategy in Strategy::ALL {
        let gives = match strategy.plan(&free, &Budget::nodes(1)).expect("one buffer") {
            Plan::Offsets(_) => "offsets",
            Plan::Objects(_) => "objects",
        };
        let keeps = strategy.plan(&fixed, &Budget::nodes(1)).is_ok();
        let keeps = if keeps { "yes" } else { "no" };
        let (name, summary) = (strategy.name, strategy.summary);
        writeln!(table, "| `{name}` | {gives} | {keeps} | {summary} |").expect("a string");
    }
    table
}

#[test]
fn the_documentation_lists_every_strategy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/memory-planning.md");
    let written = fs::read_to_string(&path).expect("docs/memory-planning.md");
    let (before, rest) = written.split_once(BEGIN).expect("where the list begins");
    let (_, after) = rest.split_once(END).expect("where the list ends");
    let expected = format!("{before}{BEGIN}{}{END}{after}", table());
    if std::env::var_os("SKEP_UPDATE_DOCS").is_some_and(|value| value == "1") {
        fs::write(&path, &expected).expect("docs/memory-planning.md is writable");
        return;
    }
    assert!(
        written == expected,
        "docs/memory-planning.md is stale: run SKEP_UPDATE_DOCS=1 cargo test -p skep-planner --test docs"
    );
}
