//! Flags about metrics: which are shown, and how often they are sampled.

use std::{num::NonZeroU64, time::Duration};

use anyhow::{Context, bail};
use clap::Args;
use skep_server::DEFAULT_QUANTILES;

use crate::flag_values::boolean;

#[derive(Debug, Args)]
#[command(next_help_heading = "Metrics")]
pub(super) struct MetricsArgs {
    /// How often utilization and busy fractions are sampled, in milliseconds
    #[arg(long, value_name = "MS", default_value = "2000")]
    metrics_interval_ms: NonZeroU64,
    /// Whether to report the use of processors and memory
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_cpu_metrics: bool,
    /// Whether to report the use of GPUs; Skep does not use GPUs, so it reports nothing
    #[arg(long, value_name = "BOOL", default_value = "true", value_parser = boolean, action = clap::ArgAction::Set)]
    allow_gpu_metrics: bool,
    /// A setting, `<key>=<value>`: counter_latencies, summary_latencies, histogram_latencies (booleans) or
    /// summary_quantiles (`<quantile>:<error>,...`); may be given several times
    #[arg(long, value_name = "SETTING")]
    metrics_config: Vec<String>,
    /// Models that have series of their own, with `*` for any text, as in `vision-*,ranker`; all loaded models by
    /// default. Sums over all models are always there (Skep's own)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    metrics_models: Vec<String>,
}

/// What is recorded and what is shown of it.
#[derive(Debug)]
pub(super) struct MetricsSettings {
    pub(super) recorded: skep_runtime::MetricsOptions,
    pub(super) shown: skep_server::MetricsPortOptions,
}

impl MetricsArgs {
    /// The settings; nothing is recorded for a port that is not served.
    pub(super) fn settings(&self, served: bool) -> anyhow::Result<MetricsSettings> {
        let (mut counters, mut summaries, mut histograms) = (true, false, true);
        let mut quantiles = DEFAULT_QUANTILES.to_vec();
        for setting in &self.metrics_config {
            let context = || format!("--metrics-config={setting}");
            let (key, value) = setting
                .split_once('=')
                .context("expected <key>=<value>")
                .with_context(context)?;
            let flag = || {
                boolean(value)
                    .map_err(anyhow::Error::msg)
                    .with_context(context)
            };
            match key {
                "counter_latencies" => counters = flag()?,
                "summary_latencies" => summaries = flag()?,
                "histogram_latencies" => histograms = flag()?,
                "summary_quantiles" => quantiles = parse_quantiles(value).with_context(context)?,
                _ => bail!(
                    "--metrics-config={setting}: unknown setting `{key}`, expected counter_latencies, summary_latencies, histogram_latencies or summary_quantiles"
                ),
            }
        }
        if !self.allow_gpu_metrics {
            tracing::debug!("--allow-gpu-metrics=false: there are no GPU metrics to leave out");
        }
        if !summaries {
            quantiles.clear();
        }
        Ok(MetricsSettings {
            recorded: skep_runtime::MetricsOptions {
                quantiles: served && summaries,
                histograms: served && histograms,
            },
            shown: skep_server::MetricsPortOptions {
                counters,
                quantiles,
                cpu: self.allow_cpu_metrics,
                models: self.metrics_models.clone(),
                interval: Duration::from_millis(self.metrics_interval_ms.get()),
            },
        })
    }
}

/// `<quantile>:<error>`.
fn parse_quantile(pair: &str) -> anyhow::Result<f64> {
    let (quantile, error) = pair
        .split_once(':')
        .with_context(|| format!("no ':' in `{pair}`, expected <quantile>:<error>"))?;
    match (parse_share(quantile), parse_share(error)) {
        (Some(quantile), Some(_)) => Ok(quantile),
        _ => bail!("expected <quantile>:<error>, two numbers between 0 and 1, got `{pair}`"),
    }
}

fn parse_share(text: &str) -> Option<f64> {
    let share = text.parse().ok()?;
    (0.0..=1.0).contains(&share).then_some(share)
}

/// Triton's `<quantile>:<error>,...`. The error bounds a quantile's rank; ranks here are exact, so any error is kept
/// to.
fn parse_quantiles(text: &str) -> anyhow::Result<Vec<f64>> {
    text.split(',').map(parse_quantile).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        metrics: MetricsArgs,
    }

    fn settings(flags: &[&str]) -> Result<MetricsSettings, String> {
        let line = std::iter::once("x").chain(flags.iter().copied());
        let line = Line::try_parse_from(line).map_err(|error| error.to_string())?;
        line.metrics
            .settings(true)
            .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn settings_are_tritons() {
        let plain = settings(&[]).expect("valid");
        assert!(plain.shown.counters && plain.shown.quantiles.is_empty() && plain.shown.cpu);
        assert!(!plain.recorded.quantiles && plain.recorded.histograms);
        let all = settings(&[
            "--metrics-config=summary_latencies=true",
            "--metrics-config=counter_latencies=false",
            "--metrics-config=histogram_latencies=false",
            "--metrics-config=summary_quantiles=0.25:0.01,0.75:0.001",
            "--metrics-interval-ms=500",
            "--allow-cpu-metrics=0",
        ])
        .expect("valid");
        assert!(!all.shown.counters && !all.shown.cpu);
        assert_eq!(all.shown.quantiles, [0.25, 0.75]);
        assert_eq!(all.shown.interval, Duration::from_millis(500));
        assert!(all.recorded.quantiles && !all.recorded.histograms);
        let summaries = settings(&["--metrics-config=summary_latencies=true"]).expect("valid");
        assert_eq!(summaries.shown.quantiles, DEFAULT_QUANTILES);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (flag, text) in [
            ("nosuch=true", "unknown setting `nosuch`"),
            ("summary_latencies", "expected <key>=<value>"),
            ("summary_latencies=maybe", "expected true or false"),
            ("summary_quantiles=0.5", "no ':' in `0.5`"),
            (
                "summary_quantiles=1.5:0.1",
                "between 0 and 1, got `1.5:0.1`",
            ),
            ("summary_quantiles=0.5:x", "between 0 and 1"),
            ("summary_quantiles=", "no ':'"),
        ] {
            let error = settings(&[&format!("--metrics-config={flag}")]).expect_err(flag);
            assert!(error.contains(text) && error.contains(flag), "{error}");
        }
        assert!(settings(&["--metrics-interval-ms=0"]).is_err());
    }
}
