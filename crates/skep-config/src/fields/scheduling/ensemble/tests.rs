//! Ensembles that are read, and those that are refused.

use std::time::Duration;

use skep_types::ModelName;

use super::*;
use crate::{ConfigContext, ModelConfig, parse_pbtxt};

const TENSORS: &str = "
    input { name: 'in' data_type: TYPE_FP32 dims: 4 }
    output { name: 'out' data_type: TYPE_FP32 dims: 4 }";

fn read(text: &str) -> Result<ModelConfig, String> {
    let text = format!("platform: 'ensemble' max_batch_size: 8 {text}");
    let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    let model = ModelName::new("e").expect("a name");
    let config = ModelConfig::from_proto(proto, &ConfigContext::new(&model));
    config.map_err(|error| error.to_string())
}

/// A step that reads and writes tensors of the ensemble.
fn step(model: &str, reads: &str, writes: &str) -> String {
    format!(
        "step {{ model_name: '{model}' model_version: -1
            input_map {{ key: 'x' value: '{reads}' }} output_map {{ key: 'y' value: '{writes}' }} }}"
    )
}

fn scheduling(steps: &[String]) -> String {
    format!("{TENSORS} ensemble_scheduling {{ {} }}", steps.join(" "))
}

fn parameter(key: &str, value: &str) -> String {
    format!(" parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}")
}

#[test]
fn steps_are_read_in_their_order() {
    let steps = [step("b", "middle", "out"), step("a", "in", "middle")];
    let bound = " max_inflight_requests: 3 ";
    let text = scheduling(&[steps.join(bound)])
        + &parameter("step[0].condition", "! in")
        + &parameter("step[0].priority", "2")
        + &parameter("step[1].timeout_ms", " 30 ")
        + &parameter("step[1].condition", "in");
    let config = read(&text).expect("valid");
    assert_eq!((config.backend(), config.instance_groups()), ("", &[][..]));
    assert_eq!(config.proto().platform, "ensemble");
    let ensemble = config.ensemble().expect("an ensemble");
    assert_eq!(ensemble.max_inflight_requests, NonZeroUsize::new(3));
    let [b, a] = &ensemble.steps[..] else {
        panic!("two steps");
    };
    assert_eq!((b.model.as_str(), a.model.as_str()), ("b", "a"));
    assert_eq!((b.version, b.priority, a.priority), (None, Some(2), None));
    assert_eq!(a.timeout, Some(Duration::from_millis(30)));
    let condition = b.condition.as_ref().expect("a condition");
    assert_eq!((&*condition.tensor, condition.expected), ("in", false));
    assert!(a.condition.as_ref().is_some_and(|one| one.expected));
    assert_eq!(b.inputs["x"], "middle");
    assert_eq!(ensemble.rounds(), [[1], [0]]);
    // What clients are shown can be sent back.
    let model = ModelName::new("e").expect("a name");
    let shown = config.proto().clone();
    assert!(ModelConfig::from_proto(shown, &ConfigContext::new(&model)).is_ok());
}

#[test]
fn either_branch_may_write_a_tensor() {
    let steps = [step("a", "in", "out"), step("b", "in", "out")];
    let opposite = parameter("step[0].condition", "in") + &parameter("step[1].condition", "!in");
    assert!(read(&(scheduling(&steps) + &opposite)).is_ok());
    let same = parameter("step[0].condition", "in") + &parameter("step[1].condition", "in");
    let refusal = read(&(scheduling(&steps) + &same)).expect_err("both may run");
    assert!(refusal.contains("written by steps 0 and 1"), "{refusal}");
}

