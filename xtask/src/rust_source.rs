//! Rust files as `tidy` and `figures` see them: without the items that only tests compile.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};
use syn::{
    Attribute, Meta,
    spanned::Spanned,
    visit::{self, Visit},
};

/// A file's text without the items under `#[cfg(test)]`, and its syntax.
pub(crate) struct RustSource {
    pub(crate) text: String,
    pub(crate) syntax: syn::File,
}

impl RustSource {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("cannot parse {}", path.display()))
    }

    /// Parses a text. Items for tests disappear with their lines.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut items = TestItems::default();
        items.visit_file(&syn::parse_file(text)?);
        let mut kept = String::with_capacity(text.len());
        let mut end = 0;
        for item in items.ranges {
            // Items within items are gone already.
            if item.start >= end {
                kept.push_str(text[end..item.start].trim_end_matches([' ', '\t']));
                end = item.end;
            }
        }
        kept.push_str(&text[end..]);
        let syntax = syn::parse_file(&kept)?;
        Ok(Self { text: kept, syntax })
    }

    /// Every path of the file, with the branches of use trees as paths of their own: `use std::{fs, io::Read}` gives
    /// `std::fs` and `std::io::Read`. Paths within the arguments of macros count.
    pub(crate) fn paths(&self) -> Vec<Vec<String>> {
        let tokens: TokenStream = self.text.parse().unwrap_or_default();
        let mut found = Vec::new();
        paths_of(tokens, &mut found);
        found
    }
}

/// Where the items are that only tests compile, ascending.
#[derive(Default)]
struct TestItems {
    ranges: Vec<Range<usize>>,
}

impl TestItems {
    fn note(&mut self, attributes: &[Attribute], item: &dyn Spanned) -> bool {
        let is_for_tests = attributes.iter().any(is_cfg_test);
        if is_for_tests {
            let first = attributes
                .iter()
                .map(|attribute| attribute.span().byte_range().start);
            let span = item.span().byte_range();
            self.ranges
                .push(first.min().unwrap_or(span.start).min(span.start)..span.end);
        }
        is_for_tests
    }
}

impl<'a> Visit<'a> for TestItems {
    fn visit_item(&mut self, item: &'a syn::Item) {
        if !self.note(attributes_of_item(item), item) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'a syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            _ => return,
        };
        if !self.note(attributes, item) {
            visit::visit_impl_item(self, item);
        }
    }
}

fn attributes_of_item(item: &syn::Item) -> &[Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::ExternCrate(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::ForeignMod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::TraitAlias(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Union(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether this is `#[cfg(test)]`. What a feature can switch on as well, `any(test, ...)`, is not for tests alone.
fn is_cfg_test(attribute: &Attribute) -> bool {
    match &attribute.meta {
        Meta::List(list) if list.path.is_ident("cfg") => {
            matches!(list.parse_args::<Meta>(), Ok(Meta::Path(path)) if path.is_ident("test"))
        }
        _ => false,
    }
}

/// Collects the paths of at least two segments in a list of tokens and in its groups.
fn paths_of(tokens: TokenStream, found: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => {
                paths_of(group.stream(), found);
                at += 1;
            }
            TokenTree::Ident(first) if is_colons(&tokens, at + 1) && !is_keyword(first) => {
                at = path_of(&tokens, at + 3, vec![first.to_string()], found);
            }
            _ => at += 1,
        }
    }
}

/// Reads a path whose `::` ends before `at`; where it ends.
fn path_of(
    tokens: &[TokenTree],
    mut at: usize,
    mut path: Vec<String>,
    found: &mut Vec<Vec<String>>,
) -> usize {
    loop {
        match tokens.get(at) {
            Some(TokenTree::Ident(name)) => {
                path.push(name.to_string());
                if !is_colons(tokens, at + 1) {
                    found.push(path);
                    return at + 1;
                }
                at += 3;
            }
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                tree_of(group.stream(), &path, found);
                return at + 1;
            }
            Some(TokenTree::Punct(star)) if star.as_char() == '*' => {
                path.push("*".to_owned());
                found.push(path);
                return at + 1;
            }
            // Generic arguments (`Vec::<u8>`), or a macro's variable.
            _ => {
                found.push(path);
                return at;
            }
        }
    }
}

/// Reads the branches of a use tree, `{a, b::{c, d}}`, behind a path.
fn tree_of(tokens: TokenStream, path: &[String], found: &mut Vec<Vec<String>>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    for branch in tokens.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
        if !branch.is_empty() {
            path_of(branch, 0, path.to_vec(), found);
        }
    }
}

