//! Kinds of schedulers: what is typed, what is refused, what has no effect.

use std::time::Duration;

use skep_proto::inference;
use skep_types::{ModelName, ObjectivePolicy, Percentile, QueuePolicy, TimeoutAction};

use super::{DynamicBatching, LatencyObjective, SchedulerConfig};
use crate::{ConfigContext, ConfigError, ConfigErrorKind, ModelConfig, parse_pbtxt};

fn config(max_batch_size: usize, batching: &str) -> Result<ModelConfig, ConfigError> {
    let text = format!(
        "backend: 'mock' max_batch_size: {max_batch_size}
         input {{ name: 'x' data_type: TYPE_FP32 dims: 3 }} output {{ name: 'y' data_type: TYPE_FP32 dims: 3 }}
         dynamic_batching {{ {batching} }}"
    );
    let name = ModelName::new("m").expect("name");
    let proto = parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}"));
    ModelConfig::from_proto(proto, &ConfigContext::new(&name))
}

/// The scheduler and the notices of a configuration with these parameters; without `dynamic_batching` if it is empty.
fn with_parameters(
    batching: &str,
    parameters: &[(&str, &str)],
) -> Result<(SchedulerConfig, Vec<String>), ConfigError> {
    let mut proto = config(8, "").expect("valid").proto().clone();
    proto.scheduling_choice = None;
    if !batching.is_empty() {
        let written = config(8, batching).expect(batching).proto().clone();
        proto.scheduling_choice = written.scheduling_choice;
    }
    for (key, value) in parameters {
        let string_value = (*value).to_owned();
        let parameter = inference::ModelParameter { string_value };
        proto.parameters.insert((*key).to_owned(), parameter);
    }
    let name = ModelName::new("m").expect("name");
    let config = ModelConfig::from_proto(proto.clone(), &ConfigContext::new(&name))?;
    // A server shows an objective only through the parameters as they were written.
    assert_eq!(config.proto().parameters, proto.parameters);
    let notices = config.notices().iter().map(ToString::to_string).collect();
    Ok((config.scheduler().clone(), notices))
}

fn dynamic(batching: &str) -> (DynamicBatching, usize, Vec<String>) {
    let config = config(8, batching).expect(batching);
    let notices = config.notices().iter().map(ToString::to_string).collect();
    match config.scheduler() {
        SchedulerConfig::Dynamic(batching) => (batching.clone(), config.max_queue_size(), notices),
        SchedulerConfig::Default | SchedulerConfig::Ensemble(_) | SchedulerConfig::Sequence(_) => {
            panic!("chosen")
        }
    }
}

#[test]
fn every_field_is_typed() {
    let (got, max_queue_size, notices) = dynamic(
        "preferred_batch_size: [ 6, 4, 6 ] max_queue_delay_microseconds: 1500
         priority_levels: 3 default_priority_level: 2
         default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 70 allow_timeout_override: true }
         priority_queue_policy { key: 1 value { max_queue_size: 20000 } }",
    );
    let default = QueuePolicy {
        timeout_action: TimeoutAction::Delay,
        timeout: Some(Duration::from_micros(70)),
        allow_timeout_override: true,
        max_queue_size: None,
    };
    let first = QueuePolicy {
        max_queue_size: Some(20_000),
        ..QueuePolicy::default()
    };
    let expected = DynamicBatching {
        preferred_batch_sizes: vec![4, 6],
        max_queue_delay: Duration::from_micros(1500),
        preserve_ordering: false,
        levels: vec![first, default, default],
        default_level: 1,
        objective: None,
    };
    assert_eq!((got, max_queue_size, notices), (expected, 20_000, vec![]));
}

#[test]
fn the_default_is_one_queue_without_delay() {
    let (got, max_queue_size, notices) = dynamic("");
    let expected = DynamicBatching {
        preferred_batch_sizes: vec![],
        max_queue_delay: Duration::ZERO,
        preserve_ordering: false,
        levels: vec![QueuePolicy::default()],
        default_level: 0,
        objective: None,
    };
    assert_eq!((got, max_queue_size, notices), (expected, 16_384, vec![]));
    assert_eq!(dynamic("preferred_batch_size: 8").0, dynamic("").0);
    assert!(
        dynamic("preserve_ordering: true priority_levels: 1 default_priority_level: 1")
            .0
            .preserve_ordering
    );
}

