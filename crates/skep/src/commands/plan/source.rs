//! Files to plan for: what they are shows in them.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use skep_backend::ModelFile;
use skep_planner::UsageRecords;
use skep_records::{Format, csv, unpack, xla};

use super::onnx::{self, EstimateReport, OnnxArgs};

/// A longer file is nothing that a planner could work on.
const MAX_BYTES: u64 = 1 << 30;

/// Names of XLA's files for one run end so, with a point or a hyphen before.
const ASSIGNMENT: &str = "buffer-assignment.txt";
const LIVE_RANGE: &str = "live-range.txt";

/// What is to be planned.
pub(super) struct PlanSource {
    /// Each with a title; the first is the one that matters most.
    pub(super) records: Vec<(String, UsageRecords)>,
    /// What had no effect, or is not counted.
    pub(super) notices: Vec<String>,
    /// What else is said of an ONNX model.
    pub(super) report: Option<EstimateReport>,
}

/// The one ONNX model at a path, which may be a directory: its file and what is in it.
pub(in crate::commands) fn onnx_model(path: &Path) -> anyhow::Result<(PathBuf, Bytes)> {
    let path = match path.is_dir() {
        true => in_directory(path)?,
        false => path.to_owned(),
    };
    let content = bytes(&path)?;
    let plain = unpack(&content).with_context(|| format!("`{}`", path.display()))?;
    if Format::of(&plain) != Some(Format::Onnx) {
        bail!("`{}` is no ONNX model", path.display());
    }
    Ok((path, Bytes::from(plain.into_owned())))
}

/// Reads a file of any format, or of a directory the one ONNX model that it holds.
pub(super) fn read(path: &Path, args: &OnnxArgs) -> anyhow::Result<PlanSource> {
    match path.is_dir() {
        true => read_file(&in_directory(path)?, args),
        false => read_file(path, args),
    }
}

/// The ONNX file of a directory, or of its subdirectories, as a model's versions are.
fn in_directory(path: &Path) -> anyhow::Result<PathBuf> {
    let mut found = onnx_files(path)?;
    for entry in entries(path)?.into_iter().filter(|entry| entry.is_dir()) {
        found.extend(onnx_files(&entry)?);
    }
    match &found[..] {
        [] => bail!(
            "`{}` is a directory without an ONNX file, expected a file",
            path.display()
        ),
        [file] => Ok(file.clone()),
        [first, ..] => bail!(
            "`{}` is a directory with {} ONNX files, expected one of them, such as `{}`",
            path.display(),
            found.len(),
            first.display()
        ),
    }
}

fn onnx_files(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = entries(directory)?.into_iter();
    Ok(entries
        .filter(|path| path.extension().is_some_and(|end| end == "onnx"))
        .filter(|path| path.is_file())
        .collect())
}

/// What a directory holds, in the order of names.
fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read `{}`", directory.display());
    let entries = std::fs::read_dir(directory).with_context(unreadable)?;
    let paths = entries.map(|entry| Ok(entry?.path()));
    let paths: std::io::Result<Vec<PathBuf>> = paths.collect();
    let mut paths = paths.with_context(unreadable)?;
    paths.sort();
    Ok(paths)
}

/// ONNX models are mapped where their name says what they are: weights are not read.
fn read_file(path: &Path, args: &OnnxArgs) -> anyhow::Result<PlanSource> {
    if path
        .extension()
        .is_some_and(|extension| extension == "onnx")
    {
        let file = ModelFile::open(path)?;
        if !matches!(Format::of(file.bytes()), Some(Format::Csv)) {
            return of_onnx(path, file.bytes().clone(), args);
        }
    }
    let file = bytes(path)?;
    let named = || format!("`{}`", path.display());
    let plain = unpack(&file).with_context(named)?;
    let title = path
        .file_name()
        .unwrap_or(path.as_os_str())
        .to_string_lossy()
        .into_owned();
    let format = Format::of(&plain);
    if format == Some(Format::Onnx) {
        return of_onnx(path, Bytes::from(plain.into_owned()), args);
    }
    if plain.is_empty() {
        bail!("{} is empty, expected usage records", named());
    }
    // Any text is taken for CSV, a page or a Git LFS pointer too.
    if matches!(format, None | Some(Format::Csv))
        && let Some(what) = skep_onnx::recognize(&plain)
    {
        bail!("{}: {what}", named());
    }
    if let Some(flag) = args.given_flag() {
        bail!("{flag} is for ONNX models, {} is none", named());
    }
    let mut notices = Vec::new();
    let records = match format {
        Some(Format::Csv) => {
            let table = csv::read(&plain).with_context(named)?;
            let columns = table
                .ignored
                .iter()
                .map(|column| format!("{}: column `{column}` has no effect", named()));
            notices.extend(columns);
            vec![(title, table.records)]
        }
        Some(Format::BufferAssignment) => {
            let beside = live_ranges(path)?;
            let ranges = bytes(&beside)?;
            let ranges = unpack(&ranges).with_context(|| format!("`{}`", beside.display()))?;
            let both = || format!("`{}` with `{}`", path.display(), beside.display());
            under(&title, xla::read_text(&plain, &ranges).with_context(both)?)
        }
        Some(Format::LiveRange) => {
            bail!(
                "{} has live ranges without sizes, expected the {ASSIGNMENT} beside it",
                named()
            )
        }
        Some(Format::HloProto) => under(&title, xla::read_proto(&plain).with_context(named)?),
        _ => bail!(
            "{} has an unknown format, expected an ONNX model, a CSV table, XLA's *-{ASSIGNMENT} or *.hlo.pb",
            named()
        ),
    };
    Ok(PlanSource {
        records,
        notices,
        report: None,
    })
}

fn of_onnx(path: &Path, bytes: Bytes, args: &OnnxArgs) -> anyhow::Result<PlanSource> {
    let source = onnx::read(path, bytes, args)?;
    Ok(PlanSource {
        records: source.records,
        notices: source.notices,
        report: Some(source.report),
    })
}

/// Titles with the file's name before them.
fn under(file: &str, records: Vec<(String, UsageRecords)>) -> Vec<(String, UsageRecords)> {
    let records = records.into_iter();
    records
        .map(|(title, records)| (format!("{file}, {title}"), records))
        .collect()
}

/// A file's content; bounded, since any path may be given.
fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let unreadable = || format!("cannot read `{}`", path.display());
    let mut bytes = Vec::new();
    let file = File::open(path).with_context(unreadable)?;
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .with_context(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        bail!(
            "`{}` is longer than 1 GiB, the most that is read",
            path.display()
        );
    }
    Ok(bytes)
}

/// The file of live ranges beside a buffer assignment, compressed or not.
fn live_ranges(path: &Path) -> anyhow::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(stem) = name
        .strip_suffix(".gz")
        .unwrap_or(&name)
        .strip_suffix(ASSIGNMENT)
    else {
        bail!(
            "`{}` is a buffer assignment, expected a name that ends with {ASSIGNMENT}: the live ranges are looked for beside it, in the file whose name ends with {LIVE_RANGE} instead",
            path.display()
        );
    };
    let plain = path.with_file_name(format!("{stem}{LIVE_RANGE}"));
    let packed = path.with_file_name(format!("{stem}{LIVE_RANGE}.gz"));
    let found = [&plain, &packed]
        .into_iter()
        .find(|candidate| candidate.exists());
    found.cloned().with_context(|| {
        format!("`{}` is a buffer assignment, expected its live ranges beside it in `{}`, which is not there", path.display(), plain.display())
    })
}
