//! Sessions: models in the library, and their runs.

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::{self, NonNull},
    sync::Arc,
    time::Duration,
};

use ort_sys::{
    ExecutionMode, GraphOptimizationLevel, OrtLoggingLevel, OrtRunOptions, OrtSession,
    OrtSessionOptions, OrtStatusPtr, OrtValue,
};
use smallvec::SmallVec;

use super::{
    ApiError, ApiErrorCode, OrtRuntime, OrtTensor, PoolThreads, StartedRun, WeightTensors, check,
    threads, value::filled,
};

/// Up to this number of tensors, a run's lists are on the stack.
const INLINE_TENSORS: usize = 8;
/// A list of a run's tensors.
pub(crate) type TensorList<T> = SmallVec<[T; INLINE_TENSORS]>;

/// How a session is made.
#[derive(Debug)]
pub(crate) struct SessionOptions {
    runtime: &'static OrtRuntime,
    raw: NonNull<OrtSessionOptions>,
    /// The weights that sessions with these options use in place.
    weights: Option<Arc<WeightTensors>>,
    /// Their threads besides the callers', if they have some.
    pool: Option<Arc<PoolThreads>>,
}

// SAFETY: only sessions are made through a shared reference, for which the library reads the options.
unsafe impl Sync for SessionOptions {}

impl Drop for SessionOptions {
    fn drop(&mut self) {
        // SAFETY: the options are ours and are not used again; sessions copied them.
        unsafe { (self.runtime.api().ReleaseSessionOptions)(self.raw.as_ptr()) }
    }
}

impl SessionOptions {
    /// The library's defaults.
    pub(crate) fn new(runtime: &'static OrtRuntime) -> Result<Self, ApiError> {
        let mut raw: *mut OrtSessionOptions = ptr::null_mut();
        // SAFETY: the out parameter is valid for writing.
        let status = unsafe { (runtime.api().CreateSessionOptions)(&raw mut raw) };
        check(runtime.api(), status)?;
        Ok(Self {
            runtime,
            raw: filled(raw),
            weights: None,
            pool: None,
        })
    }

    /// Calls a function that changes the options.
    fn set(
        &mut self,
        call: impl FnOnce(*mut OrtSessionOptions) -> OrtStatusPtr,
    ) -> Result<(), ApiError> {
        check(self.runtime.api(), call(self.raw.as_ptr()))
    }

    /// Threads within an operator and across operators; 0 leaves the number to the library.
    pub(crate) fn threads(&mut self, intra: u32, inter: u32) -> Result<(), ApiError> {
        let [intra, inter] = [intra, inter].map(|n| c_int::try_from(n).unwrap_or(c_int::MAX));
        let api = self.runtime.api();
        // SAFETY: the options are live, here and below.
        self.set(|raw| unsafe { (api.SetIntraOpNumThreads)(raw, intra) })?;
        // SAFETY: as above.
        self.set(|raw| unsafe { (api.SetInterOpNumThreads)(raw, inter) })?;
        if (intra, inter) == (1, 1) {
            return Ok(());
        }
        let pool = Arc::new(PoolThreads::default());
        let shared = Arc::as_ptr(&pool).cast_mut().cast::<c_void>();
        // SAFETY: the options are live. They and the sessions made with them keep the pool, and a session ends its
        // threads before it drops the pool; here and below.
        self.set(|raw| unsafe {
            (api.SessionOptionsSetCustomCreateThreadFn)(raw, Some(threads::create))
        })?;
        // SAFETY: as above.
        self.set(|raw| unsafe { (api.SessionOptionsSetCustomThreadCreationOptions)(raw, shared) })?;
        // SAFETY: as above.
        self.set(|raw| unsafe {
            (api.SessionOptionsSetCustomJoinThreadFn)(raw, Some(threads::join))
        })?;
        self.pool = Some(pool);
        Ok(())
    }

    /// Whether independent operators run in parallel.
    pub(crate) fn parallel(&mut self, parallel: bool) -> Result<(), ApiError> {
        let mode = if parallel {
            ExecutionMode::ORT_PARALLEL
        } else {
            ExecutionMode::ORT_SEQUENTIAL
        };
        let api = self.runtime.api();
        // SAFETY: the options are live.
        self.set(|raw| unsafe { (api.SetSessionExecutionMode)(raw, mode) })
    }

