//! Figures of the source tree: `cargo xtask figures [FOLDER] [--names]`. They describe a design; none is a goal by
//! itself.
//!
//! Counted are the files of `crates/*/src` and `xtask/src`, without generated ones, files of tests, and items under
//! `#[cfg(test)]`.

mod arrows;
mod circles;
mod counts;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::rust_source::{self, RustSource};
use arrows::CrateMap;
use counts::StatementCounts;
pub(crate) use counts::type_names;

/// A function longer than this does more than one thing.
const LONG_FUNCTION_LINES: usize = 70;

/// One crate's files, in order.
struct CrateFiles {
    name: String,
    /// Paths relative to the crate's `src`.
    files: Vec<(PathBuf, RustSource)>,
}

/// Prints the figures of the tree, or of another one that the arguments name.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<()> {
    let mut names = false;
    let mut folder = None;
    for arg in args {
        match arg.as_str() {
            "--names" => names = true,
            flag if flag.starts_with('-') => bail!("usage: cargo xtask figures [FOLDER] [--names]"),
            path => folder = Some(PathBuf::from(path)),
        }
    }
    let folder = folder.as_deref().unwrap_or(root);
    print!("{}", report(folder, names)?);
    Ok(())
}

/// The figures as text; with `names`, which type names are defined in more than one crate as well.
fn report(root: &Path, names: bool) -> Result<String> {
    let crates = read(root)?;
    let mut page = String::new();
    sizes(&mut page, &crates)?;
    let maps: BTreeMap<String, CrateMap> = crates
        .iter()
        .map(|krate| (krate.name.clone(), CrateMap::new(&krate.files)))
        .collect();
    file_arrows(&mut page, &crates, &maps)?;
    let (crate_count, arrows) = crate_arrows(root)?;
    writeln!(
        page,
        "arrows between crates        {arrows} among {crate_count} crates"
    )?;
    shared_names(&mut page, &crates, names)?;
    statements(&mut page, &crates)?;
    Ok(page)
}

fn read(root: &Path) -> Result<Vec<CrateFiles>> {
    let mut crates = Vec::new();
    for (name, folder) in rust_source::crates(root)? {
        let source = folder.join("src");
        let mut files = Vec::new();
        for path in rust_source::rust_files(&source)? {
            let relative = path.strip_prefix(&source).unwrap_or(&path).to_owned();
            if !rust_source::is_test_file(&relative) {
                files.push((relative, RustSource::read(&path)?));
            }
        }
        crates.push(CrateFiles { name, files });
    }
    Ok(crates)
}

fn sizes(page: &mut String, crates: &[CrateFiles]) -> Result<()> {
    let files = crates.iter().flat_map(|krate| &krate.files);
    let mut lines: Vec<usize> = files
        .map(|(_, source)| source.text.lines().count())
        .collect();
    lines.sort_unstable();
    writeln!(page, "Rust files                   {}", lines.len())?;
    writeln!(
        page,
        "lines a file                 median {}, p90 {}, longest {}, total {}",
        percentile(&lines, 50),
        percentile(&lines, 90),
        percentile(&lines, 100),
        lines.iter().sum::<usize>()
    )?;
    Ok(())
}

/// The smallest of the sorted values that at least so many percent do not exceed.
fn percentile(sorted: &[usize], percent: usize) -> usize {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or(0)
}

fn file_arrows(
    page: &mut String,
    crates: &[CrateFiles],
    maps: &BTreeMap<String, CrateMap>,
) -> Result<()> {
    let (mut within, mut across) = (0, BTreeSet::new());
    let mut circular = Vec::new();
    for krate in crates {
        let mut arrows = BTreeSet::new();
        for (index, (_, source)) in krate.files.iter().enumerate() {
            for (to_crate, to) in arrows::targets(&krate.name, index, source, maps) {
                if to_crate != krate.name {
                    across.insert((krate.name.clone(), index, to_crate, to));
                } else if to != index {
                    arrows.insert((index, to));
                }
            }
        }
        within += arrows.len();
        let circles = circles::circles(krate.files.len(), &arrows);
        if let Some(largest) = circles.first() {
            let mut names: Vec<String> = largest
                .iter()
                .map(|index| krate.files[*index].0.display().to_string())
                .collect();
            let more = names.len().saturating_sub(8);
            names.truncate(8);
            if more > 0 {
                names.push(format!("and {more} more"));
            }
            circular.push((circles, format!("{}: {}", krate.name, names.join(" "))));
        }
    }
    writeln!(
        page,
        "arrows between files         {} ({within} within crates, {} across)",
        within + across.len(),
        across.len()
    )?;
    let count: usize = circular.iter().map(|(circles, _)| circles.len()).sum();
    let members: usize = circular
        .iter()
        .flat_map(|(circles, _)| circles)
        .map(Vec::len)
        .sum();
    writeln!(
        page,
        "circles of files             {count}, {members} files in them"
    )?;
    for (circles, line) in &circular {
        let largest = circles.first().map_or(0, Vec::len);
        writeln!(
            page,
            "  {} of at most {largest}; largest in {line}",
            circles.len()
        )?;
    }
    Ok(())
}

