//! Which files a file uses: its paths, resolved to the files that define what they name.
//!
//! A path through a re-export (`pub use`) leads to the file behind it, and a re-export itself is a signpost, not a use.
//! Names that macros make are not seen, nor are methods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};

use syn::{Item, UseTree, Visibility};

use crate::rust_source::RustSource;

/// Re-exports are followed so many times; a chain longer than this is a circle.
const MAX_REEXPORTS: usize = 8;

/// A module's place: names from the crate's root.
type ModulePath = Vec<String>;

/// A crate's modules by their paths.
pub(super) struct CrateMap {
    modules: HashMap<ModulePath, Module>,
    /// The module that each file is.
    of_files: Vec<ModulePath>,
}

#[derive(Default)]
struct Module {
    file: usize,
    /// What it defines.
    defined: BTreeSet<String>,
    /// Paths of re-exports by the names they give.
    reexported: HashMap<String, ModulePath>,
    /// Modules that it re-exports whole.
    globs: Vec<ModulePath>,
}

impl CrateMap {
    pub(super) fn new(files: &[(PathBuf, RustSource)]) -> Self {
        let mut map = Self {
            modules: HashMap::new(),
            of_files: Vec::new(),
        };
        for (index, (path, source)) in files.iter().enumerate() {
            let module = module_path(path);
            map.of_files.push(module.clone());
            map.add(index, &module, &source.syntax.items);
        }
        map
    }

    fn add(&mut self, file: usize, path: &[String], items: &[Item]) {
        let mut module = Module {
            file,
            ..Module::default()
        };
        for item in items {
            match item {
                Item::Use(item) if !matches!(item.vis, Visibility::Inherited) => {
                    module.reexport(&item.tree, &mut Vec::new());
                }
                Item::Mod(item) => {
                    if let Some((_, items)) = &item.content {
                        let mut inner = path.to_vec();
                        inner.push(item.ident.to_string());
                        self.add(file, &inner, items);
                    }
                }
                _ => module.defined.extend(name_of(item)),
            }
        }
        self.modules.insert(path.to_vec(), module);
    }

    /// The file that defines what a path from the crate's root names.
    fn resolve(&self, path: &[String], left: usize) -> Option<Resolved> {
        let mut depth = 0;
        while depth < path.len() && self.modules.contains_key(&path[..=depth]) {
            depth += 1;
        }
        let module = self.modules.get(&path[..depth])?;
        let here = Some(Resolved::File(module.file));
        let Some(name) = path.get(depth).filter(|_| left > 0) else {
            return here;
        };
        if module.defined.contains(name) {
            return here;
        }
        let reexported = module.reexported.get(name).cloned();
        let target = reexported.or_else(|| {
            let mut globs = module.globs.iter();
            globs.find_map(|glob| {
                let target = absolute(glob, &path[..depth], self)?;
                let defines = |module: &Module| {
                    module.defined.contains(name) || module.reexported.contains_key(name)
                };
                self.modules.get(&target).is_some_and(defines).then(|| {
                    let mut path = glob.clone();
                    path.push(name.clone());
                    path
                })
            })
        });
        match target {
            Some(target) if target[0].starts_with("skep") => Some(Resolved::Elsewhere(target)),
            Some(target) => match absolute(&target, &path[..depth], self) {
                Some(target) => self.resolve(&target, left - 1),
                None => here,
            },
            None => here,
        }
    }
}

/// Where a path leads.
enum Resolved {
    /// To a file of the crate.
    File(usize),
    /// To another crate, whose name it begins with.
    Elsewhere(ModulePath),
}

impl Module {
    fn reexport(&mut self, tree: &UseTree, path: &mut ModulePath) {
        match tree {
            UseTree::Path(tree) => {
                path.push(tree.ident.to_string());
                self.reexport(&tree.tree, path);
                path.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.reexport(tree, path);
                }
            }
            UseTree::Glob(_) => self.globs.push(path.clone()),
            UseTree::Name(tree) => {
                self.name(&tree.ident.to_string(), &tree.ident.to_string(), path)
            }
            UseTree::Rename(tree) => {
                self.name(&tree.ident.to_string(), &tree.rename.to_string(), path);
            }
        }
    }

    fn name(&mut self, name: &str, renamed: &str, path: &ModulePath) {
        let mut path = path.clone();
        path.push(name.to_owned());
        self.reexported.insert(renamed.to_owned(), path);
    }
}

/// The files that a file uses: crate and index.
pub(super) fn targets(
    krate: &str,
    file: usize,
    source: &RustSource,
    maps: &BTreeMap<String, CrateMap>,
) -> BTreeSet<(String, usize)> {
    let map = &maps[krate];
    let module = &map.of_files[file];
    let mut reexports = Vec::new();
    if let Some(own) = map.modules.get(module) {
        reexports.extend(own.reexported.values());
    }
    let mut found = BTreeSet::new();
    for path in source.paths() {
        if reexports.contains(&&path) {
            continue;
        }
        found.extend(target(krate, module, &path, maps));
    }
    found
}

fn target(
    krate: &str,
    module: &[String],
    path: &[String],
    maps: &BTreeMap<String, CrateMap>,
) -> Option<(String, usize)> {
    let (mut krate, mut module) = (krate.to_owned(), module.to_vec());
    let mut path = path.to_vec();
    for _ in 0..MAX_REEXPORTS {
        let other = path[0].replace('_', "-");
        let (name, absolute) = if path[0].starts_with("skep") && maps.contains_key(&other) {
            (other, path[1..].to_vec())
        } else {
            let absolute = absolute(&path, &module, &maps[&krate])?;
            (krate, absolute)
        };
        match maps[&name].resolve(&absolute, MAX_REEXPORTS)? {
            Resolved::File(file) => return Some((name, file)),
            Resolved::Elsewhere(next) => {
                (krate, module, path) = (name, Vec::new(), next);
            }
        }
    }
    None
}

/// A path from the crate's root, out of one as a module spells it; `None` for what is not of the crate.
fn absolute(path: &[String], module: &[String], map: &CrateMap) -> Option<ModulePath> {
    let mut absolute = module.to_vec();
    let mut rest = path;
    let starts_here = match path[0].as_str() {
        "crate" => {
            absolute.clear();
            rest = &rest[1..];
            true
        }
        "self" | "super" => true,
        // A child of the module; in the body of a module without a path of its own.
        name => {
            absolute.push(name.to_owned());
            let is_child = map.modules.contains_key(&absolute);
            absolute.pop();
            is_child
        }
    };
    if !starts_here {
        return None;
    }
    while let Some(name) = rest.first() {
        match name.as_str() {
            "super" => {
                absolute.pop();
            }
            "self" | "*" => {}
            _ => break,
        }
        rest = &rest[1..];
    }
    let names = rest
        .iter()
        .filter(|name| !["self", "*"].contains(&name.as_str()));
    absolute.extend(names.cloned());
    Some(absolute)
}

/// The module that a file is, by its path in `src`.
fn module_path(file: &Path) -> ModulePath {
    let without = file.with_extension("");
    let mut path: ModulePath = without
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    let is_root = path.len() == 1 && ["lib", "main"].contains(&path[0].as_str());
    if is_root || path.last().is_some_and(|name| name == "mod") {
        path.pop();
    }
    path
}

/// The name that an item defines for other files.
fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}