#[test]
fn flows_that_cannot_run_are_refused() {
    for (steps, expected) in [
        (vec![], "must specify 'step' for ensemble 'e'"),
        (
            vec![step("", "in", "out")],
            "must specify 'model_name' in step 0 of ensemble 'e'",
        ),
        (
            vec!["step { model_name: 'a' output_map { key: 'y' value: 'out' } }".to_owned()],
            "must specify 'input_map' in step 0 of ensemble 'e'",
        ),
        (
            vec!["step { model_name: 'a' input_map { key: 'x' value: 'in' } }".to_owned()],
            "must specify 'output_map' in step 0 of ensemble 'e'",
        ),
        (
            vec![step("a", "nothing", "out")],
            "ensemble tensor 'nothing', which step 0 reads, is neither an input",
        ),
        (
            vec![step("a", "in", "middle"), step("b", "middle", "end")],
            "ensemble tensor 'out', which a client reads, is neither an input",
        ),
        (
            vec![step("a", "in", "out"), step("b", "in", "out")],
            "ensemble tensor 'out' is written by steps 0 and 1",
        ),
        (
            vec![step("a", "in", "out"), step("b", "out", "in")],
            "ensemble tensor 'in' is an input of ensemble 'e', and step 1 writes it as well",
        ),
        (
            vec![step("a", "in", "out"), step("b", "in", "dead")],
            "ensemble tensor 'dead' is unused in ensemble 'e', which step 1 writes",
        ),
        (
            vec![
                step("a", "in", "out"),
                step("b", "d", "c"),
                step("c", "c", "d"),
            ],
            "steps of ensemble 'e' wait for each other's tensors: 1 ('b'), 2 ('c')",
        ),
        (
            vec![step("a", "in", "out").replace("-1", "-2")],
            "step 0 of ensemble 'e' names version -2 of model 'a'",
        ),
    ] {
        let refusal = read(&scheduling(&steps)).expect_err(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
}

#[test]
fn what_belongs_to_models_with_instances_is_refused() {
    let steps = scheduling(&[step("a", "in", "out")]);
    for (text, expected) in [
        (
            "instance_group { count: 1 }",
            "instance group should not be specified for ensemble 'e'",
        ),
        (
            "optimization { graph { level: 1 } }",
            "optimization should not be specified for ensemble 'e'",
        ),
        (
            "model_warmup { name: 'w' }",
            "model_warmup should not be specified for ensemble 'e'",
        ),
        (
            "response_cache { enable: true } model_transaction_policy { decoupled: true }",
            "Response Cache does not currently support",
        ),
        (&parameter("step[1].priority", "1"), "which has 1 steps"),
        (
            &parameter("step[0].when", "in"),
            "`step[0].when` of ensemble 'e' is unknown",
        ),
        (&parameter("step[0].priority", "0"), "a positive number"),
        (&parameter("step[0].condition", "!"), "the name of a tensor"),
        (
            &parameter("step[0].condition", "nothing"),
            "ensemble tensor 'nothing', which step 0 reads",
        ),
    ] {
        let refusal = read(&format!("{steps} {text}")).expect_err(expected);
        assert!(refusal.contains(expected), "{refusal}");
    }
    let refusal = read(TENSORS).expect_err("no steps");
    assert!(refusal.contains("ensemble scheduling must be set for ensemble 'e'"));
    let other = steps + "backend: 'mock'";
    let refusal = read(&other).expect_err("a backend");
    assert!(!refusal.is_empty());
    let notices =
        read(&(scheduling(&[step("a", "in", "out")]) + &parameter("isolation", "process")));
    let notices = notices.expect("valid").notices().to_vec();
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0].field, "parameters.isolation");
}

#[test]
fn the_parts_are_known_before_the_configuration_is_valid() {
    let text = scheduling(&[step("a", "in", "out"), step("bad/name", "x", "y")]);
    let proto = parse_pbtxt(text.as_bytes(), "c").expect("parses");
    assert!(is_ensemble(&proto));
    let parts: Vec<String> = ensemble_parts(&proto)
        .map(|(name, _)| name.to_string())
        .collect();
    assert_eq!(parts, ["a"]);
}