/// How many crates there are, and how many dependencies they have among each other (without those for tests).
fn crate_arrows(root: &Path) -> Result<(usize, usize)> {
    let crates = rust_source::crates(root)?;
    let mut arrows = BTreeSet::new();
    for (name, folder) in &crates {
        let path = folder.join("Cargo.toml");
        let manifest =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for dependency in own_dependencies(&manifest) {
            arrows.insert((name.clone(), dependency.to_owned()));
        }
    }
    Ok((crates.len(), arrows.len()))
}

/// The crates of the workspace that a manifest's `[dependencies]` name.
pub(crate) fn own_dependencies(manifest: &str) -> Vec<&str> {
    let mut is_in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_in_dependencies = line == "[dependencies]";
        }
        let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
        if is_in_dependencies && name.starts_with("skep") {
            found.push(name);
        }
    }
    found
}

fn shared_names(page: &mut String, crates: &[CrateFiles], names: bool) -> Result<()> {
    let mut owners: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    let mut definitions = Vec::new();
    for krate in crates {
        for (_, source) in &krate.files {
            for name in type_names(&source.syntax) {
                owners.entry(name.clone()).or_default().insert(&krate.name);
                definitions.push(name);
            }
        }
    }
    let shared = owners.iter().filter(|(_, crates)| crates.len() > 1);
    let count = shared.clone().count();
    let of_shared = definitions
        .iter()
        .filter(|name| owners[*name].len() > 1)
        .count();
    writeln!(
        page,
        "type names                   {}, {count} of them ({}) defined in more than one crate",
        owners.len(),
        percent(count, owners.len())
    )?;
    writeln!(
        page,
        "type definitions             {}, {of_shared} of them ({}) under such a name",
        definitions.len(),
        percent(of_shared, definitions.len())
    )?;
    if names {
        for (name, crates) in shared {
            let crates: Vec<&str> = crates.iter().copied().collect();
            writeln!(page, "  {name}: {}", crates.join(" "))?;
        }
    }
    Ok(())
}

fn statements(page: &mut String, crates: &[CrateFiles]) -> Result<()> {
    let mut counts = StatementCounts::default();
    for (_, source) in crates.iter().flat_map(|krate| &krate.files) {
        counts.add(&source.syntax);
    }
    let long = counts
        .function_lines
        .iter()
        .filter(|lines| **lines > LONG_FUNCTION_LINES)
        .count();
    writeln!(
        page,
        "closures bound with `let`    {} of {} `let`s, {:.1} per 1,000",
        counts.closures,
        counts.lets,
        1000.0 * counts.closures as f64 / counts.lets.max(1) as f64
    )?;
    writeln!(
        page,
        "functions over {LONG_FUNCTION_LINES} lines       {long} of {}, {}",
        counts.function_lines.len(),
        percent(long, counts.function_lines.len())
    )?;
    Ok(())
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A tree of files in a folder of its own, removed at the end.
    struct Tree(PathBuf);

    impl Tree {
        fn new(files: &[(&str, &str)]) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("skep-figures-{}-{number}", std::process::id());
            let root = std::env::temp_dir().join(name);
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a file lies in a folder"))
                    .expect("the folder can be made");
                fs::write(path, text).expect("the file can be written");
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_small_tree_has_these_figures() {
        let long = format!("fn long() {{\n{}}}\n", "    let x = 1;\n".repeat(70));
        let tree = Tree::new(&[
            (
                "crates/skep-a/Cargo.toml",
                "[dependencies]\nserde.workspace = true\n",
            ),
            (
                "crates/skep-a/src/lib.rs",
                "mod one;\nmod two;\npub use one::One;\npub struct Shared;\n",
            ),
            (
                "crates/skep-a/src/one.rs",
                "use crate::two::Two;\npub struct One(Two);\n#[cfg(test)]\nmod tests {\n    struct Hidden;\n}\n",
            ),
            // By the re-export, back to `one`.
            (
                "crates/skep-a/src/two.rs",
                "pub struct Two;\nfn f() { let g = |x: crate::One| x; }\n",
            ),
            ("crates/skep-a/src/two_tests.rs", "struct Hidden;\n"),
            (
                "crates/skep-b/Cargo.toml",
                "[dependencies]\nskep-a.workspace = true\n[dev-dependencies]\nskep-c.workspace = true\n",
            ),
            (
                "crates/skep-b/src/lib.rs",
                &format!("use skep_a::{{One, Shared as S}};\ntype Shared = u8;\n{long}"),
            ),
        ]);
        let expected = "\
Rust files                   4
lines a file                 median 3, p90 74, longest 74, total 83
arrows between files         4 (2 within crates, 2 across)
circles of files             1, 2 files in them
  1 of at most 2; largest in skep-a: one.rs two.rs
arrows between crates        1 among 2 crates
type names                   3, 1 of them (33.3 %) defined in more than one crate
type definitions             4, 2 of them (50.0 %) under such a name
  Shared: skep-a skep-b
closures bound with `let`    1 of 71 `let`s, 14.1 per 1,000
functions over 70 lines       1 of 2, 50.0 %
";
        assert_eq!(
            report(&tree.0, true).expect("the tree can be read"),
            expected
        );
    }
}
