//! The index of the model repository.

use serde::{Deserialize, Serialize};
use skep_proto::inference::repository_index_response::ModelIndex;

/// A model version in the repository's index. In JSON an index is an array of these, without the members that are empty.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexRow {
    /// The model's name.
    pub name: String,
    /// The version, as the server writes it; empty for a model that was never loaded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// `READY`, `LOADING`, `UNLOADING`, `UNAVAILABLE`; empty for a model that was never loaded.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub state: String,
    /// Why it is in that state, if there is something to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl From<IndexRow> for ModelIndex {
    fn from(entry: IndexRow) -> Self {
        Self {
            name: entry.name,
            version: entry.version,
            state: entry.state,
            reason: entry.reason,
        }
    }
}

impl From<ModelIndex> for IndexRow {
    fn from(message: ModelIndex) -> Self {
        Self {
            name: message.name,
            version: message.version,
            state: message.state,
            reason: message.reason,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_leaves_empty_members_out() {
        let never_loaded = IndexRow {
            name: "m".to_owned(),
            ..IndexRow::default()
        };
        let json = serde_json::to_string(&never_loaded).expect("JSON");
        assert_eq!(json, r#"{"name":"m"}"#);
        assert_eq!(serde_json::from_str(&json).ok(), Some(never_loaded));
    }
}
