//! `sequence_batching`: requests of one sequence run one after the other, with what is kept between them.
//!
//! Refusals are Triton's (`ValidateModelConfig`) where it has them, each with a line that names the field.
//!
//! Source: Triton, user guide, "Batchers" and "Implicit State Management"; `ModelSequenceBatching` in
//! `model_config.proto`.

pub(crate) mod controls;
pub(crate) mod states;

use std::{collections::BTreeMap, time::Duration};

use skep_proto::inference::{
    self,
    model_sequence_batching::{StrategyChoice, StrategyDirect, StrategyOldest},
};

use self::{controls::SequenceControl, states::SequenceState};
use super::objective::LatencyObjective;
use crate::{
    error::ConfigError,
    fields::{
        options::ParameterValues,
        review::Review,
        tensors::{InputConfig, OutputConfig},
    },
    vocabulary::notice::Notice,
};

/// How long a sequence may be idle if the configuration does not say, in microseconds: Triton's default.
const DEFAULT_IDLE_US: u64 = 1_000_000;

const MAX_WAITING: &str = "max_waiting_sequences";
const MAX_WAIT: &str = "max_sequence_wait_ms";

/// The sequence batcher's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceBatching {
    /// How sequences come to instances.
    pub strategy: SlotStrategy,
    /// How long a sequence may be without a request.
    pub max_idle: Duration,
    /// Inputs of the model that tell it of sequences. Requests do not have them.
    pub controls: Vec<SequenceControl>,
    /// What the server keeps for each sequence, and the model gets and gives with each request.
    pub states: Vec<SequenceState>,
    /// Sequences that may wait for a slot (`max_waiting_sequences`); `None` for no limit of their own.
    pub max_waiting: Option<usize>,
    /// How long a sequence may wait for a slot (`max_sequence_wait_ms`); `None` for no limit.
    pub max_wait: Option<Duration>,
}

/// How sequences come to instances.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotStrategy {
    /// Each sequence has a slot of one instance, which is its row of the batch.
    Direct {
        /// How long a batch waits for further slots.
        max_queue_delay: Duration,
        /// How many ready slots of an instance are enough for a batch that does not wait.
        least_ready: usize,
    },
    /// The oldest requests of the candidates form the batches.
    Oldest {
        /// Candidates for each instance; at least 1.
        max_candidates: usize,
        /// Batch sizes that run at once, ascending; empty means the maximum.
        preferred_batch_sizes: Vec<usize>,
        /// How long the oldest request of a batch waits for others.
        max_queue_delay: Duration,
        /// Whether responses leave in the order in which their requests came to the batches.
        preserve_ordering: bool,
    },
}

/// Refuses what is not supported.
pub(super) fn review(
    review: &Review<'_>,
    batching: &inference::ModelSequenceBatching,
) -> Result<(), ConfigError> {
    const INSTEAD: &str =
        "let the client send a request for each iteration, with a state that the server keeps";
    review.unsupported(
        batching.iterative_sequence,
        "sequence_batching.iterative_sequence",
        INSTEAD,
    )
}

/// What `sequence_batching` is read with.
pub(super) struct SequenceTerms<'a> {
    pub(super) proto: &'a inference::ModelConfig,
    pub(super) inputs: &'a [InputConfig],
    pub(super) outputs: &'a [OutputConfig],
    pub(super) parameters: &'a BTreeMap<String, String>,
    pub(super) objective: Option<LatencyObjective>,
}

/// Refuses resources of instances that cannot be exchanged for each other: the rate limiter chooses which one runs next, and
/// under `direct` a request can run on one instance only.
fn refuse_resources(proto: &inference::ModelConfig) -> Result<(), ConfigError> {
    let mut groups = proto.instance_group.iter();
    let limited = groups.position(|group| {
        let limiter = group.rate_limiter.as_ref();
        limiter.is_some_and(|limiter| !limiter.resources.is_empty())
    });
    let Some(index) = limited else {
        return Ok(());
    };
    Err(ConfigError::Unsupported {
        model: proto.name.clone(),
        field: format!("instance_group[{index}].rate_limiter.resources"),
        hint: Some(
            "write `sequence_batching { oldest { } }`: with `direct` each sequence belongs to one instance, and the rate limiter could not choose among them"
                .to_owned(),
        ),
    })
}

