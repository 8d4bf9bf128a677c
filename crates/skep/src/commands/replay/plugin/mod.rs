//! Allocators in libraries of other people, each in a process of its own: one that crashes or hangs costs its row.
//!
//! ```text
//! skep replay                                    skep replay-plugin (started by it)
//!   PluginBench: order, events  --- pipe --->    PluginLibrary, checked, on a Bench
//!   the number of the last event <-- file ---    before each event
//!   figures, or what went wrong <--- pipe ---    at the end
//! ```

mod child;
mod documents;
mod parent;

use std::path::PathBuf;

pub(crate) use child::run;
pub(super) use parent::PluginBench;

/// The subcommand of the child.
pub(crate) const COMMAND: &str = "replay-plugin";

/// A library, with the options of its allocator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PluginChoice {
    /// As it was given.
    pub(super) text: String,
    pub(super) library: PathBuf,
    pub(super) options: String,
}

impl PluginChoice {
    /// Reads `./libmine.so` or `./libmine.so:name=value,...`; `None` for what names no file.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (library, options) = match text.split_once(".so:") {
            Some((stem, options)) => (format!("{stem}.so"), options),
            None => (text.to_owned(), ""),
        };
        // Options may have points and slashes as well: only what is in front of them tells a file.
        let is_file = library.contains('/') || library.ends_with(".so") || library.contains(".so.");
        is_file.then(|| Self {
            text: text.to_owned(),
            library: PathBuf::from(library),
            options: options.to_owned(),
        })
    }
}

/// Bytes of an event: the kind, and three numbers.
const EVENT_BYTES: usize = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_may_have_options() {
        let read = |text: &str| {
            let choice = PluginChoice::read(text)?;
            Some((choice.library, choice.options))
        };
        let expected = |library: &str, options: &str| Some((library.into(), options.to_owned()));
        assert_eq!(read("./libfoo.so"), expected("./libfoo.so", ""));
        assert_eq!(
            read("/a:b/libfoo.so:chunk=1:2,x=3"),
            expected("/a:b/libfoo.so", "chunk=1:2,x=3")
        );
        assert_eq!(read("libfoo.so.1"), expected("libfoo.so.1", ""));
        assert_eq!(read("bfc:limit=1MiB"), None);
        let share = "pytorch_caching:garbage_collection_threshold=0.5,limit=64MiB";
        assert_eq!(read(share), None, "a number has a point");
    }
}
