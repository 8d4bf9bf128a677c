//! The file of a profile.

use serde::{Deserialize, Serialize};
use skep_client::TensorRow;

/// The format of [`ProfileFile`].
pub const FORMAT: u32 = 1;

/// Profiles of models, all measured on one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileFile {
    /// [`FORMAT`]; first, so that a reader knows the file by it.
    pub skep_profile: u32,
    /// Where the models were measured.
    pub machine: Machine,
    /// The models.
    pub models: Vec<ModelProfile>,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor, as the system names it.
    pub processor: String,
    /// The cores that could be used.
    pub cores: u32,
    /// The server's version.
    pub skep: String,
}

/// What a model takes, and how fast it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// Its name.
    pub name: String,
    /// BLAKE3 over its files, in hexadecimal: a profile of other files is not continued.
    pub files: String,
    /// BLAKE3 over its files without its configuration: a server uses the profile for these files alone. Empty in older
    /// files, which no server uses.
    #[serde(default)]
    pub model_files: String,
    /// Inputs and the shapes of one request, as in `x[1,3,224,224]`.
    pub request: String,
    /// From nothing to the first answer.
    pub start: Option<StartTimes>,
    /// The tensors that its instances share, with their digests.
    pub tensors: Vec<TensorRow>,
    /// The configurations that were measured.
    pub configurations: Vec<MeasuredConfiguration>,
    /// The cores and instances with which all batches were measured.
    pub finished: Vec<Direction>,
}

/// A number of cores, and of instances on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// Cores that the server had.
    pub cpus: u32,
    /// Instances of the model.
    pub instances: u32,
}

/// From nothing to the first answer, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct StartTimes {
    /// The server's process, until it is ready.
    pub process_ms: f64,
    /// The load, with baked weights where the model has a baked form.
    pub load_ms: f64,
    /// The first inference.
    pub first_inference_ms: f64,
    /// A later one.
    pub inference_ms: f64,
}

/// One way to run the model, and what it takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MeasuredConfiguration {
    /// Cores that the server had.
    pub cpus: u32,
    /// Instances of the model: batches that run at the same time.
    pub instances: u32,
    /// Threads of each.
    pub threads: u32,
    /// Requests in a batch.
    pub batch: u32,
    /// What a batch took, over the server's HTTP, with as many batches outstanding as there are instances.
    pub latency: LatencyFigures,
    /// Requests a second: batches times their size.
    pub requests_per_second: f64,
    /// Bytes of the process that it shares with nobody, beyond those that it had without the model.
    pub private_bytes: u64,
}

/// Quantiles of latencies, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct LatencyFigures {
    /// The median.
    pub p50_ms: f64,
    /// 95 of 100 were faster.
    pub p95_ms: f64,
    /// 99 of 100 were faster.
    pub p99_ms: f64,
    /// How many batches were measured.
    pub batches: usize,
}

/// Why a file is no profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON, or not of this form.
    #[error("not a profile of `skep profile`: {0}")]
    Form(String),
    /// Another format.
    #[error("a profile of format {0}, expected {FORMAT}: measure it again with `skep profile`")]
    Format(u32),
    /// A figure that nothing can have.
    #[error("model `{model}`: {what}")]
    Figure {
        /// The model.
        model: String,
        /// Which figure, and what was expected.
        what: String,
    },
}

