//! All allocators by name, with their options.

use std::{fmt, str::FromStr};

use super::{
    Allocator,
    bfc::{Bfc, BfcOptions},
    binning::{Binning, BinningOptions},
    buddy::{Buddy, BuddyOptions},
    contiguous::{Contiguous, ContiguousOptions, Fit},
    cuda_async::{CudaAsync, CudaAsyncOptions},
    dlmalloc::{Dlmalloc, DlmallocOptions},
    mxnet::{MxnetNaiveOptions, MxnetPool, MxnetRoundedOptions},
    options::{OptionError, OptionSpec, Options},
    ort_arena::{OrtArena, OrtArenaOptions},
    pytorch::{PytorchCaching, PytorchOptions},
    rmm_arena::{RmmArena, RmmArenaOptions},
    rmm_pool::{RmmPool, RmmPoolOptions},
    skep::{ProfileGuided, SkepOptions},
    slab::{SlabAllocator, SlabOptions},
    tlsf::{Tlsf, TlsfOptions},
};

/// Makes an allocator of the options that are given; otherwise the option that is wrong.
type Builder = fn(&[(String, String)]) -> Result<Box<dyn Allocator>, (String, OptionError)>;

/// An allocator that can be named.
#[derive(Debug)]
pub struct CatalogueEntry {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub text: &'static str,
    specs: fn() -> Vec<OptionSpec>,
    build: Builder,
}

impl CatalogueEntry {
    /// Its options.
    #[must_use]
    pub fn options(&self) -> Vec<OptionSpec> {
        (self.specs)()
    }
}

/// The entry of an allocator that `$build` makes of its options.
macro_rules! entry {
    ($name:literal, $text:literal, $options:ty, $build:expr) => {
        CatalogueEntry {
            name: $name,
            text: $text,
            specs: <$options>::specs,
            build: |given| {
                let mut options = <$options>::default();
                for (name, value) in given {
                    options
                        .set(name, value)
                        .map_err(|error| (name.clone(), error))?;
                }
                let build: fn($options) -> Box<dyn Allocator> = $build;
                Ok(build(options))
            },
        }
    };
}

/// All allocators.
pub const CATALOGUE: &[CatalogueEntry] = &[
    entry!(
        "bfc",
        "TensorFlow: best fit with coalescing, chunks that double",
        BfcOptions,
        |o| Box::new(Bfc::new(o))
    ),
    entry!(
        "ort_arena",
        "ONNX Runtime: the same pieces, two ways to grow, gives chunks back",
        OrtArenaOptions,
        |o| Box::new(OrtArena::new(o))
    ),
    entry!(
        "pytorch_caching",
        "PyTorch: segments of 2 and 20 MiB, pools by stream and size",
        PytorchOptions,
        |o| Box::new(PytorchCaching::new(o))
    ),
    entry!(
        "mxnet_naive",
        "MXNet: whole blocks, reused for the same page-rounded size",
        MxnetNaiveOptions,
        |o| Box::new(MxnetPool::naive(&o))
    ),
    entry!(
        "mxnet_rounded",
        "MXNet: whole blocks, sizes rounded to powers of two",
        MxnetRoundedOptions,
        |o| Box::new(MxnetPool::rounded(&o))
    ),
    entry!(
        "rmm_pool",
        "RAPIDS: best fit, exact splits, doubles what is reserved",
        RmmPoolOptions,
        |o| Box::new(RmmPool::new(o))
    ),
    entry!(
        "rmm_arena",
        "RAPIDS: an arena a stream, superblocks, 117 classes, first fit",
        RmmArenaOptions,
        |o| Box::new(RmmArena::new(&o))
    ),
    entry!(
        "binning",
        "RAPIDS: bins of fixed sizes, larger blocks alone",
        BinningOptions,
        |o| Box::new(Binning::new(&o))
    ),
    entry!(
        "buddy",
        "powers of two, halves that join again",
        BuddyOptions,
        |o| Box::new(Buddy::new(&o))
    ),
    entry!(
        "dlmalloc",
        "Doug Lea: best fit with boundary tags, large blocks alone",
        DlmallocOptions,
        |o| Box::new(Dlmalloc::new(o))
    ),
    entry!(
        "first_fit",
        "one heap that grows at its end, the lowest address",
        ContiguousOptions,
        |o| Box::new(Contiguous::new(Fit::First, &o))
    ),
    entry!(
        "contiguous_best_fit",
        "one heap that grows at its end, the smallest piece",
        ContiguousOptions,
        |o| Box::new(Contiguous::new(Fit::Best, &o))
    ),
    entry!(
        "slab",
        "jemalloc: slabs of one class, extents of pages, purged by decay",
        SlabOptions,
        |o| Box::new(SlabAllocator::new(o))
    ),
    entry!(
        "tlsf",
        "two-level segregated fit: constant time",
        TlsfOptions,
        |o| Box::new(Tlsf::new(&o))
    ),
    entry!(
        "cuda_async",
        "a model of `cudaMallocAsync`, whose rules are not published",
        CudaAsyncOptions,
        |o| Box::new(CudaAsync::new(o))
    ),
    entry!(
        "skep",
        "Skep: learns what repeats and places it by a plan",
        SkepOptions,
        |o| Box::new(ProfileGuided::new(o))
    ),
];