/// Whether `::` behind this word begins a path (`use ::std::fs`) instead of going on with one.
fn is_keyword(word: &Ident) -> bool {
    let keywords = [
        "as", "dyn", "else", "if", "impl", "in", "let", "match", "move", "mut", "ref", "return",
        "use", "where", "while",
    ];
    keywords.iter().any(|keyword| word == keyword)
}

fn is_colons(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon =
        |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(p)) if p.as_char() == ':');
    is_colon(at) && is_colon(at + 1)
}

/// The Rust files below a folder, in order, without generated ones.
pub(crate) fn rust_files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let entries = fs::read_dir(&directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                if !path.ends_with("generated") {
                    pending.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file holds nothing but tests, benchmarks or examples.
pub(crate) fn is_test_file(path: &Path) -> bool {
    let is_beside_sources = path.components().any(|part| {
        ["tests", "benches", "examples"]
            .iter()
            .any(|folder| part.as_os_str() == *folder)
    });
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    is_beside_sources || name == "tests.rs" || name.ends_with("_tests.rs")
}

/// The folders of the workspace's crates with their names: those in `crates`, and `xtask`.
pub(crate) fn crates(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let folder = root.join("crates");
    let mut found = Vec::new();
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.join("Cargo.toml").exists() {
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            found.push((name, path));
        }
    }
    let xtask = root.join("xtask");
    if xtask.exists() {
        found.push(("xtask".to_owned(), xtask));
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        let source = RustSource::parse(text).expect("the text is Rust");
        source.paths().iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn only_the_item_under_the_attribute_is_skipped() {
        let text = "//! A.\n\n#[cfg(test)]\nuse std::fs;\n\nfn a() {}\n\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n\nfn c() {}\n";
        let source = RustSource::parse(text).expect("the text is Rust");
        assert_eq!(source.text, "//! A.\n\n\n\nfn a() {}\n\n\n\nfn c() {}\n");
    }

    #[test]
    fn methods_for_tests_are_skipped_with_their_docs() {
        let text = "impl A {\n    /// Doc.\n    #[cfg(test)]\n    fn b() {}\n    fn c() {}\n}\n";
        let source = RustSource::parse(text).expect("the text is Rust");
        assert_eq!(source.text, "impl A {\n\n    fn c() {}\n}\n");
    }

    #[test]
    fn what_a_feature_switches_on_stays() {
        let text = "#[cfg(any(test, feature = \"fuzzing\"))]\nfn a() {}\n";
        assert_eq!(
            RustSource::parse(text).expect("the text is Rust").text,
            text
        );
    }

    #[test]
    fn use_trees_are_taken_apart() {
        let found = paths("use std::{fs, io::{self, Read}, net::*};\nuse ::std::env as e;");
        assert_eq!(
            found,
            [
                "std::fs",
                "std::io::self",
                "std::io::Read",
                "std::net::*",
                "std::env"
            ]
        );
    }

    #[test]
    fn paths_in_bodies_and_macros_are_found() {
        let found = paths("fn a() { println!(\"{}\", crate::b::C); let x = Vec::<u8>::new(); }");
        assert_eq!(found, ["crate::b::C", "Vec"]);
    }
}
