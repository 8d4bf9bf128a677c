//! Weights that lie in memory of ours: sessions use them in place.

use std::{
    ffi::CString,
    slice,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use skep_store::Lease;
use skep_types::DataType;

use super::{ApiError, ApiErrorCode, OrtRuntime, OrtTensor};

/// A weight by its name in the graph.
pub(crate) struct NamedWeight<'a> {
    pub(crate) name: &'a str,
    pub(crate) datatype: DataType,
    pub(crate) dims: &'a [usize],
    /// Exactly those of datatype and dims.
    pub(crate) bytes: Bytes,
}

/// Weights as values of the library, and the memory that they lie in.
#[derive(Debug)]
pub(crate) struct WeightTensors {
    // Declared before the memory: fields are dropped in this order.
    values: Vec<(CString, OrtTensor<'static>)>,
    _bytes: Vec<Bytes>,
    /// The right to those of them that are the store's, and to what the session maps besides.
    _lease: Option<Lease>,
    /// To those that came to the store later.
    later: OnceLock<Lease>,
    /// Whether some turned out to be others than they should be.
    are_wrong: AtomicBool,
}

impl WeightTensors {
    /// Makes the values. `lease` is kept as long as they are used.
    pub(crate) fn new<'a>(
        runtime: &'static OrtRuntime,
        weights: impl Iterator<Item = NamedWeight<'a>>,
        lease: Option<Lease>,
    ) -> Result<Self, ApiError> {
        let (mut values, mut kept) = (Vec::new(), Vec::new());
        for weight in weights {
            let name = CString::new(weight.name).map_err(|_| ApiError {
                code: ApiErrorCode::INVALID_ARGUMENT,
                message: "a weight's name holds a zero byte".to_owned(),
            })?;
            let bytes = &weight.bytes;
            // SAFETY: the memory behind a `Bytes` neither moves nor changes while a clone of it lives; the value, its only
            // user, is dropped before that (see the fields).
            let bytes: &'static [u8] =
                unsafe { slice::from_raw_parts(bytes.as_ptr(), bytes.len()) };
            let value = OrtTensor::over(runtime, weight.datatype, weight.dims, bytes)?;
            values.push((name, value));
            kept.push(weight.bytes);
        }
        Ok(Self {
            values,
            _bytes: kept,
            _lease: lease,
            later: OnceLock::new(),
            are_wrong: AtomicBool::new(false),
        })
    }

    /// Keeps a second lease. At most once.
    pub(crate) fn keep(&self, lease: Lease) {
        let _ = self.later.set(lease);
    }

    /// Notes that some are others than they should be: nothing runs on them any more.
    pub(crate) fn condemn(&self) {
        self.are_wrong.store(true, Ordering::Relaxed);
    }

    pub(super) fn are_wrong(&self) -> bool {
        self.are_wrong.load(Ordering::Relaxed)
    }

    /// The values by name.
    pub(super) fn values(&self) -> &[(CString, OrtTensor<'static>)] {
        &self.values
    }
}