#[test]
fn refusals_use_tritons_words_and_name_the_field() {
    for (batching, expected) in [
        (
            "preferred_batch_size: [ 2, 0 ]",
            "dynamic batching preferred size must be positive for m\n\
             `dynamic_batching.preferred_batch_size[1]`: it is 0, `max_batch_size` is 8",
        ),
        (
            "preferred_batch_size: -1",
            "dynamic batching preferred size must be positive for m\n\
             `dynamic_batching.preferred_batch_size[0]`: it is -1, `max_batch_size` is 8",
        ),
        (
            "preferred_batch_size: 9",
            "dynamic batching preferred size must be <= max batch size for m\n\
             `dynamic_batching.preferred_batch_size[0]`: it is 9, `max_batch_size` is 8",
        ),
        (
            "priority_levels: 2",
            "default priority level must be in range [1, 2] for m\n\
             `dynamic_batching.default_priority_level`: it is 0",
        ),
        (
            "priority_levels: 2 default_priority_level: 3",
            "default priority level must be in range [1, 2] for m\n\
             `dynamic_batching.default_priority_level`: it is 3",
        ),
        (
            "priority_levels: 4097 default_priority_level: 1",
            "priority levels must be <= 4096 for m\n`dynamic_batching.priority_levels`: it is 4097",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 3 value {} }",
            "priority queue policy must have priority level in range [1, 2] for m\n\
             `dynamic_batching.priority_queue_policy`: it has level 3",
        ),
        (
            "priority_levels: 2 default_priority_level: 1 priority_queue_policy { key: 0 value {} }",
            "priority queue policy must have priority level in range [1, 2] for m\n\
             `dynamic_batching.priority_queue_policy`: it has level 0",
        ),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "Only one priority level is allowed when 'preserve_ordering' is true for m\n\
             `dynamic_batching.priority_levels`: it is 2",
        ),
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 1 }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m\n\
             `dynamic_batching.default_queue_policy.timeout_action`: write REJECT",
        ),
        (
            "preserve_ordering: true priority_levels: 1 default_priority_level: 1
             priority_queue_policy { key: 1 value { timeout_action: DELAY default_timeout_microseconds: 1 } }",
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m\n\
             `dynamic_batching.priority_queue_policy[1].timeout_action`: write REJECT",
        ),
    ] {
        let error = config(8, batching).expect_err(batching);
        assert_eq!(error.to_string(), expected);
        assert_eq!(error.kind(), ConfigErrorKind::Invalid);
        assert!(expected.contains(&format!("`{}`", error.field())), "{}", error.field());
    }
}

#[test]
fn settings_without_effect_get_one_notice() {
    for (batching, expected) in [
        (
            "priority_levels: 3 default_priority_level: 1 default_queue_policy { allow_timeout_override: true }",
            &[
                "`dynamic_batching.default_queue_policy.allow_timeout_override`: no effect: a request's own time-out \
               counts only where it is below `default_timeout_microseconds`, which is 0 (no limit)",
            ][..],
        ),
        (
            "default_priority_level: 1 priority_queue_policy { key: 1 value { allow_timeout_override: true } }",
            &[
                "`dynamic_batching.default_priority_level`: no effect: `priority_levels` is 0",
                "`dynamic_batching.priority_queue_policy`: no effect: `priority_levels` is 0",
            ],
        ),
        (
            "default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 1 }",
            &[],
        ),
        // Without a time-out, DELAY delays nothing.
        (
            "preserve_ordering: true default_queue_policy { timeout_action: DELAY }",
            &[],
        ),
    ] {
        assert_eq!(dynamic(batching).2, expected, "{batching}");
    }
    let unbatched = config(0, "").expect("valid");
    assert_eq!(
        unbatched.notices()[0].to_string(),
        "`dynamic_batching`: its queue rules apply, but each request runs alone: `max_batch_size` is 0"
    );
}

#[test]
fn an_objective_is_typed() {
    let (without, _) = with_parameters("", &[]).expect("valid");
    assert_eq!(without, SchedulerConfig::Default);
    let ms = Duration::from_millis;
    for (batching, parameters, latency, percentile, policy, miss_action) in [
        (
            "",
            &[("slo_latency_ms", "50")][..],
            ms(50),
            99.0,
            ObjectivePolicy::Auto,
            TimeoutAction::Reject,
        ),
        (
            "priority_levels: 1 default_priority_level: 1",
            &[
                ("slo_latency_ms", " 2.5 "),
                ("slo_percentile", " 97.5 "),
                ("batching_policy", "edf"),
                ("slo_miss_action", "DELAY"),
            ],
            Duration::from_micros(2500),
            97.5,
            ObjectivePolicy::Edf,
            TimeoutAction::Delay,
        ),
    ] {
        let (scheduler, notices) = with_parameters(batching, parameters).expect("valid");
        let SchedulerConfig::Dynamic(dynamic) = scheduler else {
            panic!("an objective asks for batches");
        };
        assert_eq!(
            dynamic.objective,
            Some(LatencyObjective {
                latency,
                percentile: Percentile::new(percentile).expect("within its bounds"),
                policy,
                miss_action
            })
        );
        assert!(notices.is_empty(), "{notices:?}");
    }
    for name in ["aimd", "quantile", "edf", "deferred", "auto"] {
        let parameters = [("slo_latency_ms", "1"), ("batching_policy", name)];
        let (scheduler, _) = with_parameters("", &parameters).expect("valid");
        let SchedulerConfig::Dynamic(dynamic) = scheduler else {
            panic!("chosen");
        };
        assert_eq!(dynamic.objective.expect("there").policy.name(), name);
    }
}

