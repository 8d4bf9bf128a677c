//! Triton's trace file: a JSON array of objects.
//!
//! ```text
//! {"id":1,"model_name":"m","model_version":1,"request_id":"7","parent_id":2}   once for each trace
//! {"id":1,"timestamps":[{"name":"REQUEST_START","ns":1234},...]}               nanoseconds since the machine's start
//! {"id":1,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"x","data":"1,2","shape":"1,2","dtype":"FP32"}}
//! ```
//!
//! With a log frequency of 0 all traces go to one file as they end. It is a whole array after each write, and the first
//! write of a server replaces what it held. With a log frequency of N the first N traces go to `FILE.0`, the next ones to
//! `FILE.1`, and so on. The file under way is `FILE.part-<number>` until it has its N traces, or settings change, or the
//! server stops.
//!
//! Source: Triton, user guide, "Trace"; `trace_summary.py` reads it.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};
use skep_runtime::{TraceRecord, TracedTensor};

use crate::{
    settings::TraceLevels,
    writer::{FinishedTrace, SinkOutcome, TraceSink},
};

/// Makes sure that a trace file can be written, without changing it.
///
/// # Errors
/// Why it cannot.
pub fn probe(path: &Path) -> io::Result<()> {
    let existed = path.try_exists()?;
    OpenOptions::new().create(true).append(true).open(path)?;
    if !existed {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Writes traces to files.
#[derive(Debug)]
pub(crate) struct TraceFile {
    path: PathBuf,
    /// The file of all traces, once it has some.
    whole: Option<ArrayFile>,
    /// The files under way, by the number of the sampler that chose their traces.
    parts: HashMap<u64, PartFile>,
    next_index: u64,
    next_id: u64,
}

/// One of several files.
#[derive(Debug)]
struct PartFile {
    file: ArrayFile,
    path: PathBuf,
    traces: u32,
}

impl TraceFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            whole: None,
            parts: HashMap::new(),
            next_index: 0,
            next_id: 1,
        }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = OsString::from(&self.path);
        name.push(suffix);
        name.into()
    }

    fn write_whole(&mut self, text: &str) -> io::Result<()> {
        let file = match &mut self.whole {
            Some(file) => file,
            None => self.whole.insert(ArrayFile::create(&self.path)?),
        };
        file.append(text)
    }

    /// Adds a trace to the file under way of its sampler, and finishes that file if it is full.
    fn write_part(&mut self, trace: &FinishedTrace, text: &str) -> io::Result<()> {
        let number = trace.sampler.number;
        if !self.parts.contains_key(&number) {
            let path = self.beside(&format!(".part-{number}"));
            let file = ArrayFile::create(&path)?;
            let part = PartFile {
                file,
                path,
                traces: 0,
            };
            self.parts.insert(number, part);
        }
        let part = self.parts.get_mut(&number).expect("it was inserted");
        part.file.append(text)?;
        part.traces += 1;
        if part.traces >= trace.sampler.log_frequency {
            self.finish_part(number)?;
        }
        Ok(())
    }

    /// Gives a file under way its final name.
    fn finish_part(&mut self, number: u64) -> io::Result<()> {
        let Some(part) = self.parts.remove(&number) else {
            return Ok(());
        };
        let name = self.beside(&format!(".{}", self.next_index));
        self.next_index += 1;
        fs::rename(part.path, name)
    }
}

impl TraceSink for TraceFile {
    fn name(&self) -> String {
        format!("the trace file `{}`", self.path.display())
    }

    fn write(&mut self, traces: Vec<FinishedTrace>) -> SinkOutcome {
        let mut outcome = SinkOutcome::default();
        let (mut whole, mut in_whole) = (String::new(), 0);
        let mut note = |traces: usize, result: io::Result<()>| match result {
            Ok(()) => outcome.written += traces,
            Err(error) => {
                outcome.lost += traces;
                outcome.error = Some(error.to_string());
            }
        };
        for trace in traces {
            let text = objects(&trace.record, trace.sampler.levels, 0, &mut self.next_id);
            if text.is_empty() {
                continue;
            }
            if trace.sampler.log_frequency == 0 {
                join(&mut whole, &text);
                in_whole += 1;
            } else {
                note(1, self.write_part(&trace, &text));
            }
        }
        if in_whole > 0 {
            note(in_whole, self.write_whole(&whole));
        }
        outcome
    }

