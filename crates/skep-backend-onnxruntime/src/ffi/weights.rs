//! Weights in Skep's memory, which sessions use in place.

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
    /// As many bytes as datatype and dims require.
    pub(crate) bytes: Bytes,
}

/// Weights as tensors of the library, and their memory.
#[derive(Debug)]
pub(crate) struct WeightTensors {
    // Declared before the memory: fields are dropped in this order.
    values: Vec<(CString, OrtTensor<'static>)>,
    _bytes: Vec<Bytes>,
    /// The lease on the store's tensors: those among these weights, and those that the session maps.
    _lease: Option<Lease>,
    /// The lease on tensors that moved to the store later.
    later: OnceLock<Lease>,
    /// Whether some turned out to be damaged.
    are_damaged: AtomicBool,
}

impl WeightTensors {
    /// Makes the tensors, and keeps `lease` as long as they are used.
    pub(crate) fn new<'a>(
        runtime: &'static OrtRuntime,
        weights: impl Iterator<Item = NamedWeight<'a>>,
        lease: Option<Lease>,
    ) -> Result<Self, ApiError> {
        let (mut values, mut kept) = (Vec::new(), Vec::new());
        for weight in weights {
            let name = CString::new(weight.name).map_err(|_| ApiError {
                code: ApiErrorCode::INVALID_ARGUMENT,
                message: "a weight's name contains a zero byte".to_owned(),
            })?;
            let bytes = &weight.bytes;
            // SAFETY: the memory of a `Bytes` neither moves nor changes while a clone of it lives; the tensor, its
            // only user, is dropped before that (see the fields).
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
            are_damaged: AtomicBool::new(false),
        })
    }

    /// Keeps a second lease. Call it at most once.
    pub(crate) fn keep(&self, lease: Lease) {
        let _ = self.later.set(lease);
    }

    /// Marks some as damaged: every later run on them fails.
    pub(crate) fn condemn(&self) {
        self.are_damaged.store(true, Ordering::Relaxed);
    }

    pub(super) fn are_damaged(&self) -> bool {
        self.are_damaged.load(Ordering::Relaxed)
    }

    /// The tensors by name.
    pub(super) fn values(&self) -> &[(CString, OrtTensor<'static>)] {
        &self.values
    }
}