    /// How far the graph is rewritten.
    pub(crate) fn optimization(&mut self, level: GraphOptimizationLevel) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: the options are live.
        self.set(|raw| unsafe { (api.SetSessionGraphOptimizationLevel)(raw, level) })
    }

    /// Whether intermediate tensors come from the library's arena, and whether the library lays them out in advance.
    pub(crate) fn memory(&mut self, arena: bool, pattern: bool) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: the options are live, here and below.
        self.set(|raw| unsafe {
            if arena {
                (api.EnableCpuMemArena)(raw)
            } else {
                (api.DisableCpuMemArena)(raw)
            }
        })?;
        // SAFETY: as above.
        self.set(|raw| unsafe {
            if pattern {
                (api.EnableMemPattern)(raw)
            } else {
                (api.DisableMemPattern)(raw)
            }
        })
    }

    /// The library logs errors only.
    pub(crate) fn quiet(&mut self) -> Result<(), ApiError> {
        let api = self.runtime.api();
        let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR as c_int;
        // SAFETY: the options are live.
        self.set(|raw| unsafe { (api.SetSessionLogSeverityLevel)(raw, level) })
    }

    /// The model is in the library's own format, whatever its file is called.
    pub(crate) fn own_format(&mut self) -> Result<(), ApiError> {
        self.entry(c"session.load_model_format", c"ORT")
    }

    /// The library writes the rewritten graph to this file.
    pub(crate) fn rewritten_to(&mut self, path: &Path) -> Result<(), ApiError> {
        let path = path_text(path)?;
        let api = self.runtime.api();
        // SAFETY: the options are live; the path is copied by the call.
        self.set(|raw| unsafe { (api.SetOptimizedModelFilePath)(raw, path.as_ptr()) })
    }

    /// Files that a message names for its tensors lie in this directory.
    pub(crate) fn external_data_in(&mut self, directory: &Path) -> Result<(), ApiError> {
        // The library treats an empty directory as none.
        let named = directory.as_os_str().is_empty();
        let directory = path_text(if named { Path::new(".") } else { directory })?;
        let key = c"session.model_external_initializers_file_folder_path";
        self.entry(key, &directory)
    }

    /// Sessions use these weights in place instead of the graph's weights of the same names. Call it at most once.
    pub(crate) fn weights(&mut self, weights: Arc<WeightTensors>) -> Result<(), ApiError> {
        let api = self.runtime.api();
        for (name, value) in weights.values() {
            // SAFETY: the options are live; the name is copied; the value lives as long as the options and each session
            // made with them, which keep `weights`.
            self.set(|raw| unsafe {
                (api.AddInitializer)(raw, name.as_ptr(), value.raw.as_ptr())
            })?;
        }
        self.weights = Some(weights);
        Ok(())
    }

    /// One of the library's configuration entries.
    pub(crate) fn entry(&mut self, key: &CStr, value: &CStr) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: the options are live; both texts are copied by the call.
        self.set(|raw| unsafe { (api.AddSessionConfigEntry)(raw, key.as_ptr(), value.as_ptr()) })
    }
}

/// A path as the C API takes it.
fn path_text(path: &Path) -> Result<CString, ApiError> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| ApiError {
        code: ApiErrorCode::INVALID_ARGUMENT,
        message: format!("the path `{}` contains a zero byte", path.display()),
    })
}

/// A model in the library. Runs on any number of threads at once.
#[derive(Debug)]
pub(crate) struct Session {
    runtime: &'static OrtRuntime,
    pub(super) raw: NonNull<OrtSession>,
    /// Used in place; dropped after the session is released.
    weights: Option<Arc<WeightTensors>>,
    /// Its threads; dropped after the session is released.
    pool: Option<Arc<PoolThreads>>,
}

// SAFETY: a session is not bound to a thread.
unsafe impl Send for Session {}
// SAFETY: the C API allows concurrent calls of `Run` on one session, the only call made through a shared reference.
unsafe impl Sync for Session {}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: the session is ours and is not used again; a run in flight would hold a reference to it.
        unsafe { (self.runtime.api().ReleaseSession)(self.raw.as_ptr()) }
    }
}

impl Session {
    /// Loads the model at `path`, and files with external data beside it.
    pub(crate) fn from_file(
        runtime: &'static OrtRuntime,
        path: &Path,
        options: &SessionOptions,
    ) -> Result<Self, ApiError> {
        let path = path_text(path)?;
        let mut raw: *mut OrtSession = ptr::null_mut();
        // SAFETY: environment and options are live; the path is a C string that lives during the call.
        let status = unsafe {
            (runtime.api().CreateSession)(
                runtime.environment.as_ptr(),
                path.as_ptr(),
                options.raw.as_ptr(),
                &raw mut raw,
            )
        };
        check(runtime.api(), status)?;
        Ok(Self {
            runtime,
            raw: filled(raw),
            weights: options.weights.clone(),
            pool: options.pool.clone(),
        })
    }

    /// Loads the model of this message; its external data lies in the directory that the options name
    /// ([`SessionOptions::external_data_in`]).
    pub(crate) fn from_bytes(
        runtime: &'static OrtRuntime,
        message: &[u8],
        options: &SessionOptions,
    ) -> Result<Self, ApiError> {
        let mut raw: *mut OrtSession = ptr::null_mut();
        // SAFETY: environment and options are live; the message has that many bytes, and the library keeps none of
        // them.
        let status = unsafe {
            (runtime.api().CreateSessionFromArray)(
                runtime.environment.as_ptr(),
                message.as_ptr().cast(),
                message.len(),
                options.raw.as_ptr(),
                &raw mut raw,
            )
        };
        check(runtime.api(), status)?;
        Ok(Self {
            runtime,
            raw: filled(raw),
            weights: options.weights.clone(),
            pool: options.pool.clone(),
        })
    }