    fn finish(&mut self) -> SinkOutcome {
        let mut outcome = SinkOutcome::default();
        let mut numbers: Vec<u64> = self.parts.keys().copied().collect();
        numbers.sort_unstable();
        for number in numbers {
            if let Err(error) = self.finish_part(number) {
                outcome.error = Some(error.to_string());
            }
        }
        outcome
    }
}

/// A file that holds a JSON array after each write.
#[derive(Debug)]
struct ArrayFile {
    file: File,
    is_empty: bool,
}

impl ArrayFile {
    fn create(path: &Path) -> io::Result<Self> {
        let file = File::create(path)?;
        Ok(Self {
            file,
            is_empty: true,
        })
    }

    /// Adds elements, separated by commas, over the array's end.
    fn append(&mut self, elements: &str) -> io::Result<()> {
        let start = if self.is_empty { "[" } else { ",\n" };
        if !self.is_empty {
            self.file.seek(SeekFrom::End(-1))?;
        }
        self.file
            .write_all(format!("{start}{elements}]").as_bytes())?;
        self.is_empty = false;
        Ok(())
    }
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() {
        text.push_str(",\n");
    }
    text.push_str(more);
}

/// The objects of a trace and its children, separated by commas. A request that reached no model has none.
fn objects(record: &TraceRecord, levels: TraceLevels, parent: u64, next_id: &mut u64) -> String {
    let mut text = String::new();
    let Some((model, version)) = &record.model else {
        return text;
    };
    let id = *next_id;
    *next_id += 1;
    let mut head = Map::new();
    head.insert("id".to_owned(), json!(id));
    head.insert("model_name".to_owned(), json!(model.as_str()));
    head.insert("model_version".to_owned(), json!(version.get()));
    if !record.request_id.is_empty() {
        head.insert("request_id".to_owned(), json!(record.request_id));
    }
    if parent != 0 {
        head.insert("parent_id".to_owned(), json!(parent));
    }
    join(&mut text, &Value::Object(head).to_string());
    if levels.timestamps {
        let points = record.points.iter();
        let points = points.map(|(name, at)| json!({"name": name, "ns": at.as_nanos()}));
        let points: Vec<_> = points.collect();
        join(
            &mut text,
            &json!({"id": id, "timestamps": points}).to_string(),
        );
    }
    if levels.tensors {
        for traced in &record.tensors {
            join(&mut text, &tensor(id, traced).to_string());
        }
    }
    for child in &record.children {
        let child = objects(&child.take(), levels, id, next_id);
        if !child.is_empty() {
            join(&mut text, &child);
        }
    }
    text
}

