//! `--backend-config=<backend>,<key>=<value>` and `--backend-config=<key>=<value>`.

use crate::{
    error::ConfigError,
    hints::suggest::{did_you_mean, nearest},
    vocabulary::{
        backends::{self, BACKENDS},
        notice::Notice,
    },
};

/// What one `--backend-config` argument sets.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackendSetting {
    /// The `max_batch_size` of auto-completed models, of one backend or (`None`) of all.
    DefaultMaxBatchSize {
        /// The backend.
        backend: Option<String>,
        /// The size; 0 leaves batching off.
        size: u32,
    },
    /// ONNX Runtime: threads that compute one operator, for models that set no `intra_op_thread_count`.
    IntraOpThreads(u32),
    /// ONNX Runtime: threads that compute independent operators, for models that set no `inter_op_thread_count`.
    InterOpThreads(u32),
    /// Accepted without effect; the server logs it once.
    NoEffect(Notice),
}

const DEFAULT_MAX_BATCH_SIZE: &str = "default-max-batch-size";
const INTRA_OP: &str = "intra_op_thread_count";
const INTER_OP: &str = "inter_op_thread_count";
const GLOBAL_POOL: &str = "enable-global-threadpool";
const KEYS: &[&str] = &[DEFAULT_MAX_BATCH_SIZE, INTRA_OP, INTER_OP, GLOBAL_POOL];
/// Keys that Triton reads for the whole server and that have no effect here.
const GLOBAL_WITHOUT_EFFECT: &[&str] = &["backend-directory", "min-compute-capability"];
/// More than any batch: a larger one is a mistake.
const MAX_BATCH_SIZE: u32 = 1 << 24;
/// More than any machine has processors.
const MAX_THREADS: u32 = 4096;

/// Reads the argument of `--backend-config`.
///
/// # Errors
/// [`ConfigError::BackendFlag`] for an argument in another form, an unknown key of one of Skep's backends, a value that
/// the key does not allow, or a setting that is not supported yet.
pub fn parse_backend_config(arg: &str) -> Result<BackendSetting, ConfigError> {
    let flag = BackendFlag(arg);
    let form = "expected `<backend>,<key>=<value>` or `<key>=<value>`";
    let (name, value) = arg.split_once('=').ok_or_else(|| flag.error(form))?;
    let (backend, key) = match name.split_once(',') {
        Some((backend, key)) => (Some(backend.trim()).filter(|b| !b.is_empty()), key.trim()),
        None => (None, name.trim()),
    };
    if key.is_empty() {
        return Err(flag.error(form));
    }
    match backend {
        Some(backend) if !BACKENDS.contains(&backend) => Ok(flag.no_effect(&format!(
            "there is no backend `{backend}`, only `{}`",
            BACKENDS.join("`, `")
        ))),
        _ if key == DEFAULT_MAX_BATCH_SIZE => Ok(BackendSetting::DefaultMaxBatchSize {
            backend: backend.map(str::to_owned),
            size: flag.number(value, MAX_BATCH_SIZE)?,
        }),
        Some(backends::ONNXRUNTIME) => flag.onnxruntime(key, value),
        None if GLOBAL_WITHOUT_EFFECT.contains(&key) => {
            Ok(flag.no_effect("backends are built in and use no GPU"))
        }
        _ => Err(flag.unknown_key(key)),
    }
}

struct BackendFlag<'a>(&'a str);

