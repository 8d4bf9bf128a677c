//! A session's description of its model's inputs and outputs.

use std::{
    ffi::{c_char, c_void},
    ptr::{self, NonNull},
};

use ort_sys::{
    ONNXTensorElementDataType as Element, ONNXType, OrtAllocator, OrtApi, OrtSession, OrtStatusPtr,
    OrtTensorTypeAndShapeInfo, OrtTypeInfo,
};
use skep_backend::FileInterface;
use skep_types::{DimensionNames, Dims, ModelSignature, TensorSpec};

use super::{ApiError, OrtRuntime, Session, check, text, value::filled};

/// The kind of a value that is a tensor, as the number that the library returns.
const TENSOR: i32 = ONNXType::ONNX_TYPE_TENSOR as i32;

/// The calls for a model's inputs, or for its outputs.
struct SignatureCalls {
    count: unsafe extern "system" fn(*const OrtSession, *mut usize) -> OrtStatusPtr,
    name: unsafe extern "system" fn(
        *const OrtSession,
        usize,
        *mut OrtAllocator,
        *mut *mut c_char,
    ) -> OrtStatusPtr,
    kind:
        unsafe extern "system" fn(*const OrtSession, usize, *mut *mut OrtTypeInfo) -> OrtStatusPtr,
}

impl Session {
    /// The inputs that a run needs and the outputs, as far as they are tensors of the protocol's datatypes. A tensor
    /// whose rank the library does not know looks like a scalar.
    ///
    /// # Errors
    /// Errors of the library.
    pub(crate) fn signature(&self) -> Result<ModelSignature, ApiError> {
        Ok(self.interface()?.signature)
    }

    /// The signature with the names of dimensions; an open dimension need not have one.
    ///
    /// # Errors
    /// Errors of the library.
    pub(crate) fn interface(&self) -> Result<FileInterface, ApiError> {
        let api = self.runtime().api();
        let inputs = SignatureCalls {
            count: api.SessionGetInputCount,
            name: api.SessionGetInputName,
            kind: api.SessionGetInputTypeInfo,
        };
        let outputs = SignatureCalls {
            count: api.SessionGetOutputCount,
            name: api.SessionGetOutputName,
            kind: api.SessionGetOutputTypeInfo,
        };
        let mut dimension_names = DimensionNames::new();
        let mut side = |side: &SignatureCalls| {
            let tensors = self.side(side)?.into_iter();
            let keep = |(spec, names): (TensorSpec, Vec<String>)| {
                dimension_names.insert(spec.name.clone(), names);
                spec
            };
            Ok(tensors.map(keep).collect())
        };
        let signature = ModelSignature {
            inputs: side(&inputs)?,
            outputs: side(&outputs)?,
        };
        Ok(FileInterface {
            signature,
            dimension_names,
        })
    }

    fn side(&self, side: &SignatureCalls) -> Result<Vec<(TensorSpec, Vec<String>)>, ApiError> {
        let session = self.raw.as_ptr().cast_const();
        let mut count = 0;
        // SAFETY: the session is live, the out parameter valid for writing.
        check(self.runtime().api(), unsafe {
            (side.count)(session, &raw mut count)
        })?;
        let specs = (0..count).map(|index| self.spec(side, index));
        specs.filter_map(Result::transpose).collect()
    }

    fn spec(
        &self,
        side: &SignatureCalls,
        index: usize,
    ) -> Result<Option<(TensorSpec, Vec<String>)>, ApiError> {
        let runtime = self.runtime();
        let api = runtime.api();
        let session = self.raw.as_ptr().cast_const();
        let mut info: *mut OrtTypeInfo = ptr::null_mut();
        // SAFETY: the session is live, the index below its count, the out parameter valid for writing.
        check(api, unsafe { (side.kind)(session, index, &raw mut info) })?;
        let info = TypeInfo {
            runtime,
            raw: filled(info),
        };
        let Some(TensorType {
            element,
            dims,
            names,
        }) = info.tensor(api)?
        else {
            return Ok(None);
        };
        let Some(datatype) = skep_onnx::datatype(element) else {
            return Ok(None);
        };
        // The library reports -1 for a named dimension. A tensor with a real size of zero would always be empty.
        let dims = dims.into_iter().map(|dim| if dim > 0 { dim } else { -1 });
        let dims: Vec<i64> = dims.collect();
        let spec = TensorSpec {
            name: self.tensor_name(side, index)?,
            datatype,
            dims: Dims::new(&dims).ok(),
        };
        Ok(Some((spec, names)))
    }

