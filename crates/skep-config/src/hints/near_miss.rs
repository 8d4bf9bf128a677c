//! Keys of `parameters` that are nearly one of Skep's: misspelt, reordered, or in another unit.
//!
//! An unknown key has no effect, and the user may never notice. A key that was probably meant for Skep therefore gets a
//! warning; a key of another backend, or of the user's own code, does not.

use super::suggest;
use crate::parameters::PARAMETERS;

/// The key of the latency objective, which has other names elsewhere.
const OBJECTIVE: &str = "slo_latency_ms";

/// Keys of Triton's PyTorch backend, which a model keeps when it moves to ONNX; they differ from ONNX Runtime's only in
/// case.
const OF_OTHER_BACKENDS: &[&str] = &["INTRA_OP_THREAD_COUNT", "INTER_OP_THREAD_COUNT"];

/// Words for units of measurement.
const UNITS: &[&str] = &[
    "ms",
    "us",
    "ns",
    "s",
    "sec",
    "secs",
    "second",
    "seconds",
    "millis",
    "milliseconds",
    "micros",
    "microseconds",
    "bytes",
    "byte",
    "kb",
    "kib",
    "mb",
    "mib",
    "gb",
    "gib",
];

/// Words for a bound. Two keys that differ only in these and in units mean the same.
const BOUNDS: &[&str] = &["max", "maximum", "limit", "time", "timeout"];

/// Words for an objective itself.
const OBJECTIVES: &[&str] = &["slo", "sla"];

/// Words for how long an answer takes.
const LATENCIES: &[&str] = &["latency", "latencies", "p50", "p90", "p95", "p99", "p999"];

/// Words for a target that a latency should meet.
const TARGETS: &[&str] = &[
    "max",
    "maximum",
    "target",
    "objective",
    "limit",
    "budget",
    "goal",
    "deadline",
];

/// Other words in the keys of an objective.
const BESIDE: &[&str] = &["response", "request", "time", "answer"];

/// The key that the user probably meant.
pub(crate) fn meant(key: &str) -> Option<&'static str> {
    // No key is longer, and the time must not depend on the size of the input.
    if key.len() > 100 || OF_OTHER_BACKENDS.contains(&key) {
        return None;
    }
    let written = words(key);
    known_key(|known| words(known).concat() == written.concat())
        .or_else(|| known_key(|known| is_reordered(&written, &words(known))))
        .or_else(|| means_objective(&written).then_some(OBJECTIVE))
        .or_else(|| {
            let keys = PARAMETERS.iter().map(|spec| spec.key);
            let near = suggest::within(&written.join("_"), keys, 2)?;
            known_key(|known| *known == near)
        })
}

/// The first key of the table for which `is_meant` holds.
fn known_key(is_meant: impl Fn(&str) -> bool) -> Option<&'static str> {
    PARAMETERS
        .iter()
        .map(|spec| spec.key)
        .find(|key| is_meant(key))
}

/// Whether a key names a unit that the known key lacks, so that its value has to change as well.
pub(crate) fn changes_unit(key: &str, known: &str) -> bool {
    let known = words(known);
    words(key)
        .iter()
        .any(|word| UNITS.contains(&word.as_str()) && !known.contains(word))
}

