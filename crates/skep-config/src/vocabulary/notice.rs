//! Notices: settings without effect, and warnings.

use std::fmt;

/// A setting that is accepted without effect, or a warning about one. The server logs each once per load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The path of the field, such as `instance_group[0].secondary_devices`.
    pub field: String,
    /// Why it has no effect, or what is odd about it.
    pub text: String,
    /// Whether it has no effect because it concerns GPUs or other accelerators.
    is_about_gpus: bool,
}

/// Why settings for GPUs have no effect.
pub(crate) const NO_GPU: &str = "GPUs are not used";

impl Notice {
    /// A notice about a field.
    pub fn new(field: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            text: text.into(),
            is_about_gpus: false,
        }
    }

    /// A setting for a GPU or another accelerator, which has no effect.
    pub(crate) fn about_gpus(field: impl Into<String>) -> Self {
        Self {
            is_about_gpus: true,
            ..Self::new(field, format!("no effect: {NO_GPU}"))
        }
    }

    /// Replaces all notices about GPUs by one that lists their fields.
    pub(crate) fn join_those_about_gpus(notices: &mut Vec<Self>) {
        let (about_gpus, others): (Vec<Self>, Vec<Self>) = std::mem::take(notices)
            .into_iter()
            .partition(|notice| notice.is_about_gpus);
        *notices = others;
        let of_a_group = about_gpus
            .iter()
            .find(|notice| notice.field.starts_with("instance_group"));
        let Some(first) = of_a_group.or(about_gpus.first()) else {
            return;
        };
        let fields: Vec<&str> = about_gpus.iter().map(|notice| &*notice.field).collect();
        let text = format!(
            "served on the CPU (`--gpu-as-cpu`); no effect of `{}`",
            fields.join("`, `")
        );
        notices.push(Self::new(&*first.field, text));
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.text)
    }
}