fn tensor(id: u64, traced: &TracedTensor) -> Value {
    let tensor = &traced.tensor;
    let mut data = Vec::new();
    // BYTES that are no text have no form here; Triton writes them as they are, which is no JSON.
    let data = match skep_wire::json::write(tensor.view(), &mut data) {
        Ok(()) => String::from_utf8_lossy(&data).into_owned(),
        Err(_) => String::new(),
    };
    let data = data.trim_start_matches('[').trim_end_matches(']');
    let shape: Vec<String> = tensor.shape().dims().iter().map(usize::to_string).collect();
    json!({
        "id": id,
        "activity": traced.point,
        "tensor": {
            "name": &*traced.name,
            "data": data,
            "shape": shape.join(","),
            "dtype": tensor.datatype().protocol_name(),
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use skep_runtime::RequestTrace;
    use skep_tensor::Tensor;
    use skep_types::{DataType, ModelName, ModelVersion, Shape, Time};

    use super::*;
    use crate::{sampler::Sampler, settings::TraceSettings};

    const BOTH: TraceLevels = TraceLevels {
        timestamps: true,
        tensors: true,
    };

    fn record(model: &str) -> TraceRecord {
        TraceRecord {
            model: Some((
                ModelName::new(model).expect("a name"),
                ModelVersion::new(2).expect("a version"),
            )),
            points: vec![("REQUEST_START", Time::from_nanos(5))],
            ..TraceRecord::default()
        }
    }

    fn sampler(number: u64, log_frequency: u32) -> Arc<Sampler> {
        let settings = TraceSettings {
            levels: BOTH,
            log_frequency,
            ..TraceSettings::default()
        };
        Arc::new(Sampler::new(&settings, number))
    }

    fn trace(sampler: &Arc<Sampler>, record: TraceRecord) -> FinishedTrace {
        FinishedTrace {
            record,
            sampler: Arc::clone(sampler),
            parent: None,
        }
    }

    fn written(file: &mut TraceFile, traces: Vec<FinishedTrace>) {
        let expected = SinkOutcome {
            written: traces.len(),
            ..SinkOutcome::default()
        };
        assert_eq!(file.write(traces), expected);
    }

    fn read(path: &Path) -> Value {
        let text = fs::read_to_string(path).expect("a file");
        serde_json::from_str(&text).expect("JSON")
    }

    fn ids(path: &Path) -> Vec<u64> {
        let read = read(path);
        let entries = read.as_array().expect("an array").iter();
        let heads = entries.filter(|entry| entry.get("model_name").is_some());
        heads.filter_map(|head| head["id"].as_u64()).collect()
    }

    #[test]
    fn a_trace_is_a_head_its_timestamps_and_its_tensors() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("trace.json");
        let mut file = TraceFile::new(path.clone());
        let shape = Shape::new(&[1, 2]).expect("a shape");
        let data: Vec<u8> = [1i32, -2]
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        let tensor = Tensor::new(DataType::Int32, shape, data.into()).expect("a tensor");
        let parent = RequestTrace::new(true);
        let child = parent.child();
        child.mark_at("REQUEST_START", Time::from_nanos(6));
        let mut with_all = TraceRecord {
            request_id: "a\"7".to_owned(),
            tensors: vec![TracedTensor {
                point: "TENSOR_QUEUE_INPUT",
                name: "x".into(),
                tensor,
            }],
            ..record("m")
        };
        with_all.children = parent.take().children;
        let sampler = sampler(1, 0);
        written(&mut file, vec![trace(&sampler, with_all)]);
        let expected = json!([
            {"id": 1, "model_name": "m", "model_version": 2, "request_id": "a\"7"},
            {"id": 1, "timestamps": [{"name": "REQUEST_START", "ns": 5}]},
            {"id": 1, "activity": "TENSOR_QUEUE_INPUT",
             "tensor": {"name": "x", "data": "1,-2", "shape": "1,2", "dtype": "INT32"}},
        ]);
        // The child reached no model, and is left out.
        assert_eq!(read(&path), expected);
        written(
            &mut file,
            vec![trace(&sampler, record("n")), trace(&sampler, record("o"))],
        );
        assert_eq!(ids(&path), [1, 2, 3]);
    }

    #[test]
    fn a_child_names_its_parent() {
        let mut next_id = 4;
        let text = objects(&record("m"), TraceLevels::OFF, 3, &mut next_id);
        assert_eq!(
            text,
            r#"{"id":4,"model_name":"m","model_version":2,"parent_id":3}"#
        );
        assert_eq!(next_id, 5);
    }

    #[test]
    fn files_of_n_traces_have_their_name_when_they_are_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("t");
        let mut file = TraceFile::new(path.clone());
        let (one, other) = (sampler(1, 2), sampler(2, 2));
        let of = |sampler| trace(sampler, record("m"));
        written(&mut file, vec![of(&one), of(&other), of(&one)]);
        let names = || {
            let entries = fs::read_dir(directory.path()).expect("a directory");
            let names = entries.map(|entry| entry.expect("an entry").file_name());
            let mut names: Vec<String> = names
                .map(|name| name.into_string().expect("text"))
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(), ["t.0", "t.part-2"]);
        assert_eq!(ids(&directory.path().join("t.0")), [1, 3]);
        assert_eq!(file.finish(), SinkOutcome::default());
        assert_eq!(names(), ["t.0", "t.1"]);
        assert_eq!(ids(&directory.path().join("t.1")), [2]);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("absent/t");
        let mut file = TraceFile::new(path.clone());
        let (whole, parts) = (sampler(1, 0), sampler(2, 2));
        let traces = vec![
            trace(&whole, record("m")),
            trace(&parts, record("m")),
            trace(&whole, record("m")),
        ];
        let outcome = file.write(traces);
        assert_eq!((outcome.written, outcome.lost), (0, 3));
        assert!(outcome.error.is_some());
        assert!(probe(&path).is_err());
        let there = directory.path().join("t");
        probe(&there).expect("writable");
        assert!(!there.exists());
    }
}