#[test]
fn invalid_objectives_are_refused() {
    for (batching, parameters, expected) in [
        (
            "",
            &[("slo_latency_ms", "0")][..],
            "parameter `slo_latency_ms` of model `m` is `0`, expected a number of milliseconds above 0 and up to 3600000",
        ),
        (
            "",
            &[("slo_latency_ms", "soon")],
            "parameter `slo_latency_ms` of model `m` is `soon`, expected a number of milliseconds above 0 and up to 3600000",
        ),
        (
            "",
            &[("slo_latency_ms", "NaN")],
            "parameter `slo_latency_ms` of model `m` is `NaN`, expected a number of milliseconds above 0 and up to 3600000",
        ),
        (
            "",
            &[("slo_latency_ms", "1"), ("slo_percentile", "0.99")],
            "parameter `slo_percentile` of model `m` is `0.99`, expected a percentile from 50 to 99.9",
        ),
        (
            "",
            &[("slo_latency_ms", "1"), ("slo_percentile", "100")],
            "parameter `slo_percentile` of model `m` is `100`, expected a percentile from 50 to 99.9",
        ),
        (
            "",
            &[("slo_percentile", "p99")],
            "parameter `slo_percentile` of model `m` is `p99`, expected a percentile from 50 to 99.9",
        ),
        (
            "",
            &[("slo_latency_ms", "1"), ("batching_policy", "eager")],
            "parameter `batching_policy` of model `m` is `eager`, expected one of `auto`, `triton`, `aimd`, `quantile`, \
             `edf`, `deferred`",
        ),
        (
            "max_queue_delay_microseconds: 1",
            &[("batching_policy", "aimd")],
            "parameter `batching_policy` of model `m` is `aimd`, which needs a latency objective\n\
             write `parameters { key: \"slo_latency_ms\" value { string_value: \"50\" } }` with the milliseconds that an \
             answer may take",
        ),
        (
            "preserve_ordering: true",
            &[("slo_latency_ms", "1"), ("slo_miss_action", "DELAY")],
            "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true for m\n\
             `parameters.slo_miss_action`: write REJECT",
        ),
    ] {
        let error = with_parameters(batching, parameters).expect_err(expected);
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn settings_that_an_objective_overrules_get_a_notice() {
    let by_auto = "no effect: `batching_policy` `auto` forms the batches";
    let (_, notices) = with_parameters(
        "preferred_batch_size: 4 max_queue_delay_microseconds: 1
         default_queue_policy { timeout_action: DELAY allow_timeout_override: true }",
        &[("slo_latency_ms", "1")],
    )
    .expect("valid");
    assert_eq!(
        notices,
        [
            format!("`dynamic_batching.preferred_batch_size`: {by_auto}"),
            format!("`dynamic_batching.max_queue_delay_microseconds`: {by_auto}"),
            "`dynamic_batching.default_queue_policy.timeout_action`: no effect: the parameter `slo_miss_action` decides"
                .to_owned(),
        ]
    );
    for (parameters, expected) in [
        (
            &[("batching_policy", "triton"), ("slo_latency_ms", "1")][..],
            "`parameters.slo_latency_ms`: answers are counted against it, but it forms no batches: `batching_policy` is `triton`",
        ),
        (
            &[("slo_percentile", "95")],
            "`parameters.slo_percentile`: no effect: `slo_latency_ms` is not set",
        ),
        (
            &[("slo_miss_action", "REJECT")],
            "`parameters.slo_miss_action`: no effect: `slo_latency_ms` is not set",
        ),
    ] {
        let (scheduler, notices) = with_parameters("", parameters).expect("valid");
        assert_eq!(
            (scheduler, notices),
            (SchedulerConfig::Default, vec![expected.to_owned()])
        );
    }
}