    /// Whether its weights are undamaged, as far as is known.
    pub(crate) fn is_sound(&self) -> bool {
        !self
            .weights
            .as_deref()
            .is_some_and(WeightTensors::are_damaged)
    }

    /// The library with its environment.
    pub(crate) const fn runtime(&self) -> &'static OrtRuntime {
        self.runtime
    }

    /// Notes that a run is about to begin on the calling thread.
    pub(crate) fn begin(&self) -> Option<StartedRun> {
        self.pool.as_ref().map(|pool| pool.begin())
    }

    /// Notes that the run is over. Returns its CPU time if that was measured.
    pub(crate) fn end(&self, started: Option<StartedRun>) -> Option<Duration> {
        self.pool.as_ref()?.end(started?)
    }

    /// Runs the model. The library writes an output that is `Some` in `prepared` in place; for each `None`, the result
    /// contains a tensor in the library's memory.
    ///
    /// # Panics
    /// If the numbers of names and values differ.
    pub(crate) fn run<'n>(
        &self,
        options: &RunOptions,
        input_names: impl Iterator<Item = &'n CStr>,
        inputs: &[OrtTensor<'_>],
        output_names: impl Iterator<Item = &'n CStr>,
        prepared: &[Option<OrtTensor<'_>>],
    ) -> Result<TensorList<Option<OrtTensor<'static>>>, ApiError> {
        if !self.is_sound() {
            return Err(ApiError {
                code: ApiErrorCode::FAIL,
                message: "the model's weights in the cache are damaged\n  load the model again, which bakes it again"
                    .to_owned(),
            });
        }
        let input_names: TensorList<*const c_char> = input_names.map(CStr::as_ptr).collect();
        let output_names: TensorList<*const c_char> = output_names.map(CStr::as_ptr).collect();
        assert_eq!(input_names.len(), inputs.len());
        assert_eq!(output_names.len(), prepared.len());
        let inputs: TensorList<*const OrtValue> =
            inputs.iter().map(|v| v.raw.as_ptr().cast_const()).collect();
        let mut outputs: TensorList<*mut OrtValue> = prepared
            .iter()
            .map(|v| v.as_ref().map_or(ptr::null_mut(), |v| v.raw.as_ptr()))
            .collect();
        // SAFETY: the session is live and may run on several threads; each list has the given number of
        // entries, which are live names and values; a value that is written borrows its memory exclusively.
        let status = unsafe {
            (self.runtime.api().Run)(
                self.raw.as_ptr(),
                options.raw.as_ptr().cast_const(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len(),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            )
        };
        let result = check(self.runtime.api(), status);
        // Even after a failure, the values are taken so that none leaks.
        let made = prepared.iter().zip(outputs).map(|(prepared, raw)| {
            let raw = NonNull::new(raw).filter(|_| prepared.is_none());
            raw.map(|raw| OrtTensor::owned(self.runtime, raw))
        });
        let made: TensorList<_> = made.collect();
        result.map(|()| made)
    }
}

/// The options of a run.
#[derive(Debug)]
pub(crate) struct RunOptions {
    runtime: &'static OrtRuntime,
    raw: NonNull<OrtRunOptions>,
}

// SAFETY: run options are not bound to a thread.
unsafe impl Send for RunOptions {}
// SAFETY: runs only read their options, but for the termination flag, which is atomic.
unsafe impl Sync for RunOptions {}

impl Drop for RunOptions {
    fn drop(&mut self) {
        // SAFETY: the options are ours and are not used again.
        unsafe { (self.runtime.api().ReleaseRunOptions)(self.raw.as_ptr()) }
    }
}

impl RunOptions {
    /// The library's defaults.
    pub(crate) fn new(runtime: &'static OrtRuntime) -> Result<Self, ApiError> {
        let api = runtime.api();
        let mut raw: *mut OrtRunOptions = ptr::null_mut();
        // SAFETY: the out parameter is valid for writing.
        check(api, unsafe { (api.CreateRunOptions)(&raw mut raw) })?;
        Ok(Self {
            runtime,
            raw: filled(raw),
        })
    }

    /// One of the library's configuration entries.
    pub(crate) fn entry(&mut self, key: &CStr, value: &CStr) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: the options are live; both texts are copied by the call.
        check(api, unsafe {
            (api.AddRunConfigEntry)(self.raw.as_ptr(), key.as_ptr(), value.as_ptr())
        })
    }

    /// Makes runs with these options end with an error after their current operator. Runs that begin before
    /// [`RunOptions::resume`] end at once.
    pub(crate) fn terminate(&self) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: the options are live; the library lets another thread than the run's make this call.
        check(api, unsafe {
            (api.RunOptionsSetTerminate)(self.raw.as_ptr())
        })
    }

    /// Lets later runs with these options complete again.
    pub(crate) fn resume(&self) -> Result<(), ApiError> {
        let api = self.runtime.api();
        // SAFETY: as above.
        check(api, unsafe {
            (api.RunOptionsUnsetTerminate)(self.raw.as_ptr())
        })
    }
}
