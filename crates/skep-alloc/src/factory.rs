//! Allocators by name: those of the catalogue, and those of libraries that the node's operator named.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Mutex,
};

use skep_host::lock;
use skep_layout::allocator::{Allocator, AllocatorSpec, InvalidSpec};

use crate::plugin::{PluginError, PluginLibrary};

/// Why a name gives no allocator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAllocator {
    /// It is in no library, and the catalogue does not know it.
    #[error(transparent)]
    Spec(#[from] InvalidSpec),
    /// Its library cannot be used.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// The libraries of this process, by the names that configurations use. Configurations come from clients as well, so they
/// name no files.
static LIBRARIES: Mutex<BTreeMap<String, (PathBuf, PluginLibrary)>> = Mutex::new(BTreeMap::new());

/// Opens a library, whose allocators configurations may use by this name from now on.
///
/// # Errors
/// [`PluginError`] if it cannot be opened or lacks a function.
pub fn add_library(name: &str, path: &Path) -> Result<(), PluginError> {
    let library = PluginLibrary::open(path)?;
    let mut libraries = lock(&LIBRARIES);
    libraries.insert(name.to_owned(), (path.to_owned(), library));
    Ok(())
}

/// The library of an allocator that a configuration names, with its own name; `None` for one of the catalogue.
#[must_use]
pub fn library_of(text: &str) -> Option<(String, PathBuf)> {
    let (name, _) = split(text);
    let libraries = lock(&LIBRARIES);
    let (path, _) = libraries.get(name)?;
    Some((name.to_owned(), path.clone()))
}

/// The name, and the options behind the colon.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_once(':').unwrap_or((text, ""))
}

#[derive(Debug, Clone)]
enum Maker {
    Catalogue(AllocatorSpec),
    Library(PluginLibrary, String),
}

/// Makes allocators of one kind, with the same options.
#[derive(Debug, Clone)]
pub struct AllocatorFactory {
    text: String,
    maker: Maker,
}

impl AllocatorFactory {
    /// What makes the allocator that `text` names, as in `bfc`, `pytorch_caching:max_split_size=20MiB` or the name of a
    /// library with its own options.
    ///
    /// # Errors
    /// [`InvalidAllocator`] if there is no such allocator, or it does not take the options.
    pub fn named(text: &str) -> Result<Self, InvalidAllocator> {
        let (name, options) = split(text);
        let libraries = lock(&LIBRARIES);
        let library = libraries.get(name).map(|(_, library)| library.clone());
        drop(libraries);
        let maker = match library {
            Some(library) => Maker::Library(library, options.to_owned()),
            None => Maker::Catalogue(text.trim().parse()?),
        };
        let factory = Self {
            text: text.trim().to_owned(),
            maker,
        };
        // A library checks its options when it makes an allocator.
        factory.build()?;
        Ok(factory)
    }

    /// The name with its options, as it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.text
    }

    /// An allocator.
    ///
    /// # Errors
    /// [`PluginError::Create`] if its library makes none any more.
    pub fn build(&self) -> Result<Box<dyn Allocator>, PluginError> {
        Ok(match &self.maker {
            Maker::Catalogue(spec) => spec.build(),
            Maker::Library(library, options) => Box::new(library.build(options)?),
        })
    }
}
