//! Flags on the rate limiter.

use std::{str::FromStr, sync::Arc};

use clap::{Args, ValueEnum};
use skep_runtime::{RateLimiter, ResourceSupply};

#[derive(Debug, Args)]
#[command(next_help_heading = "Rate limiter")]
pub(super) struct RateLimitArgs {
    /// Whether an execution waits until all resources of its instance group (`rate_limiter.resources`) are free: off, or
    /// execution_count for yes, the instance with the fewest executions first
    #[arg(long, value_name = "MODE", default_value = "off")]
    rate_limit: RateLimitMode,
    /// How many copies of a resource there are, on each device and of the whole node, or on one device; as many as the
    /// most demanding instance needs by default; may be given several times
    #[arg(long, value_name = "NAME:COUNT[:DEVICE]")]
    rate_limit_resource: Vec<StatedResource>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum RateLimitMode {
    Off,
    ExecutionCount,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct StatedResource(ResourceSupply);

impl FromStr for StatedResource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "expected NAME:COUNT or NAME:COUNT:DEVICE, as in R1:4 or R1:4:0";
        let number = |text: &str, what: &str| {
            let number = text.parse::<u32>();
            number.map_err(|_| format!("{what} `{text}` is not a number from 0 on; {EXPECTED}"))
        };
        let mut parts = text.split(':');
        let (Some(name), Some(count)) = (parts.next(), parts.next()) else {
            return Err(EXPECTED.to_owned());
        };
        let device = parts.next();
        if name.is_empty() || parts.next().is_some() {
            return Err(EXPECTED.to_owned());
        }
        Ok(Self(ResourceSupply {
            name: name.to_owned(),
            count: number(count, "count")?,
            device: device.map(|device| number(device, "device")).transpose()?,
        }))
    }
}

impl RateLimitArgs {
    /// The node's rate limiter, if executions wait for resources.
    pub(super) fn limiter(&self) -> Option<Arc<RateLimiter>> {
        let supplies = self.rate_limit_resource.iter();
        let supplies = supplies.map(|stated| stated.0.clone()).collect();
        match self.rate_limit {
            RateLimitMode::ExecutionCount => Some(RateLimiter::new(supplies)),
            RateLimitMode::Off => {
                if !supplies.is_empty() {
                    tracing::warn!(
                        "--rate-limit-resource: no effect without --rate-limit=execution_count"
                    );
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_written_as_for_triton() {
        let read = |text: &str| {
            let read = StatedResource::from_str(text);
            read.map(|StatedResource(supply)| (supply.name, supply.count, supply.device))
        };
        assert_eq!(read("R1:4"), Ok(("R1".to_owned(), 4, None)));
        assert_eq!(read("R1:4:2"), Ok(("R1".to_owned(), 4, Some(2))));
        for text in [
            "", "R1", ":4", "R1:", "R1:x", "R1:-1", "R1:4:", "R1:4:gpu", "R1:4:0:0",
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains("expected NAME:COUNT"), "{text}: {error}");
        }
    }
}
