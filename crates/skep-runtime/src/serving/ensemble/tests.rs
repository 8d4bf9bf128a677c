//! The flow of tensors through made-up ensembles, without models.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use skep_config::{ConfigContext, ModelConfig, parse_pbtxt};
use skep_tensor::Tensor;
use skep_types::{DataType, ModelName, Shape};

use super::{
    flow::{Flow, FlowTensor},
    graph::EnsembleGraph,
};

fn tensor(value: u8) -> Tensor {
    let shape = Shape::new(&[1]).expect("shape");
    Tensor::new(DataType::Uint8, shape, Bytes::from(vec![value])).expect("tensor")
}

fn side(kind: &str, name: &str) -> String {
    format!("{kind} {{ name: '{name}' data_type: TYPE_UINT8 dims: 1 }}")
}

/// Each step as what it reads, what it writes, and its condition.
fn graph(inputs: &[&str], outputs: &[&str], steps: &[(&[&str], &[&str], &str)]) -> EnsembleGraph {
    let mut text = String::from("platform: 'ensemble' ");
    for input in inputs {
        text += &side("input", input);
    }
    for output in outputs {
        text += &side("output", output);
    }
    let map = |kind: &str, names: &[&str]| {
        let entries = names
            .iter()
            .map(|name| format!("{kind} {{ key: 'of_{name}' value: '{name}' }}"));
        entries.collect::<String>()
    };
    text += "ensemble_scheduling { ";
    for (reads, writes, _) in steps {
        let maps = map("input_map", reads) + &map("output_map", writes);
        text += &format!("step {{ model_name: 'm' {maps} }}");
    }
    text += "}";
    for (index, (.., condition)) in steps.iter().enumerate() {
        if !condition.is_empty() {
            text += &format!(
                "parameters {{ key: 'step[{index}].condition' value {{ string_value: '{condition}' }} }}"
            );
        }
    }
    let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    let model = ModelName::new("e").expect("a name");
    let config = ModelConfig::from_proto(proto, &ConfigContext::new(&model)).expect("valid");
    EnsembleGraph::new(&config, config.ensemble().expect("an ensemble"))
}

/// Runs a flow to its end, where each step writes one more than the sum of what it reads. Returns the steps in the order
/// in which they started, and the outputs.
fn run(
    graph: &EnsembleGraph,
    inputs: &[FlowTensor],
    wanted: &[usize],
) -> (Vec<usize>, Vec<String>) {
    let mut flow = Flow::new(graph, inputs.iter().cloned(), wanted);
    let mut order = Vec::new();
    let mut running = Vec::new();
    loop {
        for (step, inputs) in flow.start() {
            order.push(step);
            let sum: u8 = inputs.iter().map(|(_, value)| value.data()[0]).sum();
            running.push((step, sum + 1));
        }
        // The last one that started ends first.
        let Some((step, value)) = running.pop() else {
            break;
        };
        let outputs: Vec<_> = flow
            .wanted_outputs(step)
            .map(|(_, index)| (index, tensor(value), true))
            .collect();
        flow.finish(step, outputs);
    }
    let outputs = wanted.iter().map(|output| match flow.output(*output) {
        FlowTensor::Known(value, _) => value.data()[0].to_string(),
        other => format!("{other:?}"),
    });
    (order, outputs.collect())
}

fn known(value: u8) -> FlowTensor {
    FlowTensor::Known(tensor(value), false)
}

#[test]
fn steps_start_when_their_tensors_are_there() {
    let graph = graph(
        &["in"],
        &["out"],
        &[
            (&["left", "right"], &["out"], ""),
            (&["in"], &["left"], ""),
            (&["left"], &["right"], ""),
        ],
    );
    let (order, outputs) = run(&graph, &[known(1)], &[0]);
    assert_eq!((order, outputs), (vec![1, 2, 0], vec!["6".to_owned()]));
}

#[test]
fn what_is_not_wanted_does_not_run() {
    let graph = graph(
        &["in"],
        &["a", "b"],
        &[(&["in"], &["a"], ""), (&["a"], &["b"], "")],
    );
    assert_eq!(run(&graph, &[known(1)], &[0]).0, [0]);
    assert_eq!(run(&graph, &[known(1)], &[1]).0, [0, 1]);
    assert_eq!(run(&graph, &[known(1)], &[0, 1]).1, ["2", "3"]);
}