impl ProfileFile {
    /// A file without models.
    #[must_use]
    pub const fn new(machine: Machine) -> Self {
        Self {
            skep_profile: FORMAT,
            machine,
            models: Vec::new(),
        }
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ProfileError`].
    pub fn read(text: &str) -> Result<Self, ProfileError> {
        #[derive(Deserialize)]
        struct Any {
            skep_profile: u32,
        }
        let form = |error: serde_json::Error| ProfileError::Form(error.to_string());
        let any: Any = serde_json::from_str(text).map_err(form)?;
        if any.skep_profile != FORMAT {
            return Err(ProfileError::Format(any.skep_profile));
        }
        let file: Self = serde_json::from_str(text).map_err(form)?;
        file.models.iter().try_for_each(ModelProfile::check)?;
        Ok(file)
    }
}

impl ModelProfile {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(name: &str, files: &str, model_files: &str) -> Self {
        Self {
            name: name.to_owned(),
            files: files.to_owned(),
            model_files: model_files.to_owned(),
            request: String::new(),
            start: None,
            tensors: Vec::new(),
            configurations: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Bytes of its tensors.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        let bytes = self.tensors.iter().map(|tensor| tensor.bytes);
        bytes.fold(0, u64::saturating_add)
    }

    /// The measured configuration with these figures.
    #[must_use]
    pub fn find(&self, direction: Direction, batch: u32) -> Option<&MeasuredConfiguration> {
        self.configurations.iter().find(|one| {
            (one.cpus, one.instances, one.batch) == (direction.cpus, direction.instances, batch)
        })
    }

    fn check(&self) -> Result<(), ProfileError> {
        let wrong = |what: String| {
            Err(ProfileError::Figure {
                model: self.name.clone(),
                what,
            })
        };
        for tensor in &self.tensors {
            let is_digest = tensor.digest.len() == 64
                && tensor.digest.bytes().all(|byte| byte.is_ascii_hexdigit());
            if !is_digest {
                let digest = &tensor.digest;
                return wrong(format!(
                    "the digest `{digest}`, expected 64 hexadecimal digits"
                ));
            }
        }
        for (number, one) in self.configurations.iter().enumerate() {
            let counts = [one.cpus, one.instances, one.threads, one.batch];
            if counts.contains(&0) {
                return wrong(format!(
                    "configuration {number}: CPUs, instances, threads and batch are {counts:?}, expected numbers above 0"
                ));
            }
            let latency = [one.latency.p50_ms, one.latency.p95_ms, one.latency.p99_ms];
            let is_positive = |figure: &f64| figure.is_finite() && *figure > 0.0;
            if !latency.iter().all(is_positive) || !is_positive(&one.requests_per_second) {
                return wrong(format!(
                    "configuration {number}: latencies and rate are {latency:?} and {}, expected numbers above 0",
                    one.requests_per_second
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> ProfileFile {
        ProfileFile {
            skep_profile: FORMAT,
            machine: Machine {
                processor: "a processor".to_owned(),
                cores: 2,
                skep: "0.1.0".to_owned(),
            },
            models: vec![ModelProfile {
                name: "m".to_owned(),
                files: "00".to_owned(),
                model_files: "01".to_owned(),
                request: "x[1,4]".to_owned(),
                start: Some(StartTimes::default()),
                tensors: vec![TensorRow {
                    digest: "ab".repeat(32),
                    bytes: 12,
                }],
                configurations: vec![MeasuredConfiguration {
                    cpus: 1,
                    instances: 1,
                    threads: 1,
                    batch: 1,
                    latency: LatencyFigures {
                        p50_ms: 1.0,
                        p95_ms: 1.5,
                        p99_ms: 2.0,
                        batches: 30,
                    },
                    requests_per_second: 900.0,
                    private_bytes: 5,
                }],
                finished: vec![Direction {
                    cpus: 1,
                    instances: 1,
                }],
            }],
        }
    }

    fn written(change: impl FnOnce(&mut ProfileFile)) -> String {
        let mut file = file();
        change(&mut file);
        serde_json::to_string(&file).expect("JSON")
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(ProfileFile::read(&written(|_| {})), Ok(file()));
        assert_eq!(file().models[0].tensor_bytes(), 12);
    }

    #[test]
    fn damaged_and_foreign_files_are_refused() {
        let refused = |text: &str| ProfileFile::read(text).expect_err("refused").to_string();
        for (text, expected) in [
            ("[]", "not a profile of `skep profile`: "),
            ("{\"a\":1}", "missing field `skep_profile`"),
            ("{\"skep_profile\":1}", "missing field `machine`"),
            ("{\"skep_profile\":2}", "a profile of format 2, expected 1"),
        ] {
            let error = refused(text);
            assert!(error.contains(expected), "{error}");
        }
        let error = refused(&written(|file| file.models[0].configurations[0].batch = 0));
        assert!(
            error.contains("model `m`: configuration 0: CPUs"),
            "{error}"
        );
        let error = refused(&written(|file| {
            file.models[0].configurations[0].latency.p95_ms = -1.0;
        }));
        assert!(
            error.contains("latencies and rate are [1.0, -1.0, 2.0] and 900"),
            "{error}"
        );
        let error = refused(&written(|file| {
            file.models[0].tensors[0].digest.pop().map_or((), drop)
        }));
        assert!(error.contains("expected 64 hexadecimal digits"), "{error}");
        // JSON has no infinity: the writer makes it null.
        let error = refused(&written(|file| {
            file.models[0].configurations[0].requests_per_second = f64::INFINITY;
        }));
        assert!(error.starts_with("not a profile"), "{error}");
    }
}
