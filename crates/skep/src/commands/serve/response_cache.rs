//! Flags on the response cache.

use std::{num::NonZeroU64, str::FromStr, sync::Arc};

use anyhow::bail;
use clap::Args;
use skep_runtime::ResponseCache;

use crate::{flag_values::members, units::human};

#[derive(Debug, Args)]
#[command(next_help_heading = "Response cache")]
pub(super) struct ResponseCacheArgs {
    /// Keep responses of models with `response_cache { enable: true }` for equal requests, within so many bytes of memory
    #[arg(long, value_name = "local,size=BYTES")]
    cache_config: Vec<CacheSetting>,
    /// Triton's older flag for --cache-config=local,size=BYTES; 0 for no cache
    #[arg(long, value_name = "BYTES", value_parser = older_size)]
    response_cache_byte_size: Option<CacheSize>,
}

/// The bytes of a cache; `None` for no cache.
type CacheSize = Option<NonZeroU64>;

/// A setting of the only cache.
#[derive(Debug, Clone, Copy)]
struct CacheSetting {
    size: NonZeroU64,
}

const EXPECTED: &str = "expected local,size=BYTES, as in local,size=67108864";

/// Less has no room for a response.
const LEAST_BYTES: u64 = 1024;

impl FromStr for CacheSetting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (cache, settings) = text.split_once(',').ok_or(EXPECTED)?;
        if cache.trim() != "local" {
            return Err(format!(
                "there is no cache `{cache}`, only `local`, in the server's memory; {EXPECTED}"
            ));
        }
        let mut size = None;
        for (key, value) in members(settings).ok_or(EXPECTED)? {
            match key {
                "size" => size = Some(bytes(&value)?),
                _ => return Err(format!("`local` has no setting `{key}`: {EXPECTED}")),
            }
        }
        let size = size.ok_or(EXPECTED)?;
        Ok(Self { size })
    }
}

fn bytes(text: &str) -> Result<NonZeroU64, String> {
    let bytes = text.parse().ok().filter(|bytes| *bytes >= LEAST_BYTES);
    let bytes = bytes.and_then(NonZeroU64::new);
    bytes.ok_or_else(|| format!("`{text}`: expected a number of bytes of at least {LEAST_BYTES}"))
}

fn older_size(text: &str) -> Result<CacheSize, String> {
    match text.trim() {
        "0" => Ok(None),
        text => bytes(text).map(Some),
    }
}

impl ResponseCacheArgs {
    /// The node's cache, if it has one.
    ///
    /// # Errors
    /// If both flags are given, as in Triton.
    pub(super) fn cache(&self) -> anyhow::Result<Option<Arc<ResponseCache>>> {
        let size = match (self.cache_config.last(), self.response_cache_byte_size) {
            (Some(_), Some(_)) => bail!(
                "incompatible flags: --cache-config and --response-cache-byte-size both set the size of the response cache, expected one of them"
            ),
            (Some(setting), None) => Some(setting.size),
            (None, older) => older.flatten(),
        };
        Ok(size.map(|bytes| {
            tracing::info!(
                "responses may take {} of memory in the response cache",
                human(bytes.get())
            );
            ResponseCache::new(bytes)
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_tritons() {
        let size = |text: &str| CacheSetting::from_str(text).map(|setting| setting.size.get());
        assert_eq!(size("local,size=1048576"), Ok(1 << 20));
        assert_eq!(size("local, size = 1024 "), Ok(1024));
        for (text, part) in [
            ("local", "expected local,size=BYTES"),
            ("local,", "expected local,size=BYTES"),
            ("size=1048576", "expected local,size=BYTES"),
            ("local,size", "expected local,size=BYTES"),
            ("redis,host=h", "no cache `redis`"),
            ("local,size=1023", "at least 1024"),
            ("local,size=-1", "at least 1024"),
            ("local,size=1MiB", "at least 1024"),
            ("local,sise=4096", "no setting `sise`"),
        ] {
            let error = size(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        assert_eq!(older_size("0"), Ok(None));
        assert_eq!(older_size("4096"), Ok(NonZeroU64::new(4096)));
        assert!(older_size("1").is_err());
    }
}
