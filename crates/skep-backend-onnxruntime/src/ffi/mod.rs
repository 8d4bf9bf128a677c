//! A thin safe layer over ONNX Runtime's C API: the only `unsafe` code of this crate.
//!
//! [`OrtRuntime`] is the opened library with its one environment; it is never closed, so everything made of it holds
//! a `&'static OrtRuntime` and cannot outlive it. [`Session`] and [`OrtTensor`] release what they own when dropped; a
//! tensor over borrowed memory carries that memory's lifetime. Every status becomes an [`ApiError`] at once.
//!
//! Enumerations that the library *returns* are read as plain integers: a later version may know more of them than the
//! declarations, and a Rust enum must never hold a value outside of its list.
#![allow(
    unsafe_code,
    reason = "this module is the crate's FFI (invariant 5): everything outside it is safe"
)]

mod allocator;
mod environment;
mod library;
mod packed;
mod session;
mod signature;
mod threads;
mod value;
mod weights;

use std::ffi::{CStr, c_char};

use ort_sys::{OrtApi, OrtErrorCode, OrtStatus, OrtStatusPtr};

pub(crate) use environment::OrtRuntime;
pub(crate) use library::Library;
pub(crate) use packed::{contents, exchange, exchange_packed, replace};
pub(crate) use session::{RunOptions, Session, SessionOptions, TensorList};
use threads::PoolThreads;
pub(crate) use threads::StartedRun;
pub(crate) use value::OrtTensor;
pub(crate) use weights::{NamedWeight, WeightTensors};

/// An error code of the C API, as the number that the library returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ApiErrorCode(i32);

impl ApiErrorCode {
    pub(crate) const FAIL: Self = Self(OrtErrorCode::ORT_FAIL as i32);
    pub(crate) const INVALID_ARGUMENT: Self = Self(OrtErrorCode::ORT_INVALID_ARGUMENT as i32);
    /// An exception that is not the library's own, such as a lack of memory.
    pub(crate) const RUNTIME_EXCEPTION: Self = Self(OrtErrorCode::ORT_RUNTIME_EXCEPTION as i32);
    /// Skep's own code: the run's memory was refused.
    pub(crate) const NO_MEMORY: Self = Self(-1);
    pub(crate) const NOT_IMPLEMENTED: Self = Self(OrtErrorCode::ORT_NOT_IMPLEMENTED as i32);
}

/// A status other than success.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    pub(crate) code: ApiErrorCode,
    pub(crate) message: String,
}

/// Turns a status into a result and releases it.
fn check(api: &OrtApi, status: OrtStatusPtr) -> Result<(), ApiError> {
    let status: *mut OrtStatus = status.0;
    if status.is_null() {
        return Ok(());
    }
    // The declared return type is an enum; read it as the integer it is (see the module's documentation).
    // SAFETY: both types are functions of one pointer that return a 32-bit integer in the same calling convention.
    let code_of = unsafe {
        std::mem::transmute::<
            unsafe extern "system" fn(*const OrtStatus) -> OrtErrorCode,
            unsafe extern "system" fn(*const OrtStatus) -> i32,
        >(api.GetErrorCode)
    };
    // SAFETY: the status is not null, comes from the API, and is released only below.
    let code = ApiErrorCode(unsafe { code_of(status) });
    // SAFETY: as above; the text belongs to the status and is copied before that is released.
    let message = unsafe { text((api.GetErrorMessage)(status)) };
    // SAFETY: the status is ours and is not used again.
    unsafe { (api.ReleaseStatus)(status) };
    Err(ApiError { code, message })
}

/// Copies a C string; null reads as empty.
///
/// # Safety
/// `pointer` is null, or points at a string that ends in a zero byte and lives during the call.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: promised by the caller.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}