impl BackendFlag<'_> {
    fn onnxruntime(&self, key: &str, value: &str) -> Result<BackendSetting, ConfigError> {
        match key {
            INTRA_OP => self
                .number(value, MAX_THREADS)
                .map(BackendSetting::IntraOpThreads),
            INTER_OP => self
                .number(value, MAX_THREADS)
                .map(BackendSetting::InterOpThreads),
            GLOBAL_POOL => match value.trim() {
                "0" | "false" => {
                    Ok(self.no_effect("it is the default; every model has its own threads"))
                }
                "1" | "true" => Err(self.error("not supported yet")),
                _ => Err(self.error("expected `0` or `1`")),
            },
            _ => Err(self.unknown_key(key)),
        }
    }

    fn number(&self, value: &str, max: u32) -> Result<u32, ConfigError> {
        let number = value.trim().parse().ok().filter(|n| *n <= max);
        number.ok_or_else(|| {
            self.error(&format!(
                "expected an integer from 0 to {max}, got `{value}`"
            ))
        })
    }

    fn unknown_key(&self, key: &str) -> ConfigError {
        if KEYS.contains(&key) {
            return self.error(&format!("key `{key}` belongs to backend `onnxruntime`"));
        }
        let hint = did_you_mean(nearest(key, KEYS.iter().copied()));
        ConfigError::BackendFlag {
            argument: self.0.to_owned(),
            reason: format!("unknown key `{key}`"),
            hint,
        }
    }

    fn error(&self, reason: &str) -> ConfigError {
        ConfigError::BackendFlag {
            argument: self.0.to_owned(),
            reason: reason.to_owned(),
            hint: None,
        }
    }

    fn no_effect(&self, why: &str) -> BackendSetting {
        BackendSetting::NoEffect(Notice::new(
            format!("--backend-config={}", self.0),
            format!("no effect: {why}"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::{BackendSetting, parse_backend_config};

    #[test]
    fn settings_are_read() {
        let batch = |backend: Option<&str>, size| BackendSetting::DefaultMaxBatchSize {
            backend: backend.map(str::to_owned),
            size,
        };
        for (arg, expected) in [
            ("default-max-batch-size=8", batch(None, 8)),
            (",default-max-batch-size=8", batch(None, 8)),
            (
                "onnxruntime,default-max-batch-size=0",
                batch(Some("onnxruntime"), 0),
            ),
            ("mock, default-max-batch-size = 3", batch(Some("mock"), 3)),
            (
                "onnxruntime,intra_op_thread_count=4",
                BackendSetting::IntraOpThreads(4),
            ),
            (
                "onnxruntime,inter_op_thread_count=0",
                BackendSetting::InterOpThreads(0),
            ),
        ] {
            assert_eq!(parse_backend_config(arg), Ok(expected), "{arg}");
        }
    }

    #[test]
    fn settings_without_effect_get_a_notice() {
        for (arg, expected) in [
            (
                "python,shm-default-byte-size=1048576",
                "`--backend-config=python,shm-default-byte-size=1048576`: no effect: there is no backend `python`, only `onnxruntime`, `embedded`, `mock`",
            ),
            (
                "onnxruntime,enable-global-threadpool=0",
                "`--backend-config=onnxruntime,enable-global-threadpool=0`: no effect: it is the default; every model has its own threads",
            ),
            (
                "backend-directory=/opt",
                "`--backend-config=backend-directory=/opt`: no effect: backends are built in and use no GPU",
            ),
        ] {
            let Ok(BackendSetting::NoEffect(notice)) = parse_backend_config(arg) else {
                panic!("{arg}")
            };
            assert_eq!(notice.to_string(), expected);
        }
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (arg, expected) in [
            (
                "onnxruntime",
                "`--backend-config=onnxruntime`: expected `<backend>,<key>=<value>` or `<key>=<value>`",
            ),
            (
                "onnxruntime,=1",
                "`--backend-config=onnxruntime,=1`: expected `<backend>,<key>=<value>` or `<key>=<value>`",
            ),
            (
                "default-max-batch-size=-1",
                "`--backend-config=default-max-batch-size=-1`: expected an integer from 0 to 16777216, got `-1`",
            ),
            (
                "onnxruntime,intra_op_thread_count=4097",
                "`--backend-config=onnxruntime,intra_op_thread_count=4097`: expected an integer from 0 to 4096, got `4097`",
            ),
            (
                "onnxruntime,enable-global-threadpool=1",
                "`--backend-config=onnxruntime,enable-global-threadpool=1`: not supported yet",
            ),
            (
                "onnxruntime,enable-global-threadpool=2",
                "`--backend-config=onnxruntime,enable-global-threadpool=2`: expected `0` or `1`",
            ),
            (
                "onnxruntime,intra_op_threads_count=1",
                "`--backend-config=onnxruntime,intra_op_threads_count=1`: unknown key `intra_op_threads_count`\ndid you mean `intra_op_thread_count`?",
            ),
            (
                "quatsch=1",
                "`--backend-config=quatsch=1`: unknown key `quatsch`",
            ),
            (
                "mock,intra_op_thread_count=1",
                "`--backend-config=mock,intra_op_thread_count=1`: key `intra_op_thread_count` belongs to backend `onnxruntime`",
            ),
        ] {
            assert_eq!(
                parse_backend_config(arg).expect_err(arg).to_string(),
                expected,
                "{arg}"
            );
        }
    }
}
