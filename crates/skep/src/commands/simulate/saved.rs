//! What a saved table says beside its latencies: comments as in `# instances: 2`, which hold unless flags say
//! otherwise.

use std::fmt::Write;

use anyhow::Context;

const WRITES: &str = "a string takes all";

/// A model's own settings.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Saved {
    pub(super) instances: Option<u32>,
    pub(super) max_batch_size: Option<u32>,
    /// Milliseconds.
    pub(super) objective: Option<f64>,
}

impl Saved {
    /// Out of the comments of a table. Other comments mean nothing.
    pub(super) fn read(text: &str) -> anyhow::Result<Self> {
        let mut saved = Self::default();
        for (index, line) in text.lines().enumerate() {
            let comment = line.trim().strip_prefix('#');
            let Some((key, value)) = comment.and_then(|comment| comment.split_once(':')) else {
                continue;
            };
            let value = value.trim();
            let whole = |max: u32| {
                let number = value.parse().ok().filter(|n| (1..=max).contains(n));
                number.map(Some).with_context(|| {
                    let line = index + 1;
                    let key = key.trim();
                    format!(
                        "line {line}: `{key}: {value}`: expected a whole number from 1 to {max}"
                    )
                })
            };
            match key.trim() {
                "instances" => saved.instances = whole(1024)?,
                "max_batch_size" => saved.max_batch_size = whole(65536)?,
                "slo_ms" => {
                    let ms = value.parse().ok().filter(|ms| (1e-6..=1e9).contains(ms));
                    saved.objective = Some(ms.with_context(|| {
                        let line = index + 1;
                        format!("line {line}: `slo_ms: {value}`: expected milliseconds above 0")
                    })?);
                }
                _ => {}
            }
        }
        Ok(saved)
    }

    /// The comments that [`Self::read`] reads.
    pub(super) fn comments(&self) -> String {
        let mut text = String::new();
        if let Some(instances) = self.instances {
            writeln!(text, "# instances: {instances}").expect(WRITES);
        }
        if let Some(max) = self.max_batch_size {
            writeln!(text, "# max_batch_size: {max}").expect(WRITES);
        }
        if let Some(ms) = self.objective {
            writeln!(text, "# slo_ms: {ms}").expect(WRITES);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read() {
        let all = Saved {
            instances: Some(2),
            max_batch_size: Some(8),
            objective: Some(12.5),
        };
        let text = format!("# skep 1: a command\n{}batch,ms\n1,2\n", all.comments());
        assert_eq!(Saved::read(&text).expect("valid"), all);
        assert_eq!(
            Saved::read("# 2 instances\n1,2\n").expect("no settings"),
            Saved::default()
        );
        for (text, words) in [
            (
                "1,2\n# instances: 0\n",
                "line 2: `instances: 0`: expected a whole",
            ),
            ("# max_batch_size: x\n", "line 1: `max_batch_size: x`"),
            (
                "# slo_ms: -3\n",
                "line 1: `slo_ms: -3`: expected milliseconds",
            ),
        ] {
            let error = Saved::read(text).expect_err(text).to_string();
            assert!(error.starts_with(words), "{error}");
        }
    }
}