/// An allocator's name and the options that differ from their defaults: `bfc`, or
/// `pytorch_caching:max_split_size=20MiB,expandable_segments=true`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllocatorSpec {
    name: String,
    given: Vec<(String, String)>,
}

/// Why a specification names no allocator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSpec {
    /// There is no such allocator.
    #[error("there is no allocator `{name}`, expected one of {known}")]
    Name {
        /// What was given.
        name: String,
        /// All names.
        known: String,
    },
    /// The allocator has no such option.
    #[error("allocator `{allocator}` has no option `{option}`, expected one of {known}")]
    Option {
        /// The allocator.
        allocator: String,
        /// What was given.
        option: String,
        /// All its options.
        known: String,
    },
    /// An option that is not `name=value`.
    #[error("option `{given}` of allocator `{allocator}` has no value, expected `name=value`")]
    NoValue {
        /// The allocator.
        allocator: String,
        /// What was given.
        given: String,
    },
    /// A value that the option does not take.
    #[error("option `{option}` of allocator `{allocator}` is `{value}`, expected {expected}")]
    Value {
        /// The allocator.
        allocator: String,
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
}

impl AllocatorSpec {
    /// All allocators, with the defaults of their options.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let named = |entry: &CatalogueEntry| Self {
            name: entry.name.to_owned(),
            given: Vec::new(),
        };
        CATALOGUE.iter().map(named).collect()
    }

    /// The allocator's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn entry(&self) -> &'static CatalogueEntry {
        let entry = CATALOGUE.iter().find(|entry| entry.name == self.name);
        entry.expect("a specification names an allocator")
    }

    fn try_build(&self) -> Result<Box<dyn Allocator>, InvalidSpec> {
        let entry = self.entry();
        (entry.build)(&self.given).map_err(|(option, error)| match error {
            OptionError::Unknown => InvalidSpec::Option {
                allocator: self.name.clone(),
                known: names(entry.options().iter().map(|option| option.name)),
                option,
            },
            OptionError::Value { expected } => {
                let given = self.given.iter().rfind(|(name, _)| *name == option);
                InvalidSpec::Value {
                    allocator: self.name.clone(),
                    value: given.map(|(_, value)| value.clone()).unwrap_or_default(),
                    option,
                    expected,
                }
            }
        })
    }

    /// The allocator, without memory.
    #[must_use]
    pub fn build(&self) -> Box<dyn Allocator> {
        self.try_build()
            .expect("options are checked when they are read")
    }
}

fn names<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

impl FromStr for AllocatorSpec {
    type Err = InvalidSpec;

    fn from_str(text: &str) -> Result<Self, InvalidSpec> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        if !CATALOGUE.iter().any(|entry| entry.name == name) {
            return Err(InvalidSpec::Name {
                name: name.to_owned(),
                known: names(CATALOGUE.iter().map(|entry| entry.name)),
            });
        }
        let mut given = Vec::new();
        for option in options.split(',').filter(|option| !option.is_empty()) {
            let Some((key, value)) = option.split_once('=') else {
                return Err(InvalidSpec::NoValue {
                    allocator: name.to_owned(),
                    given: option.to_owned(),
                });
            };
            given.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        let spec = Self {
            name: name.to_owned(),
            given,
        };
        spec.try_build()?;
        Ok(spec)
    }
}

impl fmt::Display for AllocatorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        for (number, (name, value)) in self.given.iter().enumerate() {
            let separator = if number == 0 { ':' } else { ',' };
            write!(f, "{separator}{name}={value}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read_as_they_are_shown() {
        for text in [
            "bfc",
            "pytorch_caching:max_split_size=20MiB,expandable_segments=true",
            "ort_arena:strategy=same_as_requested",
        ] {
            let spec: AllocatorSpec = text.parse().expect("valid");
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!(AllocatorSpec::all().len(), CATALOGUE.len());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| {
            let error = text.parse::<AllocatorSpec>().expect_err("invalid");
            error.to_string()
        };
        assert!(error("bcf").starts_with("there is no allocator `bcf`, expected one of `bfc`, "));
        assert_eq!(
            error("binning:max=3"),
            "allocator `binning` has no option `max`, expected one of `min_exponent`, `max_exponent`, `blocks_to_preallocate`"
        );
        assert_eq!(
            error("bfc:allow_growth"),
            "option `allow_growth` of allocator `bfc` has no value, expected `name=value`"
        );
        assert_eq!(
            error("ort_arena:strategy=double"),
            "option `strategy` of allocator `ort_arena` is `double`, expected `next_power_of_two` or `same_as_requested`"
        );
    }

    #[test]
    fn options_have_texts_and_defaults() {
        for entry in CATALOGUE {
            for option in entry.options() {
                assert!(
                    !option.text.is_empty() && !option.default.is_empty(),
                    "{option:?}"
                );
                let text = format!("{}:{}={}", entry.name, option.name, option.default);
                assert!(text.parse::<AllocatorSpec>().is_ok(), "{text}");
            }
        }
    }
}
