//! Libraries with allocators, which configurations may name.

use std::path::PathBuf;

use clap::Args;

/// The libraries that flags name.
#[derive(Debug, Clone, Args)]
pub(crate) struct AllocatorLibraries {
    /// A library with an allocator (`include/skep_allocator.h`), and the name that configurations use for it in
    /// `parameters.allocator`; may be given several times (Skep's own)
    #[arg(long, value_name = "NAME=FILE", value_parser = named)]
    allocator_library: Vec<(String, PathBuf)>,
}

impl AllocatorLibraries {
    /// Opens them: from now on configurations can use them.
    ///
    /// # Errors
    /// If a library cannot be used.
    pub(crate) fn open(&self) -> anyhow::Result<()> {
        for (name, path) in &self.allocator_library {
            skep_alloc::add_library(name, path)?;
        }
        Ok(())
    }
}

fn named(text: &str) -> Result<(String, PathBuf), String> {
    let expected = || format!("expected a name and a file, as in mine=./libmine.so, got `{text}`");
    let (name, path) = text.split_once('=').ok_or_else(expected)?;
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "_-".contains(letter);
    if name.is_empty() || path.is_empty() || !name.chars().all(is_name) {
        return Err(expected());
    }
    if skep_layout::allocator::CATALOGUE
        .iter()
        .any(|entry| entry.name == name)
    {
        return Err(format!(
            "`{name}` is an allocator of Skep's own: choose another name"
        ));
    }
    Ok((name.to_owned(), PathBuf::from(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_have_names_of_their_own() {
        assert_eq!(
            named("mine=./a=b.so"),
            Ok(("mine".to_owned(), PathBuf::from("./a=b.so")))
        );
        for wrong in ["mine", "=a.so", "mine=", "my:own=a.so", "bfc=a.so"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
    }
}
