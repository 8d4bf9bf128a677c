//! Flags about where weights are kept and shared, for every command that loads models.

use std::{
    env,
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context;
use clap::{Args, ValueEnum};
use skep_cache::{Cache, DEFAULT_BUDGET_BYTES};
use skep_store::{LoadOrder, Store, StoreOptions, Tenant};
use skep_weights::{BakingPolicy, WeightSource};

/// The word that switches the cache off.
const OFF: &str = "off";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LoadOrderFlag {
    /// Another one for each process, so that many that start at once do not want the same tensors at the same time
    Random,
    /// The model's own order
    Fixed,
}

/// When the form of a model that has none is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BakeMode {
    /// In the background, while the model answers from its own files: in a process of the lowest priority, one at a
    /// time
    Background,
    /// By the load, which the model's first request waits for
    Foreground,
    /// Never while loading: models that `skep bake` or another server baked load from their forms, others from their
    /// files
    Off,
}

/// The cache of baked models.
#[derive(Debug, Args)]
#[command(next_help_heading = "Weights")]
pub(crate) struct CacheArgs {
    /// The directory of baked models. `off`: models load from their own files and share no weights (Skep's own)
    /// [default: $XDG_CACHE_HOME/skep, or ~/.cache/skep]
    #[arg(long, value_name = "DIR|off")]
    weight_cache: Option<PathBuf>,
    /// The most bytes in the directory of baked models (Skep's own)
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_BUDGET_BYTES)]
    weight_cache_bytes: u64,
}

/// The tensor store.
#[derive(Debug, Args)]
#[command(next_help_heading = "Weights")]
pub(crate) struct StoreArgs {
    /// When to bake a model (Skep's own)
    #[arg(long, value_name = "WHEN", default_value = "background")]
    weight_bake: BakeMode,
    /// The directory of the sockets of the node's tensor store (`skep store serve`), instead of a store of this
    /// process's own (Skep's own)
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// Bytes of weights above which the server's own store drops unused ones at once (Skep's own)
    #[arg(long, value_name = "BYTES", conflicts_with = "store")]
    store_bytes: Option<u64>,
    /// How long the server's own store keeps unused weights, in seconds (Skep's own)
    #[arg(long, value_name = "SECONDS", conflicts_with = "store")]
    store_keep_alive_secs: Option<u64>,
    /// For how long what was made of a model is kept when that is unloaded, in case it is loaded again: a session, a
    /// few MiB beside the weights (Skep's own)
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    session_keep_alive_secs: u64,
    /// The order in which weights enter the store (Skep's own)
    #[arg(long, value_name = "ORDER", default_value = "random")]
    store_load_order: LoadOrderFlag,
}

impl CacheArgs {
    /// The cache; `None` where it is off, or where the default one cannot be used: the models are served all the same,
    /// and what is lost is speed and memory.
    ///
    /// # Errors
    /// When the directory that was asked for cannot be used.
    pub(crate) fn open(&self) -> anyhow::Result<Option<Cache>> {
        let directory = match &self.weight_cache {
            Some(word) if word == Path::new(OFF) => return Ok(None),
            Some(directory) => directory,
            None => return Ok(self.default_cache()),
        };
        let opened = Cache::open(directory, self.weight_cache_bytes);
        opened.map(Some).context("--weight-cache")
    }

    fn default_cache(&self) -> Option<Cache> {
        let Some(directory) = default_directory() else {
            tracing::warn!(
                "models are loaded without a cache of baked forms: neither XDG_CACHE_HOME nor HOME is set; `--weight-cache DIR` names a directory"
            );
            return None;
        };
        match Cache::open(&directory, self.weight_cache_bytes) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!(
                    "models are loaded without a cache of baked forms: {error}; `--weight-cache DIR` names another directory"
                );
                None
            }
        }
    }
}

impl StoreArgs {
    /// Where weights are kept; `None` without a cache.
    ///
    /// # Errors
    /// When the node's store cannot be reached.
    pub(crate) fn weights(&self, cache: Option<Cache>) -> anyhow::Result<Option<WeightSource>> {
        let Some(cache) = cache else {
            let given = [
                ("--store", self.store.is_some()),
                ("--store-bytes", self.store_bytes.is_some()),
                (
                    "--store-keep-alive-secs",
                    self.store_keep_alive_secs.is_some(),
                ),
            ];
            for (flag, _) in given.iter().filter(|(_, given)| *given) {
                tracing::warn!(
                    "accepted without effect: {flag}: weights are not shared without a weight cache"
                );
            }
            return Ok(None);
        };
        Ok(Some(WeightSource {
            runs_from_cache: true,
            baking: match self.weight_bake {
                BakeMode::Background => BakingPolicy::Background,
                BakeMode::Foreground => BakingPolicy::BeforeLoad,
                BakeMode::Off => BakingPolicy::Never,
            },
            keep_unloaded: Duration::from_secs(self.session_keep_alive_secs),
            cache,
            store: self.store()?,
            tenant: Tenant::default(),
            order: match self.store_load_order {
                LoadOrderFlag::Random => LoadOrder::Random(RandomState::new().hash_one(0)),
                LoadOrderFlag::Fixed => LoadOrder::Fixed,
            },
        }))
    }

    fn store(&self) -> anyhow::Result<Store> {
        if let Some(directory) = &self.store {
            return Store::connect(directory).context("--store");
        }
        let mut options = StoreOptions::default();
        if let Some(bytes) = self.store_bytes {
            options.budget_bytes = bytes;
        }
        if let Some(seconds) = self.store_keep_alive_secs {
            options.keep_alive = Duration::from_secs(seconds);
        }
        Ok(Store::in_process(options))
    }
}

/// A cache with a store of this process's own.
pub(crate) fn in_process(cache: Cache) -> WeightSource {
    WeightSource {
        cache,
        store: Store::in_process(StoreOptions::default()),
        tenant: Tenant::default(),
        order: LoadOrder::Fixed,
        runs_from_cache: false,
        baking: BakingPolicy::BeforeLoad,
        keep_unloaded: Duration::ZERO,
    }
}

/// The default directory of baked models.
fn default_directory() -> Option<PathBuf> {
    let absolute = |name| {
        let path = PathBuf::from(env::var_os(name)?);
        path.is_absolute().then_some(path)
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("skep"))
}
