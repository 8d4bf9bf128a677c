//! `dynamic_batching`, checked and typed.
//!
//! Refusals are Triton's (`ValidateModelConfig`), each with a line that names the field and its value.

use std::time::Duration;

use skep_proto::inference::{self, model_queue_policy::TimeoutAction as ProtoAction};
use skep_types::{QueuePolicy, TimeoutAction};

use super::objective::LatencyObjective;
use crate::{error::ConfigError, vocabulary::notice::Notice};

/// The dynamic batcher's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DynamicBatching {
    /// Batch sizes that run at once, ascending, each from 1 to the maximum; empty means the maximum.
    pub preferred_batch_sizes: Vec<usize>,
    /// How long the oldest request of a batch waits for others.
    pub max_queue_delay: Duration,
    /// Whether responses leave in the order of their requests.
    pub preserve_ordering: bool,
    /// The queues of the priority levels in the order in which they are served; at least one.
    pub levels: Vec<QueuePolicy>,
    /// The index of the level for requests that name no level or an unknown one.
    pub default_level: usize,
    /// The objective that replaces preferred sizes, delay and time-out actions.
    pub objective: Option<LatencyObjective>,
}

impl DynamicBatching {
    /// The sum of the queues' own limits; a queue without one counts as 0.
    pub(super) fn queue_sizes(&self) -> usize {
        let sizes = self.levels.iter().filter_map(|level| level.max_queue_size);
        sizes.fold(0, usize::saturating_add)
    }
}

/// The most priority levels. Each has a queue; a larger number is a mistake.
const MAX_LEVELS: u64 = 4096;

const ORDER_AND_DELAY: &str =
    "Queue policy can not have DELAY as timeout action when 'preserve_ordering' is true";

/// Reads `batching`. An `objective` overrules some of its settings.
pub(super) fn read(
    proto: &inference::ModelConfig,
    batching: &inference::ModelDynamicBatching,
    objective: Option<LatencyObjective>,
    notices: &mut Vec<Notice>,
) -> Result<DynamicBatching, ConfigError> {
    let reader = DynamicBatchingReader {
        model: &proto.name,
        batching,
        objective,
        notices,
    };
    reader.read(proto.max_batch_size)
}

struct DynamicBatchingReader<'a> {
    model: &'a str,
    batching: &'a inference::ModelDynamicBatching,
    objective: Option<LatencyObjective>,
    notices: &'a mut Vec<Notice>,
}