/// Reads `batching`.
pub(super) fn read(
    terms: &SequenceTerms<'_>,
    batching: &inference::ModelSequenceBatching,
    notices: &mut Vec<Notice>,
) -> Result<SequenceBatching, ConfigError> {
    let inference::ModelSequenceBatching {
        max_sequence_idle_microseconds,
        control_input,
        state,
        // `review` has refused it
        iterative_sequence: _,
        strategy_choice,
    } = batching;
    let reader = SequenceReader {
        model: &terms.proto.name,
        max_batch_size: terms.proto.max_batch_size,
    };
    if terms.objective.is_some() {
        return Err(reader.no_objective());
    }
    let controls = controls::read(&reader, control_input)?;
    let states = states::read(&reader, state, notices)?;
    check_names(&reader, terms, &controls, &states)?;
    let strategy = match strategy_choice {
        Some(StrategyChoice::Oldest(oldest)) => reader.oldest(oldest)?,
        Some(StrategyChoice::Direct(direct)) => reader.direct(*direct, notices)?,
        None => reader.direct(StrategyDirect::default(), notices)?,
    };
    if matches!(strategy, SlotStrategy::Direct { .. }) {
        refuse_resources(terms.proto)?;
    }
    let idle = match *max_sequence_idle_microseconds {
        0 => DEFAULT_IDLE_US,
        idle => idle,
    };
    let values = ParameterValues(terms.parameters);
    let given = |key: &str| terms.parameters.contains_key(key);
    let max_waiting = given(MAX_WAITING).then(|| values.integer(MAX_WAITING));
    Ok(SequenceBatching {
        strategy,
        max_idle: Duration::from_micros(idle),
        controls,
        states,
        max_waiting: max_waiting.map(|max| usize::try_from(max).unwrap_or(usize::MAX)),
        max_wait: given(MAX_WAIT).then(|| Duration::from_millis(values.integer(MAX_WAIT))),
    })
}

/// Notes the keys of `parameters` that need sequences.
pub(super) fn note_without_sequences(
    parameters: &BTreeMap<String, String>,
    notices: &mut Vec<Notice>,
) {
    let keys = [MAX_WAITING, MAX_WAIT].into_iter();
    for key in keys.filter(|key| parameters.contains_key(*key)) {
        let text = "no effect without `sequence_batching`";
        notices.push(Notice::new(format!("parameters.{key}"), text));
    }
}

/// Writes the defaults that Triton shows.
pub(super) fn write_defaults(batching: &mut inference::ModelSequenceBatching, max_batch_size: i32) {
    if batching.max_sequence_idle_microseconds == 0 {
        batching.max_sequence_idle_microseconds = DEFAULT_IDLE_US;
    }
    if let Some(StrategyChoice::Oldest(oldest)) = &mut batching.strategy_choice
        && oldest.preferred_batch_size.is_empty()
        && max_batch_size > 0
    {
        oldest.preferred_batch_size.push(max_batch_size);
    }
}

/// Refuses tensors that would be two things at once.
fn check_names(
    reader: &SequenceReader<'_>,
    terms: &SequenceTerms<'_>,
    controls: &[SequenceControl],
    states: &[SequenceState],
) -> Result<(), ConfigError> {
    let computed = terms.proto.batch_input.iter();
    let computed = computed.flat_map(|input| &input.target_name);
    let inputs = terms.inputs.iter().map(|input| &input.name);
    let mut taken: Vec<&String> = inputs.chain(computed).collect();
    let controls = controls
        .iter()
        .map(|control| ("control_input", &control.name));
    let states = states.iter();
    let fed = controls.chain(states.clone().map(|state| ("state", &state.input.name)));
    for (field, name) in fed {
        if taken.contains(&name) {
            let rule = format!("tensor '{name}' is set by the server and cannot be another input");
            let hint = "list it once, and not in `input`";
            return Err(reader.refusal(field, &rule, hint));
        }
        taken.push(name);
    }
    for state in states {
        let (name, datatype) = (&state.output.name, state.output.datatype);
        let listed = terms.outputs.iter().find(|output| output.name == *name);
        if let Some(output) = listed
            && (output.datatype != datatype || output.dims != state.output.dims)
        {
            let rule = format!(
                "state output '{name}' has data_type {} and dims {}, but output '{name}' has {} and {}",
                datatype.config_name(),
                state.output.dims,
                output.datatype.config_name(),
                output.dims
            );
            return Err(reader.refusal("state", &rule, "write the same in both"));
        }
    }
    Ok(())
}