    fn tensor_name(&self, side: &SignatureCalls, index: usize) -> Result<String, ApiError> {
        let runtime = self.runtime();
        let session = self.raw.as_ptr().cast_const();
        let allocator = runtime.allocator.as_ptr();
        let mut name: *mut c_char = ptr::null_mut();
        // SAFETY: the session is live, the index below its count; the default allocator lives for ever.
        check(runtime.api(), unsafe {
            (side.name)(session, index, allocator, &raw mut name)
        })?;
        // SAFETY: a successful call gives a C string, which is copied before it is freed.
        let copy = unsafe { text(name) };
        // SAFETY: the string came from this allocator and is not used again.
        check(runtime.api(), unsafe {
            (runtime.api().AllocatorFree)(allocator, name.cast::<c_void>())
        })?;
        Ok(copy)
    }
}

/// A tensor's type in a session's description.
struct TensorType {
    element: i32,
    dims: Vec<i64>,
    /// The names of its dimensions.
    names: Vec<String>,
}

/// A value's description; dropping it releases it.
struct TypeInfo {
    runtime: &'static OrtRuntime,
    raw: NonNull<OrtTypeInfo>,
}

impl Drop for TypeInfo {
    fn drop(&mut self) {
        // SAFETY: the description is ours and is not used again.
        unsafe { (self.runtime.api().ReleaseTypeInfo)(self.raw.as_ptr()) }
    }
}

impl TypeInfo {
    /// Element type and dimensions; `None` if the value is not a tensor.
    fn tensor(&self, api: &OrtApi) -> Result<Option<TensorType>, ApiError> {
        let raw = self.raw.as_ptr().cast_const();
        let mut kind = 0i32;
        // SAFETY: the C enum is a 32-bit integer, which is what the pointer leads to (see the module's documentation).
        check(api, unsafe {
            (api.GetOnnxTypeFromTypeInfo)(raw, (&raw mut kind).cast::<ONNXType>())
        })?;
        if kind != TENSOR {
            return Ok(None);
        }
        let mut info: *const OrtTensorTypeAndShapeInfo = ptr::null();
        // SAFETY: the description is live; what it gives belongs to it.
        check(api, unsafe {
            (api.CastTypeInfoToTensorInfo)(raw, &raw mut info)
        })?;
        if info.is_null() {
            return Ok(None);
        }
        let mut element = 0i32;
        // SAFETY: as above, for the element's type.
        check(api, unsafe {
            (api.GetTensorElementType)(info, (&raw mut element).cast::<Element>())
        })?;
        let mut rank = 0;
        // SAFETY: the description is live.
        check(api, unsafe {
            (api.GetDimensionsCount)(info, &raw mut rank)
        })?;
        let mut dims = vec![0; rank];
        // SAFETY: `dims` has room for `rank` dimensions.
        check(api, unsafe {
            (api.GetDimensions)(info, dims.as_mut_ptr(), rank)
        })?;
        let mut names = vec![ptr::null(); rank];
        // SAFETY: `names` has room for `rank` of them.
        check(api, unsafe {
            (api.GetSymbolicDimensions)(info, names.as_mut_ptr(), rank)
        })?;
        // SAFETY: a successful call gives C strings, which belong to the description; they are copied while it is live.
        let names = names.into_iter().map(|name| unsafe { text(name) });
        Ok(Some(TensorType {
            element,
            dims,
            names: names.collect(),
        }))
    }
}