/// The words of a key in lower case. They end at `_`, `-`, `.`, `/`, `:` and spaces, and between a small and a capital
/// letter.
fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut after_small = false;
    for c in key.chars() {
        let is_separator = matches!(c, '_' | '-' | '.' | ' ' | '/' | ':');
        if is_separator || (after_small && c.is_uppercase()) {
            words.push(String::new());
        }
        after_small = c.is_lowercase() || c.is_ascii_digit();
        if let (false, Some(word)) = (is_separator, words.last_mut()) {
            word.extend(c.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    // Users write `skep.slo_latency_ms`.
    if words.len() > 1 && words.first().is_some_and(|word| word == "skep") {
        words.remove(0);
    }
    words
}

/// Whether both have the same words, apart from their order, units and bounds.
fn is_reordered(words: &[String], known: &[String]) -> bool {
    let both_have_several = words.len() > 1 && known.len() > 1;
    both_have_several && (sorted(words) == sorted(known) || core(words) == core(known))
}

fn sorted(words: &[String]) -> Vec<&str> {
    let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
    words.sort_unstable();
    words
}

/// The sorted words without units and bounds.
fn core(words: &[String]) -> Vec<&str> {
    let mut core = sorted(words);
    core.retain(|word| !UNITS.contains(word) && !BOUNDS.contains(word));
    core
}

/// Whether a key can only mean how long an answer may take.
fn means_objective(words: &[String]) -> bool {
    let vocabulary = [OBJECTIVES, LATENCIES, TARGETS, BESIDE, UNITS, BOUNDS];
    let all_are_known = words
        .iter()
        .all(|word| vocabulary.iter().any(|list| list.contains(&&**word)));
    let names_a_target = has_any(words, LATENCIES) && has_any(words, TARGETS);
    all_are_known && (has_any(words, OBJECTIVES) || names_a_target)
}

fn has_any(words: &[String], list: &[&str]) -> bool {
    words.iter().any(|word| list.contains(&word.as_str()))
}

#[cfg(test)]
mod tests {
    use super::{meant, words};
    use crate::PARAMETERS;

    #[test]
    fn the_objective_is_known_under_its_other_names() {
        for key in [
            "slo_latency",
            "SLO_LATENCY_MS",
            "slo-latency-ms",
            "slo_ms",
            "latency_slo_ms",
            "max_latency_ms",
            "slo",
            "SLO",
            "sla_ms",
            "slo_latency_us",
            "slo.latency.ms",
            "sloLatencyMs",
            "slolatencyms",
            "slo_latncy_ms",
            "latency_slo",
            "target_latency_ms",
            "latency_objective_ms",
            "latency_target",
            "latency_budget_ms",
            "p99_latency_target_ms",
            "slo_p99_ms",
            "max_response_latency_ms",
            "skep.slo_latency_ms",
            "skep_slo_latency",
            "slo_latency_milliseconds",
            "slo_target_ms",
            "SloMs",
        ] {
            assert_eq!(meant(key), Some("slo_latency_ms"), "{key}");
        }
    }

    #[test]
    fn what_is_no_other_spelling_means_nothing() {
        // A single word with a unit is no key in another order.
        for key in ["isolation_ms", "max_tenant", "execution", "skep"] {
            assert_eq!(meant(key), None, "{key}");
        }
        assert_eq!(words("skep"), ["skep"]);
        assert_eq!(words("skep.tenant"), ["tenant"]);
        // Longer keys are compared with nothing.
        let of_length = |length: usize| format!("slo{}latency_ms", "_".repeat(length - 13));
        assert_eq!(meant(&of_length(100)), Some("slo_latency_ms"));
        assert_eq!(meant(&of_length(101)), None);
    }

    #[test]
    fn every_other_key_is_known_under_its_other_spellings() {
        for (key, expected) in [
            ("queue_size", "max_queue_size"),
            ("MAX_QUEUE_SIZE", "max_queue_size"),
            ("maxQueueSize", "max_queue_size"),
            ("batching-policy", "batching_policy"),
            ("policy_batching", "batching_policy"),
            ("batchingpolicy", "batching_policy"),
            ("slo_miss_actoin", "slo_miss_action"),
            ("Isolation", "isolation"),
            ("TENANT", "tenant"),
            ("max_execution_us", "max_execution_ms"),
            ("execution_timeout_ms", "max_execution_ms"),
            ("run_memory", "max_run_memory"),
            ("max_run_memory_bytes", "max_run_memory"),
            ("memory-planner", "memory_planner"),
            ("thread_spining", "thread_spinning"),
            ("intra_op_threads_count", "intra_op_thread_count"),
            ("mock_latency_us", "mock.latency_us"),
            ("mock.latency_ms", "mock.latency_us"),
        ] {
            assert_eq!(meant(key), Some(expected), "{key}");
        }
        for spec in PARAMETERS {
            for key in [spec.key.to_uppercase(), spec.key.replace('_', "-")] {
                let expected = !key.contains("OP_THREAD_COUNT");
                assert!(
                    key == spec.key || meant(&key) == expected.then_some(spec.key),
                    "{key}"
                );
            }
        }
    }

    #[test]
    fn keys_that_are_not_for_skep_get_no_warning() {
        for key in [
            // Triton's other backends.
            "EXECUTION_ENV_PATH",
            "FORCE_CPU_ONLY_INPUT_TENSORS",
            "INFERENCE_MODE",
            "DISABLE_OPTIMIZED_EXECUTION",
            "INTRA_OP_THREAD_COUNT",
            "ENABLE_CACHE_CLEANING",
            "TF_NUM_INTRA_THREADS",
            "MAX_SESSION_SHARE_COUNT",
            "CPU_THROUGHPUT_STREAMS",
            "PERFORMANCE_HINT",
            "max_tokens_in_paged_kv_cache",
            "batch_scheduler_policy",
            "max_queue_delay_microseconds",
            "stats_check_period_ms",
            "gpt_model_type",
            "batching_strategy",
            "model_type",
            "output_class",
            "kv_cache_free_gpu_mem_fraction",
            "enable_kv_cache_reuse",
            "tokenizer_dir",
            "max_num_sequences",
            // Users' own keys.
            "colour",
            "owner",
            "version",
            "latency",
            "latency_ms",
            "measured_latency_ms",
            "slo_tier",
            "slo_owner",
            "mean_ms",
            "max_length",
            "max_tokens",
            "max_batch",
            "threshold",
            "labels",
            "memory",
            "execution",
            "time_ms",
            "limit",
            "ms",
            "max",
            "",
            "_",
            "tokenizer_path",
            "policy",
            "batch_size",
            "thread_count",
            "queue",
            "timeout_ms",
        ] {
            assert_eq!(meant(key), None, "{key}");
        }
        assert_eq!(meant(&"slo_".repeat(100_000)), None);
    }
}