/// Reads the settings of one model.
pub(super) struct SequenceReader<'a> {
    model: &'a str,
    max_batch_size: i32,
}

impl SequenceReader<'_> {
    /// `<rule> for <model>`, as Triton says it, and a line with the field.
    fn refusal(&self, field: &str, rule: &str, hint: &str) -> ConfigError {
        let field = format!("sequence_batching.{field}");
        ConfigError::Invalid {
            model: self.model.to_owned(),
            reason: format!("{rule} for {}", self.model),
            hint: Some(format!("`{field}`: {hint}")),
            field,
        }
    }

    fn no_objective(&self) -> ConfigError {
        ConfigError::Invalid {
            model: self.model.to_owned(),
            field: "parameters.slo_latency_ms".to_owned(),
            reason: format!(
                "`slo_latency_ms` of model `{}` forms batches by itself, and so does `sequence_batching`",
                self.model
            ),
            hint: Some(
                "write `parameters { key: \"batching_policy\" value { string_value: \"triton\" } }`: responses are then \
                 only counted against the objective"
                    .to_owned(),
            ),
        }
    }

    /// Inferences of a batch.
    fn largest_batch(&self) -> usize {
        usize::try_from(self.max_batch_size).unwrap_or(0).max(1)
    }

    fn direct(
        &self,
        direct: StrategyDirect,
        notices: &mut Vec<Notice>,
    ) -> Result<SlotStrategy, ConfigError> {
        let StrategyDirect {
            max_queue_delay_microseconds,
            minimum_slot_utilization,
        } = direct;
        if !(0.0..=1.0).contains(&minimum_slot_utilization) {
            let rule = "sequence batching minimum slot utilization must be in range [0.0, 1.0]";
            let hint = format!("it is {minimum_slot_utilization}");
            return Err(self.refusal("direct.minimum_slot_utilization", rule, &hint));
        }
        if max_queue_delay_microseconds > 0 && minimum_slot_utilization == 0.0 {
            notices.push(Notice::new(
                "sequence_batching.direct.max_queue_delay_microseconds",
                "no effect: `minimum_slot_utilization` is 0, so no batch waits",
            ));
        }
        #[expect(clippy::cast_sign_loss, reason = "the share is not negative")]
        let least_ready = (minimum_slot_utilization * self.largest_batch() as f32).ceil() as usize;
        Ok(SlotStrategy::Direct {
            max_queue_delay: Duration::from_micros(max_queue_delay_microseconds),
            least_ready,
        })
    }

    fn oldest(&self, oldest: &StrategyOldest) -> Result<SlotStrategy, ConfigError> {
        let StrategyOldest {
            max_candidate_sequences,
            preferred_batch_size,
            max_queue_delay_microseconds,
            preserve_ordering,
        } = oldest;
        let max_candidates = usize::try_from(*max_candidate_sequences).unwrap_or(0);
        if max_candidates == 0 {
            let rule = "sequence batching must specify maximum candidate sequences > 0";
            let hint = format!("it is {max_candidate_sequences}");
            return Err(self.refusal("oldest.max_candidate_sequences", rule, &hint));
        }
        let mut preferred = Vec::new();
        for (index, &size) in preferred_batch_size.iter().enumerate() {
            let rule = match usize::try_from(size) {
                Err(_) | Ok(0) => "positive",
                Ok(_) if size > self.max_batch_size => "<= max batch size",
                Ok(size) => {
                    preferred.push(size);
                    continue;
                }
            };
            return Err(self.refusal(
                &format!("oldest.preferred_batch_size[{index}]"),
                &format!("sequence batching preferred batch size must be {rule}"),
                &format!("it is {size}, `max_batch_size` is {}", self.max_batch_size),
            ));
        }
        preferred.sort_unstable();
        preferred.dedup();
        // A server shows this for an empty list.
        if preferred == [self.largest_batch()] {
            preferred.clear();
        }
        Ok(SlotStrategy::Oldest {
            max_candidates,
            preferred_batch_sizes: preferred,
            max_queue_delay: Duration::from_micros(*max_queue_delay_microseconds),
            preserve_ordering: *preserve_ordering,
        })
    }
}

#[cfg(test)]
mod tests;
