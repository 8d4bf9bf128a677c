//! When a model is in memory, and with how many instances: keys of the `parameters` map.

use std::{collections::BTreeMap, time::Duration};

use skep_proto::inference;

use super::{instances::InstanceGroup, options::ParameterValues};
use crate::{error::ConfigError, parameters::table::parameter};

/// When models are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadPolicy {
    /// At the start, or when a client asks for the load.
    #[default]
    Eager,
    /// At the first request.
    Lazy,
}

/// When a model is in memory, and with how many instances. What is `None` the server decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelResidency {
    /// When it is loaded (`load_policy`).
    pub load_policy: Option<LoadPolicy>,
    /// Instances that it always has (`min_instances`). With 1 or more it is loaded at the start and never leaves by
    /// itself.
    pub min_instances: Option<u32>,
    /// Instances that it has at most under load (`max_instances`).
    pub max_instances: Option<u32>,
    /// Whether the server chooses its instances, threads and batches (`live_configuration`).
    pub is_live: bool,
    /// How long a request waits for it to load (`max_load_wait_ms`).
    pub max_load_wait: Option<Duration>,
}

impl ModelResidency {
    /// What a configuration that is not complete yet says. Values that its load will refuse count as absent.
    #[must_use]
    pub fn configured(config: &inference::ModelConfig) -> Self {
        let accepted = config.parameters.iter().filter(|(key, value)| {
            parameter(key).is_some_and(|spec| spec.value.accepts(&value.string_value))
        });
        let map: BTreeMap<String, String> = accepted
            .map(|(key, value)| (key.clone(), value.string_value.clone()))
            .collect();
        ParameterValues(&map).residency()
    }

    /// Whether it never leaves by itself.
    #[must_use]
    pub fn is_pinned(&self) -> bool {
        self.min_instances.is_some_and(|least| least > 0)
    }

    /// Whether its number of instances follows the load.
    #[must_use]
    pub const fn scales(&self) -> bool {
        self.max_instances.is_some()
    }

    /// Whether the number of its instances changes while it serves.
    #[must_use]
    pub const fn is_watched(&self) -> bool {
        self.scales() || self.is_live
    }

    /// How many active instances it may have while it is in memory, where the configuration asks for `configured`.
    #[must_use]
    pub fn bounds(&self, configured: u32) -> (u32, u32) {
        match self.max_instances {
            Some(most) => (self.min_instances.unwrap_or(1).max(1), most),
            None => {
                let count = configured.max(self.min_instances.unwrap_or(1));
                (count, count)
            }
        }
    }

    /// # Errors
    /// If the numbers contradict each other or the instance groups.
    pub(crate) fn check(&self, model: &str, groups: &[InstanceGroup]) -> Result<(), ConfigError> {
        let Some(most) = self.max_instances else {
            return Ok(());
        };
        let refuse = |field: &str, reason: String| Err(ConfigError::invalid(model, field, reason));
        if let Some(least) = self.min_instances.filter(|least| *least > most) {
            let reason = format!("{least} is more than `max_instances`, which is {most}");
            return refuse("parameters.min_instances", reason);
        }
        let active = groups.iter().filter(|group| !group.passive);
        let configured: u32 = active.map(|group| group.count).sum();
        if configured > most {
            let reason =
                format!("{most} is less than the {configured} instances of `instance_group`");
            return refuse("parameters.max_instances", reason);
        }
        Ok(())
    }
}

impl ParameterValues<'_> {
    pub(crate) fn residency(&self) -> ModelResidency {
        let count = |key| {
            let given = self.0.contains_key(key);
            given.then(|| u32::try_from(self.integer(key)).unwrap_or(u32::MAX))
        };
        ModelResidency {
            load_policy: self.0.get("load_policy").map(|value| match value.trim() {
                "lazy" => LoadPolicy::Lazy,
                _ => LoadPolicy::Eager,
            }),
            min_instances: count("min_instances"),
            max_instances: count("max_instances"),
            is_live: self.bool("live_configuration"),
            max_load_wait: self
                .0
                .contains_key("max_load_wait_ms")
                .then(|| Duration::from_millis(self.integer("max_load_wait_ms"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse_pbtxt;

    fn configured(parameters: &[(&str, &str)]) -> ModelResidency {
        let entries = parameters.iter().map(|(key, value)| {
            format!("parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}\n")
        });
        let text: String = entries.collect();
        ModelResidency::configured(&parse_pbtxt(text.as_bytes(), "c").expect("parses"))
    }

    fn group(count: u32, passive: bool) -> InstanceGroup {
        InstanceGroup {
            name: "g".to_owned(),
            count,
            kind: crate::InstanceKind::Cpu,
            passive,
            priority: 1,
            resources: Vec::new(),
        }
    }

    #[test]
    fn it_is_known_before_a_configuration_is_complete() {
        assert_eq!(configured(&[]), ModelResidency::default());
        let all = configured(&[
            ("load_policy", " lazy "),
            ("min_instances", "0"),
            ("max_instances", "4"),
            ("live_configuration", "true"),
            ("max_load_wait_ms", "250"),
        ]);
        let expected = ModelResidency {
            load_policy: Some(LoadPolicy::Lazy),
            min_instances: Some(0),
            max_instances: Some(4),
            is_live: true,
            max_load_wait: Some(Duration::from_millis(250)),
        };
        assert_eq!(all, expected);
        assert!(all.scales() && !all.is_pinned());
        assert!(configured(&[("min_instances", "1")]).is_pinned());
    }

    #[test]
    fn values_that_a_load_refuses_count_as_absent() {
        let refused = configured(&[
            ("load_policy", "never"),
            ("min_instances", "-1"),
            ("max_instances", "0"),
            ("max_load_wait_ms", "soon"),
        ]);
        assert_eq!(refused, ModelResidency::default());
    }

    #[test]
    fn instances_stay_within_both_bounds() {
        let bounds = |parameters: &[(&str, &str)]| configured(parameters).bounds(2);
        assert_eq!(bounds(&[]), (2, 2));
        assert_eq!(bounds(&[("min_instances", "3")]), (3, 3));
        assert_eq!(bounds(&[("min_instances", "1")]), (2, 2));
        assert_eq!(bounds(&[("max_instances", "4")]), (1, 4));
        assert_eq!(
            bounds(&[("min_instances", "0"), ("max_instances", "4")]),
            (1, 4)
        );
        assert_eq!(
            bounds(&[("min_instances", "3"), ("max_instances", "4")]),
            (3, 4)
        );
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |parameters: &[(&str, &str)], groups: &[InstanceGroup]| {
            let outcome = configured(parameters).check("m", groups);
            outcome.map_err(|error| error.to_string())
        };
        let least_above_most = [("min_instances", "3"), ("max_instances", "2")];
        let error = check(&least_above_most, &[]).expect_err("refused");
        assert!(error.contains("3 is more than `max_instances`"), "{error}");
        let most = [("max_instances", "2")];
        let error = check(&most, &[group(2, false), group(1, false)]).expect_err("refused");
        assert!(error.contains("the 3 instances"), "{error}");
        assert_eq!(check(&most, &[group(2, false), group(1, true)]), Ok(()));
        let both = [("min_instances", "2"), ("max_instances", "2")];
        assert_eq!(check(&both, &[group(1, false)]), Ok(()));
    }
}
