//! `version_policy`: which versions of a model are served.

use std::collections::BTreeSet;

use skep_proto::inference::{self, model_version_policy::PolicyChoice};
use skep_types::{ModelName, ModelVersion};

use crate::error::ConfigError;

/// Which of the versions in a model's directory are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionPolicy {
    /// This many of the greatest.
    Latest(u32),
    /// All versions.
    All,
    /// These versions, as far as they exist.
    Specific(BTreeSet<ModelVersion>),
}

impl VersionPolicy {
    /// The versions among `available` that are served, possibly none.
    #[must_use]
    pub fn select(&self, available: &BTreeSet<ModelVersion>) -> BTreeSet<ModelVersion> {
        match self {
            Self::Latest(count) => available
                .iter()
                .rev()
                .take(usize::try_from(*count).unwrap_or(usize::MAX))
                .copied()
                .collect(),
            Self::All => available.clone(),
            Self::Specific(versions) => available.intersection(versions).copied().collect(),
        }
    }
}

/// The policy of a configuration. Callers use it to select versions before
/// [`ModelConfig::from_proto`](crate::ModelConfig::from_proto) has checked the rest.
///
/// # Errors
/// [`ConfigError::Invalid`] for a list of versions that is empty or contains an invalid version.
pub fn version_policy(
    config: &inference::ModelConfig,
    model: &ModelName,
) -> Result<VersionPolicy, ConfigError> {
    read(model.as_str(), config.version_policy.as_ref()).map(|(typed, _)| typed)
}

/// The policy of a configuration and its normal form, which is `latest { num_versions: 1 }` by default.
pub(crate) fn read(
    model: &str,
    policy: Option<&inference::ModelVersionPolicy>,
) -> Result<(VersionPolicy, inference::ModelVersionPolicy), ConfigError> {
    let choice = policy.and_then(|policy| {
        let inference::ModelVersionPolicy { policy_choice } = policy;
        policy_choice.clone()
    });
    let latest_one =
        PolicyChoice::Latest(inference::model_version_policy::Latest { num_versions: 1 });
    let choice = match choice {
        None => latest_one,
        // An unset field reads as 0; its documented default is 1.
        Some(PolicyChoice::Latest(inference::model_version_policy::Latest { num_versions: 0 })) => {
            latest_one
        }
        Some(choice) => choice,
    };
    let typed = match &choice {
        PolicyChoice::Latest(inference::model_version_policy::Latest { num_versions }) => {
            VersionPolicy::Latest(*num_versions)
        }
        PolicyChoice::All(inference::model_version_policy::All {}) => VersionPolicy::All,
        PolicyChoice::Specific(inference::model_version_policy::Specific { versions }) => {
            VersionPolicy::Specific(specific(model, versions)?)
        }
    };
    Ok((
        typed,
        inference::ModelVersionPolicy {
            policy_choice: Some(choice),
        },
    ))
}

fn specific(model: &str, versions: &[i64]) -> Result<BTreeSet<ModelVersion>, ConfigError> {
    const FIELD: &str = "version_policy.specific.versions";
    if versions.is_empty() {
        let reason =
            format!("`{FIELD}` of model `{model}` is empty, expected at least one version");
        return Err(ConfigError::invalid(model, FIELD, reason));
    }
    let typed = versions.iter().map(|&version| {
        u64::try_from(version)
            .ok()
            .and_then(|v| ModelVersion::new(v).ok())
            .ok_or_else(|| {
                let reason = format!(
                    "`{FIELD}` of model `{model}` contains {version}, expected integers of at least 1"
                );
                ConfigError::invalid(model, FIELD, reason)
            })
    });
    typed.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use skep_types::ModelVersion;

    use super::{VersionPolicy, read};
    use crate::parse_pbtxt;

    fn policy(text: &str) -> Result<(VersionPolicy, String), String> {
        let config = parse_pbtxt(text.as_bytes(), "c").expect("parses");
        let (typed, normal) =
            read("m", config.version_policy.as_ref()).map_err(|error| error.to_string())?;
        Ok((
            typed,
            format!("{:?}", normal.policy_choice.expect("always chosen")),
        ))
    }

    fn versions(numbers: &[u64]) -> BTreeSet<ModelVersion> {
        numbers
            .iter()
            .map(|&n| ModelVersion::new(n).expect("valid"))
            .collect()
    }

    #[test]
    fn policies_are_typed_and_normalised() {
        let latest_one = (
            VersionPolicy::Latest(1),
            "Latest(Latest { num_versions: 1 })".to_owned(),
        );
        for text in [
            "",
            "version_policy {}",
            "version_policy { latest {} }",
            "version_policy { latest { num_versions: 1 } }",
        ] {
            assert_eq!(policy(text), Ok(latest_one.clone()), "{text}");
        }
        assert_eq!(
            policy("version_policy { latest { num_versions: 3 } }").map(|p| p.0),
            Ok(VersionPolicy::Latest(3))
        );
        assert_eq!(
            policy("version_policy { all {} }").map(|p| p.0),
            Ok(VersionPolicy::All)
        );
        assert_eq!(
            policy("version_policy { specific { versions: [3, 1, 3] } }").map(|p| p.0),
            Ok(VersionPolicy::Specific(versions(&[1, 3])))
        );
        assert_eq!(
            policy("version_policy { specific {} }"),
            Err("`version_policy.specific.versions` of model `m` is empty, expected at least one version".to_owned())
        );
        assert_eq!(
            policy("version_policy { specific { versions: 0 } }"),
            Err("`version_policy.specific.versions` of model `m` contains 0, expected integers of at least 1".to_owned())
        );
    }

    #[test]
    fn versions_are_selected_among_the_available() {
        let available = versions(&[1, 2, 10]);
        assert_eq!(VersionPolicy::Latest(1).select(&available), versions(&[10]));
        assert_eq!(
            VersionPolicy::Latest(2).select(&available),
            versions(&[2, 10])
        );
        assert_eq!(VersionPolicy::Latest(9).select(&available), available);
        assert_eq!(VersionPolicy::All.select(&available), available);
        assert_eq!(
            VersionPolicy::Specific(versions(&[2, 5])).select(&available),
            versions(&[2])
        );
    }
}