impl DynamicBatchingReader<'_> {
    fn read(mut self, max_batch_size: i32) -> Result<DynamicBatching, ConfigError> {
        let inference::ModelDynamicBatching {
            preferred_batch_size,
            max_queue_delay_microseconds,
            preserve_ordering,
            priority_levels,
            default_priority_level: _,
            default_queue_policy: _,
            priority_queue_policy: _,
        } = self.batching;
        let preferred_batch_sizes = self.preferred(preferred_batch_size, max_batch_size)?;
        if max_batch_size == 0 {
            self.note(
                "",
                "its queue rules apply, but each request runs alone: `max_batch_size` is 0",
            );
        }
        let default_level = self.default_level(*priority_levels)?;
        let levels = self.levels(*priority_levels)?;
        if *preserve_ordering {
            self.check_order(*priority_levels)?;
        }
        if let Some(objective) = self.objective {
            self.note_overruled(objective, !preferred_batch_sizes.is_empty());
        }
        Ok(DynamicBatching {
            preferred_batch_sizes,
            max_queue_delay: Duration::from_micros(*max_queue_delay_microseconds),
            preserve_ordering: *preserve_ordering,
            levels,
            default_level,
            objective: self.objective,
        })
    }

    fn preferred(&self, sizes: &[i32], max_batch_size: i32) -> Result<Vec<usize>, ConfigError> {
        let mut preferred = Vec::new();
        for (index, &size) in sizes.iter().enumerate() {
            let rule = match usize::try_from(size) {
                Err(_) | Ok(0) => "positive",
                Ok(_) if size > max_batch_size => "<= max batch size",
                Ok(size) => {
                    preferred.push(size);
                    continue;
                }
            };
            return Err(self.refusal(
                &format!("preferred_batch_size[{index}]"),
                &format!("dynamic batching preferred size must be {rule}"),
                &format!("it is {size}, `max_batch_size` is {max_batch_size}"),
            ));
        }
        preferred.sort_unstable();
        preferred.dedup();
        // A server shows this for an empty list.
        if preferred.first() == usize::try_from(max_batch_size).ok().as_ref() {
            preferred.clear();
        }
        Ok(preferred)
    }

    /// The index of the default level.
    fn default_level(&mut self, levels: u64) -> Result<usize, ConfigError> {
        let level = self.batching.default_priority_level;
        if levels == 0 {
            if level != 0 {
                self.note(
                    "default_priority_level",
                    "no effect: `priority_levels` is 0",
                );
            }
            return Ok(0);
        }
        if levels > MAX_LEVELS {
            let rule = format!("priority levels must be <= {MAX_LEVELS}");
            return Err(self.refusal("priority_levels", &rule, &format!("it is {levels}")));
        }
        if !(1..=levels).contains(&level) {
            let rule = format!("default priority level must be in range [1, {levels}]");
            return Err(self.refusal("default_priority_level", &rule, &format!("it is {level}")));
        }
        Ok(usize::try_from(level - 1).unwrap_or_default())
    }

    /// The policy of each level.
    fn levels(&mut self, levels: u64) -> Result<Vec<QueuePolicy>, ConfigError> {
        let own = &self.batching.priority_queue_policy;
        if levels == 0 && !own.is_empty() {
            self.note("priority_queue_policy", "no effect: `priority_levels` is 0");
        }
        let stray = own
            .keys()
            .find(|level| levels > 0 && !(1..=levels).contains(*level));
        if let Some(level) = stray {
            let rule =
                format!("priority queue policy must have priority level in range [1, {levels}]");
            let hint = format!("it has level {level}");
            return Err(self.refusal("priority_queue_policy", &rule, &hint));
        }
        let default = self.batching.default_queue_policy.unwrap_or_default();
        let mut policies = Vec::new();
        let all_have_their_own = levels > 0 && (1..=levels).all(|level| own.contains_key(&level));
        if !all_have_their_own {
            // Warns about the default once, not for each level.
            self.policy("default_queue_policy", default)?;
        }
        for level in 1..=levels.max(1) {
            let policy = match own.get(&level).filter(|_| levels > 0) {
                Some(policy) => self.policy(&format!("priority_queue_policy[{level}]"), *policy)?,
                None => typed(default),
            };
            policies.push(policy);
        }
        Ok(policies)
    }

    /// Types one queue's policy, and warns about a setting without effect.
    fn policy(
        &mut self,
        field: &str,
        policy: inference::ModelQueuePolicy,
    ) -> Result<QueuePolicy, ConfigError> {
        if ProtoAction::try_from(policy.timeout_action).is_err() {
            let rule = format!("timeout action {} is unknown", policy.timeout_action);
            let hint = "expected REJECT or DELAY";
            return Err(self.refusal(&format!("{field}.timeout_action"), &rule, hint));
        }
        if policy.allow_timeout_override
            && policy.default_timeout_microseconds == 0
            && self.objective.is_none()
        {
            self.note(
                &format!("{field}.allow_timeout_override"),
                "no effect: a request's own time-out counts only where it is below `default_timeout_microseconds`, which \
                 is 0 (no limit)",
            );
        }
        Ok(typed(policy))
    }

    /// Refuses priorities and delayed requests, which contradict ordered responses.
    fn check_order(&self, levels: u64) -> Result<(), ConfigError> {
        if levels > 1 {
            let rule = "Only one priority level is allowed when 'preserve_ordering' is true";
            let hint = format!("it is {levels}");
            return Err(self.refusal("priority_levels", rule, &hint));
        }
        if self
            .objective
            .is_some_and(|o| o.miss_action == TimeoutAction::Delay)
        {
            return Err(ConfigError::Invalid {
                model: self.model.to_owned(),
                field: "parameters.slo_miss_action".to_owned(),
                reason: format!("{ORDER_AND_DELAY} for {}", self.model),
                hint: Some("`parameters.slo_miss_action`: write REJECT".to_owned()),
            });
        }
        let own = self.batching.priority_queue_policy.iter();
        let mut policies = own
            .map(|(level, policy)| (format!("priority_queue_policy[{level}]"), policy))
            .chain(
                self.batching
                    .default_queue_policy
                    .iter()
                    .map(|policy| ("default_queue_policy".to_owned(), policy)),
            );
        let delays = policies.find(|(_, policy)| {
            policy.default_timeout_microseconds != 0
                && policy.timeout_action == ProtoAction::Delay as i32
        });
        match delays {
            None => Ok(()),
            Some((field, _)) => Err(self.refusal(
                &format!("{field}.timeout_action"),
                ORDER_AND_DELAY,
                "write REJECT",
            )),
        }
    }

    /// Notes the settings that an objective overrules.
    fn note_overruled(&mut self, objective: LatencyObjective, preferred: bool) {
        let name = objective.policy.name();
        let why = format!("no effect: `batching_policy` `{name}` forms the batches");
        if preferred {
            self.note("preferred_batch_size", &why);
        }
        if self.batching.max_queue_delay_microseconds != 0 {
            self.note("max_queue_delay_microseconds", &why);
        }
        let own = self.batching.priority_queue_policy.values();
        let mut policies = own.chain(&self.batching.default_queue_policy);
        if policies.any(|policy| policy.timeout_action == ProtoAction::Delay as i32) {
            self.note(
                "default_queue_policy.timeout_action",
                "no effect: the parameter `slo_miss_action` decides",
            );
        }
    }

    fn note(&mut self, field: &str, text: &str) {
        let dot = if field.is_empty() { "" } else { "." };
        self.notices
            .push(Notice::new(format!("dynamic_batching{dot}{field}"), text));
    }

    /// `<rule> for <model>`, as Triton says it, and a line with the field and its value.
    fn refusal(&self, field: &str, rule: &str, hint: &str) -> ConfigError {
        let field = format!("dynamic_batching.{field}");
        ConfigError::Invalid {
            model: self.model.to_owned(),
            reason: format!("{rule} for {}", self.model),
            hint: Some(format!("`{field}`: {hint}")),
            field,
        }
    }
}

/// 0 means no limit in the message.
fn typed(policy: inference::ModelQueuePolicy) -> QueuePolicy {
    let inference::ModelQueuePolicy {
        timeout_action,
        default_timeout_microseconds,
        allow_timeout_override,
        max_queue_size,
    } = policy;
    QueuePolicy {
        timeout_action: if timeout_action == ProtoAction::Delay as i32 {
            TimeoutAction::Delay
        } else {
            TimeoutAction::Reject
        },
        timeout: (default_timeout_microseconds > 0)
            .then(|| Duration::from_micros(default_timeout_microseconds)),
        allow_timeout_override,
        max_queue_size: (max_queue_size > 0)
            .then(|| usize::try_from(max_queue_size).unwrap_or(usize::MAX)),
    }
}
