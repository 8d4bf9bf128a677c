//! `--table`: what executions take, by two numbers or by a file.

use std::str::FromStr;

use anyhow::Context;
use skep_sim::LatencyTable;

use super::{number, read};
use crate::commands::simulate::saved::Saved;

/// Where a latency table comes from. Shown as it was given.
#[derive(Debug, Clone)]
pub(crate) struct TableFlag {
    pub(crate) name: String,
    kind: TableKind,
}

#[derive(Debug, Clone)]
enum TableKind {
    Affine {
        base: f64,
        per_inference: f64,
    },
    File,
    /// These lines.
    Measured(String),
}

impl FromStr for TableFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = if let Some(numbers) = text.strip_prefix("affine:") {
            let numbers = numbers.split_once(',');
            let numbers = numbers.and_then(|(base, per)| Some((number(base)?, number(per)?)));
            let numbers = numbers.filter(|(base, per)| *base >= 0.0 && *per >= 0.0);
            let (base, per_inference) = numbers.ok_or(
                "expected affine:BASE,PER_INFERENCE with two numbers of milliseconds from 0, as in affine:1.87,0.087",
            )?;
            TableKind::Affine {
                base,
                per_inference,
            }
        } else if let Some(ms) = text.strip_prefix("flat:") {
            let ms = number(ms).filter(|ms| *ms > 0.0);
            let per_inference =
                ms.ok_or("expected flat:MS with milliseconds above 0 an inference, as in flat:10")?;
            TableKind::Affine {
                base: 0.0,
                per_inference,
            }
        } else {
            TableKind::File
        };
        let name = text.to_owned();
        Ok(Self { name, kind })
    }
}

impl TableFlag {
    /// What was measured on a model.
    pub(crate) fn measured(name: String, lines: String) -> Self {
        Self {
            name,
            kind: TableKind::Measured(lines),
        }
    }

    /// The same with its file read, and what the file says beside the latencies.
    pub(in crate::commands::simulate) fn read(&self) -> anyhow::Result<(Self, Saved)> {
        let TableKind::File = self.kind else {
            return Ok((self.clone(), Saved::default()));
        };
        let flag = || format!("--table {}", self.name);
        let text = read(&self.name).with_context(|| {
            let flag = flag();
            format!(
                "{flag}: expected affine:BASE,PER_INFERENCE, flat:MS, or a file of `batch,ms` lines"
            )
        })?;
        let saved = Saved::read(&text).with_context(flag)?;
        Ok((Self::measured(self.name.clone(), text), saved))
    }

    /// The table for batches of up to `max`.
    pub(crate) fn load(&self, max: usize) -> anyhow::Result<LatencyTable> {
        let flag = || format!("--table {}", self.name);
        let table = match &self.kind {
            TableKind::Affine {
                base,
                per_inference,
            } => LatencyTable::affine(*base, *per_inference, max),
            TableKind::Measured(lines) => LatencyTable::measured(lines, max),
            TableKind::File => return self.read()?.0.load(max),
        };
        table.with_context(flag)
    }
}
