//! What `dynamic_batching` means, and what of it is refused.

use std::time::Duration;

use skep_types::ModelName;

use super::*;
use crate::{Context, ErrorKind, ModelConfig, parse_pbtxt};

fn config(max_batch_size: usize, batching: &str) -> Result<ModelConfig, ConfigError> {
    let text = format!(
        "backend: 'mock' max_batch_size: {max_batch_size}
         input {{ name: 'x' data_type: TYPE_FP32 dims: 3 }} output {{ name: 'y' data_type: TYPE_FP32 dims: 3 }}
         dynamic_batching {{ {batching} }}"
    );
    let name = ModelName::new("m").expect("name");
    let proto = parse_pbtxt(text.as_bytes(), "c").unwrap_or_else(|error| panic!("{error}"));
    ModelConfig::from_proto(proto, &Context::new(&name))
}

fn dynamic(batching: &str) -> (DynamicBatching, usize, Vec<String>) {
    let config = config(8, batching).expect(batching);
    let notices = config.notices().iter().map(ToString::to_string).collect();
    match config.scheduler() {
        Scheduler::Dynamic(batching) => (batching.clone(), config.max_queue_size(), notices),
        Scheduler::Default => panic!("chosen"),
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
        default_timeout: Some(Duration::from_micros(70)),
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
    };
    assert_eq!((got, max_queue_size, notices), (expected, 20_000, vec![]));
}

#[test]
fn nothing_written_is_one_queue_without_delay() {
    let (got, max_queue_size, notices) = dynamic("");
    let expected = DynamicBatching {
        preferred_batch_sizes: vec![],
        max_queue_delay: Duration::ZERO,
        preserve_ordering: false,
        levels: vec![QueuePolicy::default()],
        default_level: 0,
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
fn what_triton_refuses_is_refused_in_its_words_and_the_field_is_named() {
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
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(expected.contains(&format!("`{}`", error.field())), "{}", error.field());
    }
}

#[test]
fn what_has_no_effect_is_named_once() {
    for (batching, expected) in [
        (
            "priority_levels: 3 default_priority_level: 1 default_queue_policy { allow_timeout_override: true }",
            &[
                "`dynamic_batching.default_queue_policy.allow_timeout_override`: no effect: a request's own time-out \
               counts only where it is below `default_timeout_microseconds`, which is 0, for no end",
            ][..],
        ),
        (
            "default_priority_level: 1 priority_queue_policy { key: 1 value { allow_timeout_override: true } }",
            &[
                "`dynamic_batching.default_priority_level`: no effect: there are no priority levels",
                "`dynamic_batching.priority_queue_policy`: no effect: there are no priority levels",
            ],
        ),
        (
            "default_queue_policy { allow_timeout_override: true default_timeout_microseconds: 1 }",
            &[],
        ),
        // A time-out that never is over delays nothing.
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
        "`dynamic_batching`: requests are queued by its rules, each is executed on its own: `max_batch_size` is 0"
    );
}
