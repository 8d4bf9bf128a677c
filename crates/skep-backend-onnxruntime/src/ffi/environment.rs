//! The process's one environment, and its log.

use std::{
    ffi::{c_char, c_void},
    panic::catch_unwind,
    path::Path,
    ptr::{self, NonNull},
    sync::Arc,
};

use ort_sys::{
    OrtAllocator, OrtAllocatorType, OrtApi, OrtEnv, OrtLoggingFunction, OrtLoggingLevel,
    OrtMemType, OrtMemoryInfo,
};
use skep_alloc::ArenaPool;

use super::{ApiError, Library, allocator, check, text};
use crate::telemetry;

/// The opened library with its environment.
#[derive(Debug)]
pub(crate) struct OrtRuntime {
    library: Library,
    pub(super) environment: NonNull<OrtEnv>,
    pub(super) memory: NonNull<OrtMemoryInfo>,
    pub(super) allocator: NonNull<OrtAllocator>,
    arenas: Arc<ArenaPool>,
}

// SAFETY: the environment, the memory description and the default allocator are safe to use from any thread (the C
// API says so of the first and the last; the second is never changed).
unsafe impl Send for OrtRuntime {}
// SAFETY: as above.
unsafe impl Sync for OrtRuntime {}

impl OrtRuntime {
    /// Creates the environment. Call it once per process; the result lives until the process ends.
    pub(crate) fn start(library: Library) -> Result<&'static Self, ApiError> {
        let api = library.api;
        let mut environment: *mut OrtEnv = ptr::null_mut();
        // SAFETY: the callback has the declared signature but for the severity, which it takes as the integer that C
        // passes (see the module's documentation); it needs no parameter; the identifier is a constant.
        let status = unsafe {
            let log = std::mem::transmute::<LogFunction, OrtLoggingFunction>(log);
            (api.CreateEnvWithCustomLogger)(
                log,
                ptr::null_mut(),
                OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING,
                c"skep".as_ptr(),
                &raw mut environment,
            )
        };
        check(api, status)?;
        if !telemetry::is_asked_for() {
            // SAFETY: the environment was just made.
            let status = unsafe { (api.DisableTelemetryEvents)(environment) };
            check(api, status)?;
        }
        let mut memory: *mut OrtMemoryInfo = ptr::null_mut();
        // SAFETY: the out parameter is valid for writing.
        let status = unsafe {
            (api.CreateCpuMemoryInfo)(
                OrtAllocatorType::OrtDeviceAllocator,
                OrtMemType::OrtMemTypeDefault,
                &raw mut memory,
            )
        };
        check(api, status)?;
        let mut allocator: *mut OrtAllocator = ptr::null_mut();
        // SAFETY: the out parameter is valid for writing; the allocator is the library's own and is never released.
        let status = unsafe { (api.GetAllocatorWithDefaultOptions)(&raw mut allocator) };
        check(api, status)?;
        let made = "a successful call fills its out parameter";
        let memory = NonNull::new(memory).expect(made);
        let allocator = NonNull::new(allocator).expect(made);
        // SAFETY: the environment was just made; the memory's description and the library's allocator are never
        // released.
        unsafe { allocator::register(api, environment, memory, allocator) }?;
        Ok(Box::leak(Box::new(Self {
            library,
            environment: NonNull::new(environment).expect(made),
            memory,
            allocator,
            arenas: Arc::default(),
        })))
    }

    /// Memory for the intermediate tensors of all sessions' runs.
    pub(crate) const fn arenas(&self) -> &Arc<ArenaPool> {
        &self.arenas
    }

    /// The library's own version.
    pub(crate) fn version(&self) -> &str {
        self.library.version()
    }

    /// The library's description of its build.
    pub(crate) fn build(&self) -> String {
        self.library.build()
    }

    /// Where the library was opened from.
    pub(crate) fn path(&self) -> &Path {
        self.library.path()
    }

    pub(super) fn api(&self) -> &'static OrtApi {
        self.library.api
    }
}

/// [`OrtLoggingFunction`] with the severity as an integer.
type LogFunction = unsafe extern "system" fn(
    *mut c_void,
    i32,
    *const c_char,
    *const c_char,
    *const c_char,
    *const c_char,
);

/// The beginning of a line that the library logs in each run with an output of another shape than the file declares.
/// The backend's caller logs that once, with the model's name.
const OTHER_SHAPE: &str = "Expected shape from model of ";

/// Passes a line of the library's log to `tracing`; never unwinds into the library.
unsafe extern "system" fn log(
    _parameter: *mut c_void,
    severity: i32,
    category: *const c_char,
    session: *const c_char,
    location: *const c_char,
    message: *const c_char,
) {
    // SAFETY: the library passes strings that live during the call, or null.
    let [category, session, location, message] =
        [category, session, location, message].map(|s| unsafe { text(s) });
    // If the subscriber panics, this line is lost: there is no other place to report it.
    let _ = catch_unwind(|| {
        if severity >= OrtLoggingLevel::ORT_LOGGING_LEVEL_ERROR as i32 {
            tracing::error!(target: "onnxruntime", %category, %session, %location, "{message}");
        } else if severity == OrtLoggingLevel::ORT_LOGGING_LEVEL_WARNING as i32
            && !message.starts_with(OTHER_SHAPE)
        {
            tracing::warn!(target: "onnxruntime", %category, %session, %location, "{message}");
        } else {
            tracing::debug!(target: "onnxruntime", %category, %session, %location, "{message}");
        }
    });
}