#[test]
fn a_skipped_step_skips_what_only_it_would_feed() {
    let graph = graph(
        &["in", "go"],
        &["out", "end"],
        &[
            (&["in"], &["p"], "go"),
            (&["p"], &["end"], ""),
            (&["in"], &["out"], "!go"),
            (&["p"], &["out"], "go"),
        ],
    );
    let (order, outputs) = run(&graph, &[known(1), known(1)], &[0, 1]);
    assert_eq!(
        (order, outputs),
        (vec![0, 1, 3], vec!["3".into(), "3".into()])
    );
    let (order, outputs) = run(&graph, &[known(1), known(0)], &[0, 1]);
    assert_eq!(
        (order, outputs),
        (vec![2], vec!["2".into(), "Skipped".into()])
    );
    // A condition that the client left out does not hold.
    let (order, _) = run(&graph, &[known(1), FlowTensor::Omitted], &[0, 1]);
    assert_eq!(order, [2]);
}

#[test]
fn an_omitted_input_is_not_passed_on() {
    let graph = graph(
        &["in", "spare"],
        &["out"],
        &[(&["in", "spare"], &["out"], "")],
    );
    assert_eq!(run(&graph, &[known(1), known(5)], &[0]).1, ["7"]);
    assert_eq!(run(&graph, &[known(1), FlowTensor::Omitted], &[0]).1, ["2"]);
}

#[test]
fn a_tensor_is_released_after_its_last_reader() {
    let graph = graph(
        &["in"],
        &["out"],
        &[
            (&["in"], &["p"], ""),
            (&["p"], &["q"], ""),
            (&["p", "q"], &["out"], ""),
        ],
    );
    let data = Bytes::from(vec![7_u8; 1 << 16]);
    let shape = Shape::new(&[1 << 16]).expect("shape");
    let large = Tensor::new(DataType::Uint8, shape, data.clone()).expect("tensor");
    let mut flow = Flow::new(&graph, [known(1)], &[0]);
    drop(flow.start());
    let (p, q) = (
        graph.steps[0].outputs[0].tensor,
        graph.steps[1].outputs[0].tensor,
    );
    flow.finish(0, [(p, large, true)]);
    drop(flow.start());
    assert!(!data.is_unique(), "step 2 will read it");
    flow.finish(1, [(q, tensor(1), true)]);
    drop(flow.start());
    assert!(data.is_unique());
}

proptest! {
    /// Random flows without conditions: every needed step runs once, after those that it reads from.
    #[test]
    fn every_needed_step_runs_once_and_in_order(
        reads in proptest::collection::vec(proptest::collection::btree_set(0_usize..12, 1..4), 1..12),
        order in any::<proptest::sample::Index>(),
    ) {
        // Step i writes tensor i + 1 and reads tensors up to i.
        let names: Vec<String> = (0..=reads.len()).map(|number| format!("t{number}")).collect();
        let sources: Vec<Vec<&str>> = reads
            .iter()
            .enumerate()
            .map(|(step, reads)| reads.iter().map(|read| &*names[read % (step + 1)]).collect::<std::collections::BTreeSet<_>>())
            .map(|reads| reads.into_iter().collect())
            .collect();
        let written: Vec<[&str; 1]> = names[1..].iter().map(|name| [&**name]).collect();
        let mut steps: Vec<(&[&str], &[&str], &str)> = sources
            .iter()
            .zip(&written)
            .map(|(reads, writes)| (&reads[..], &writes[..], ""))
            .collect();
        steps.rotate_left(order.index(reads.len()));
        // Everything is an output, so that nothing is unused.
        let outputs: Vec<&str> = names[1..].iter().map(String::as_str).collect();
        let used = sources.iter().any(|reads| reads.contains(&"t0"));
        prop_assume!(used);
        let graph = graph(&["t0"], &outputs, &steps);
        let wanted = [outputs.len() - 1];
        let (ran, _) = run(&graph, &[known(0)], &wanted);
        let mut position = BTreeMap::new();
        for (place, step) in ran.iter().enumerate() {
            prop_assert_eq!(position.insert(steps[*step].1[0], place), None);
        }
        prop_assert!(position.contains_key(outputs[wanted[0]]));
        for step in &ran {
            for read in steps[*step].0.iter().filter(|read| **read != "t0") {
                prop_assert!(position[read] < position[steps[*step].1[0]]);
            }
        }
    }
}
