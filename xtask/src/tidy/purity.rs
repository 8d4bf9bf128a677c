//! Pure crates: time and randomness are arguments, and there is no I/O.

use std::collections::BTreeSet;

use syn::visit::{self, Visit};

use crate::rust_source::RustSource;

/// Modules and types that pure crates never name, however the path to them is spelt.
const IMPURE: &[&[&str]] = &[
    &["tokio"],
    &["std", "env"],
    &["std", "fs"],
    &["std", "net"],
    &["std", "os"],
    &["std", "process"],
    &["std", "thread"],
    &["std", "time", "Instant"],
    &["std", "time", "SystemTime"],
    &["rand", "rng"],
];

/// What a pure module of an impure crate never names either. A pure crate has no dependency for it.
const IMPURE_IN_MODULES: &[&[&str]] = &[
    &["rustix"],
    &["libc"],
    &["std", "io"],
    &["std", "sync", "Mutex"],
];

/// Crates whose modules are impure: another name for one of them would hide what is used of it.
const IMPURE_ROOTS: [&str; 3] = ["std", "tokio", "rand"];

/// Macros that write to the process's output.
const IMPURE_MACROS: [&str; 4] = ["println", "eprintln", "print", "eprint"];

/// What a file names of the world outside, each once; `in_module` for a pure module of an impure crate.
pub(super) fn impure(source: &RustSource, in_module: bool) -> BTreeSet<String> {
    let more = if in_module { IMPURE_IN_MODULES } else { &[] };
    let mut found = BTreeSet::new();
    for path in source.paths() {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        if IMPURE
            .iter()
            .chain(more)
            .any(|forbidden| reaches(&path, forbidden))
        {
            found.insert(path.join("::"));
        }
        // Behind a module's name that an import gives: `time::Instant::now`.
        for pair in path.windows(2) {
            if pair == ["Instant", "now"] || pair == ["SystemTime", "now"] {
                found.insert(pair.join("::"));
            }
        }
    }
    ImpureNames(&mut found).visit_file(&source.syntax);
    found
}

/// Whether a path names a forbidden thing, something in it, everything that lies beside it (`std::*`), or a whole crate
/// that holds it (`std::{self as s}`).
fn reaches(path: &[&str], forbidden: &[&str]) -> bool {
    match path {
        [before @ .., "*"] if before.len() < forbidden.len() => forbidden.starts_with(before),
        [root, "self"] => forbidden[0] == *root,
        _ => path.starts_with(forbidden),
    }
}

/// Collects what is not a path: other names of crates, and macros.
struct ImpureNames<'a>(&'a mut BTreeSet<String>);

impl<'a> Visit<'a> for ImpureNames<'_> {
    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if let syn::UseTree::Rename(tree) = &item.tree {
            self.note_root(&tree.ident.to_string());
        }
    }

    fn visit_item_extern_crate(&mut self, item: &'a syn::ItemExternCrate) {
        self.note_root(&item.ident.to_string());
    }

    fn visit_macro(&mut self, call: &'a syn::Macro) {
        let name = call
            .path
            .segments
            .last()
            .map(|segment| segment.ident.to_string());
        if let Some(name) = name.filter(|name| IMPURE_MACROS.contains(&name.as_str())) {
            self.0.insert(format!("{name}!"));
        }
        visit::visit_macro(self, call);
    }
}

impl ImpureNames<'_> {
    fn note_root(&mut self, name: &str) {
        if IMPURE_ROOTS.contains(&name) {
            self.0.insert(format!("{name} as another name"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let source = RustSource::parse(text).expect("the text is Rust");
        impure(&source, false).into_iter().collect()
    }

    #[test]
    fn every_spelling_of_a_module_is_found() {
        assert_eq!(found("use std::fs;"), ["std::fs"]);
        assert_eq!(
            found("use std::{fmt, fs::{self, File}};"),
            ["std::fs::File", "std::fs::self"]
        );
        assert_eq!(found("use {std::{fmt, thread as t}};"), ["std::thread"]);
        assert_eq!(found("use ::std::net::TcpStream;"), ["std::net::TcpStream"]);
        assert_eq!(found("fn a() { std::env::var(\"A\"); }"), ["std::env::var"]);
        assert_eq!(found("use std::*;"), ["std::*"]);
        assert_eq!(found("use std::{self as s};"), ["std::self"]);
        assert_eq!(found("use std as s;"), ["std as another name"]);
        assert_eq!(found("extern crate std as s;"), ["std as another name"]);
        assert_eq!(
            found("async fn a() { tokio::spawn(b()); }"),
            ["tokio::spawn"]
        );
        assert_eq!(
            found("use std::time;\nfn a() { time::Instant::now(); }"),
            ["Instant::now"]
        );
        assert_eq!(found("fn a() { println!(); }"), ["println!"]);
    }

    #[test]
    fn code_behind_tests_is_read() {
        let text = "#[cfg(test)]\nuse std::fs;\n\nuse std::thread;\n";
        assert_eq!(found(text), ["std::thread"]);
    }

    #[test]
    fn pure_modules_are_left_alone() {
        assert!(found("use std::{collections::HashMap, time::{self, Duration}};").is_empty());
        assert!(found("// std::fs and println! in a comment\nuse crate::time;").is_empty());
    }
}
