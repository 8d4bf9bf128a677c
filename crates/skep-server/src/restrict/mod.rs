//! Restricted groups of calls: each asks for a header with a value that only some clients know.
//!
//! The check is put before the routes of a restricted group when the server starts. Other routes, and servers without
//! restrictions, do not pay for it. Source: Triton, "Limit Endpoint Access", and answers of a Triton 2.51.
//!
//! ```text
//! group  which calls may be restricted together
//! guard  the check before a call
//! ```

mod group;
mod guard;

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwap;
use constant_time_eq::constant_time_eq;
use http::{HeaderMap, HeaderName};

pub(crate) use self::group::CallGroup;

/// A required header and its value, which may change.
struct HeaderRule {
    header: HeaderName,
    value: ArcSwap<Box<[u8]>>,
}

impl fmt::Debug for HeaderRule {
    /// Without the value: it is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rule").field(&self.header).finish()
    }
}

impl HeaderRule {
    fn admits(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(&self.header);
        // The time of the comparison reveals only the value's length.
        given.is_some_and(|given| constant_time_eq(given.as_bytes(), &self.value.load()))
    }
}

/// The restricted groups of one protocol.
#[derive(Debug, Clone, Default)]
pub struct Restrictions(BTreeMap<CallGroup, Arc<HeaderRule>>);

/// Why a restriction is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestrictionError {
    /// It does not have the form of the setting.
    #[error("expected <names>:<key>=<value>, got `{0}`")]
    Form(String),
    /// No such group.
    #[error("`{name}` cannot be restricted, expected one or more of {}", names())]
    UnknownGroup {
        /// The unknown name.
        name: String,
    },
    /// A group is restricted twice, so the required value is ambiguous.
    #[error("`{name}` is restricted twice")]
    Doubled {
        /// The group's name.
        name: String,
    },
    /// The key is not the name of a header.
    #[error("`{key}` cannot name a header")]
    Key {
        /// The key.
        key: String,
    },
}

fn names() -> String {
    CallGroup::NAMES.map(|(name, _)| name).join(", ")
}

impl Restrictions {
    /// Parses restrictions of HTTP from settings `<group>[,<group>...]:<header>=<value>`.
    ///
    /// # Errors
    /// [`RestrictionError`] for the first one that cannot be taken.
    pub fn http(settings: &[String]) -> Result<Self, RestrictionError> {
        Self::parse(settings, "")
    }

    /// Parses restrictions of gRPC; Triton's prefix is put before each key.
    ///
    /// # Errors
    /// [`RestrictionError`] for the first one that cannot be taken.
    pub fn grpc(settings: &[String]) -> Result<Self, RestrictionError> {
        Self::parse(settings, "triton-grpc-protocol-")
    }

    fn parse(settings: &[String], prefix: &str) -> Result<Self, RestrictionError> {
        let mut all = Self::default();
        for setting in settings {
            let form = || RestrictionError::Form(setting.clone());
            let (groups, rule) = setting.split_once(':').ok_or_else(form)?;
            let (key, value) = rule.split_once('=').ok_or_else(form)?;
            if key.is_empty() || value.is_empty() {
                return Err(form());
            }
            let header = format!("{prefix}{key}").to_ascii_lowercase();
            let header = HeaderName::try_from(header).map_err(|_| RestrictionError::Key {
                key: key.to_owned(),
            })?;
            for name in groups.split(',') {
                let name = || name.to_owned();
                let group = CallGroup::named(&name())
                    .ok_or_else(|| RestrictionError::UnknownGroup { name: name() })?;
                // A rule for each group, since values may change group by group.
                let rule = Arc::new(HeaderRule {
                    header: header.clone(),
                    value: ArcSwap::from_pointee(value.as_bytes().into()),
                });
                if all.0.insert(group, rule).is_some() {
                    return Err(RestrictionError::Doubled { name: name() });
                }
            }
        }
        Ok(all)
    }

    /// Adds other restrictions, which must be of other groups.
    ///
    /// # Errors
    /// [`RestrictionError::Doubled`].
    pub fn and(mut self, others: &Self) -> Result<Self, RestrictionError> {
        for (group, rule) in &others.0 {
            if self.0.insert(*group, Arc::clone(rule)).is_some() {
                let name = group.name().to_owned();
                return Err(RestrictionError::Doubled { name });
            }
        }
        Ok(self)
    }

    /// Takes over the values of `new`, wherever these restrictions are in use. Returns `false` and changes nothing if
    /// `new` has other groups or headers: the checks are put in place when a server starts.
    #[must_use]
    pub fn take_values(&self, new: &Self) -> bool {
        let headers = |all: &Self| -> Vec<(CallGroup, HeaderName)> {
            let all = all.0.iter();
            all.map(|(group, rule)| (*group, rule.header.clone()))
                .collect()
        };
        let are_same = headers(self) == headers(new);
        if are_same {
            for (old, new) in self.0.values().zip(new.0.values()) {
                old.value.store(new.value.load_full());
            }
        }
        are_same
    }

