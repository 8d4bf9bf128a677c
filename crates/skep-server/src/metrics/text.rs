//! The Prometheus text exposition format.

use std::fmt::{Display, Write};

/// Labels of a line, sorted by name, as on Triton.
#[derive(Debug, Clone, Default)]
pub(super) struct MetricLabels(Vec<(String, String)>);

impl MetricLabels {
    /// These labels and one more.
    pub(super) fn with(&self, name: &str, value: &str) -> Self {
        let mut labels = self.0.clone();
        let index = labels.partition_point(|(other, _)| other.as_str() < name);
        labels.insert(index, (name.to_owned(), escape(value)));
        Self(labels)
    }
}

/// A label value: backslash, quote and line feed are escaped.
fn escape(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// The text written so far.
#[derive(Debug, Default)]
pub(super) struct MetricsText(String);

impl MetricsText {
    /// Begins a family; nothing is written until it has a line.
    pub(super) fn family<'a>(
        &'a mut self,
        name: &'a str,
        help: &'a str,
        kind: &'a str,
    ) -> MetricFamily<'a> {
        MetricFamily {
            text: &mut self.0,
            header: Some((help, kind)),
            name,
        }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

/// One metric with all its lines.
pub(super) struct MetricFamily<'a> {
    text: &'a mut String,
    /// Help and kind, until they are written.
    header: Option<(&'a str, &'a str)>,
    name: &'a str,
}

impl MetricFamily<'_> {
    /// Writes a line with the family's name.
    pub(super) fn line(&mut self, labels: &MetricLabels, value: impl Display) {
        self.entry("", labels, None, value);
    }

    /// Writes a line of a summary or a histogram, with `_sum` or the like after the name, and `quantile` or `le` after
    /// the labels.
    pub(super) fn entry(
        &mut self,
        suffix: &str,
        labels: &MetricLabels,
        last: Option<(&str, &dyn Display)>,
        value: impl Display,
    ) {
        self.write(suffix, labels, last, value)
            .expect("a string takes all");
    }

    fn write(
        &mut self,
        suffix: &str,
        labels: &MetricLabels,
        last: Option<(&str, &dyn Display)>,
        value: impl Display,
    ) -> std::fmt::Result {
        let (name, text) = (self.name, &mut *self.text);
        if let Some((help, kind)) = self.header.take() {
            write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n")?;
        }
        write!(text, "{name}{suffix}")?;
        let mut open = "{";
        for (name, value) in &labels.0 {
            write!(text, "{open}{name}=\"{value}\"")?;
            open = ",";
        }
        if let Some((name, value)) = last {
            write!(text, "{open}{name}=\"{value}\"")?;
            open = ",";
        }
        let close = if open == "," { "}" } else { "" };
        writeln!(text, "{close} {value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        assert_eq!(escape("a\"b\\c\n"), "a\\\"b\\\\c\\n");
    }

    #[test]
    fn labels_are_sorted_and_the_last_one_is_last() {
        let mut text = MetricsText::default();
        let labels = MetricLabels::default()
            .with("version", "1")
            .with("model", "m");
        let mut family = text.family("x", "what it is", "summary");
        family.entry("_count", &labels, None, 3);
        family.entry("", &labels.with("_team", "a"), Some(("le", &0.5)), 1.25);
        text.family("empty", "without lines", "gauge");
        text.family("y", "another", "gauge")
            .line(&MetricLabels::default(), 0);
        assert_eq!(
            text.finish(),
            "# HELP x what it is\n# TYPE x summary\nx_count{model=\"m\",version=\"1\"} 3\n\
             x{_team=\"a\",model=\"m\",version=\"1\",le=\"0.5\"} 1.25\n\
             # HELP y another\n# TYPE y gauge\ny 0\n"
        );
    }
}