    /// The names of the groups that these restrict and `others` do not.
    #[must_use]
    pub fn beyond(&self, others: &Self) -> Vec<&'static str> {
        let mine = self.0.keys();
        mine.filter(|group| !others.0.contains_key(group))
            .map(|group| group.name())
            .collect()
    }

    /// Whether a group is restricted.
    pub(crate) fn restricts(&self, group: CallGroup) -> bool {
        self.0.contains_key(&group)
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn http(settings: &[&str]) -> Result<Restrictions, String> {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        Restrictions::http(&settings).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_are_tritons() {
        let all = http(&["health,model-repository:Admin-Key=a=b", "logging:k=v"]).expect("valid");
        let rule = |group| {
            all.0
                .get(&group)
                .map(|rule| (rule.header.as_str(), rule.value.load().to_vec()))
        };
        assert_eq!(
            rule(CallGroup::Health),
            Some(("admin-key", b"a=b".to_vec()))
        );
        assert_eq!(rule(CallGroup::ModelRepository), rule(CallGroup::Health));
        assert_eq!(rule(CallGroup::Logging), Some(("k", b"v".to_vec())));
        assert_eq!(rule(CallGroup::Inference), None);
        let grpc = Restrictions::grpc(&["trace:K=v".to_owned()]).expect("valid");
        let header = grpc.0[&CallGroup::Trace].header.as_str();
        assert_eq!(header, "triton-grpc-protocol-k");
    }

    #[test]
    fn malformed_restrictions_are_refused() {
        for (settings, text) in [
            (
                &["health"][..],
                "expected <names>:<key>=<value>, got `health`",
            ),
            (&["health:k"], "expected <names>"),
            (&["health:=v"], "expected <names>"),
            (&["health:k="], "expected <names>"),
            (&[":k=v"], "`` cannot be restricted"),
            (
                &["nosuch:k=v"],
                "`nosuch` cannot be restricted, expected one or more of health,",
            ),
            (
                &["health, metadata:k=v"],
                "` metadata` cannot be restricted",
            ),
            (&["health,health:k=v"], "`health` is restricted twice"),
            (
                &["health:k=v", "health:k2=v2"],
                "`health` is restricted twice",
            ),
            (&["health:a b=v"], "`a b` cannot name a header"),
        ] {
            let error = http(settings).expect_err(text);
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn new_values_apply_wherever_the_restrictions_are_in_use() {
        let from_file = http(&["health,trace:k=old"]).expect("valid");
        let all = http(&["logging:l=v"]).expect("valid");
        let all = all.and(&from_file).expect("other groups");
        assert!(all.clone().and(&from_file).is_err(), "restricted twice");
        let admits = |group, value: &'static str| {
            let name = HeaderName::from_static("k");
            let headers = [(name, HeaderValue::from_static(value))];
            all.0[&group].admits(&headers.into_iter().collect())
        };
        assert!(admits(CallGroup::Health, "old") && admits(CallGroup::Trace, "old"));
        let changed = http(&["health:k=new", "trace:k=newer"]).expect("valid");
        assert!(from_file.take_values(&changed));
        assert!(admits(CallGroup::Health, "new") && admits(CallGroup::Trace, "newer"));
        assert!(!admits(CallGroup::Health, "old"));
        for other in [
            &["health:k=x"][..],
            &["health,trace,logging:k=x"],
            &["health:k=x", "trace:other=x"],
        ] {
            assert!(
                !from_file.take_values(&http(other).expect("valid")),
                "{other:?}"
            );
        }
        assert!(admits(CallGroup::Health, "new"), "nothing has changed");
    }

    #[test]
    fn groups_that_one_protocol_alone_restricts_are_named() {
        let one = http(&["inference,logging:k=v"]).expect("valid");
        let other = Restrictions::grpc(&["logging:k=v".to_owned()]).expect("valid");
        assert_eq!(one.beyond(&other), ["inference"]);
        assert!(other.beyond(&one).is_empty());
    }

    #[test]
    fn debug_output_hides_the_secret() {
        let all = http(&["health:k=secret"]).expect("valid");
        assert!(!format!("{all:?}").contains("secret"));
    }

    #[test]
    fn only_the_exact_value_admits() {
        let restrictions = http(&["health:k=secret"]).expect("valid");
        let rule = &restrictions.0[&CallGroup::Health];
        let admits = |value: Option<&'static str>| {
            let value = value.map(|value| {
                (
                    HeaderName::from_static("k"),
                    HeaderValue::from_static(value),
                )
            });
            rule.admits(&value.into_iter().collect())
        };
        assert!(admits(Some("secret")));
        for value in [
            None,
            Some(""),
            Some("secre"),
            Some("secret "),
            Some("Secret"),
        ] {
            assert!(!admits(value), "{value:?}");
        }
    }
}
