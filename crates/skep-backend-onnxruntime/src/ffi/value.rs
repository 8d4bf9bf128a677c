//! Tensors of the library, over Skep's memory or in its own.

use std::{
    ffi::{c_char, c_void},
    marker::PhantomData,
    ptr::{self, NonNull},
    slice,
};

use ort_sys::{ONNXTensorElementDataType as Element, OrtTensorTypeAndShapeInfo, OrtValue};
use skep_tensor::StringElements;
use skep_types::DataType;
use smallvec::SmallVec;

use super::{ApiError, ApiErrorCode, OrtRuntime, check};

/// Dimensions as the C API takes them.
type WireDims = SmallVec<[i64; 6]>;

/// A tensor of the library. `'a` is the lifetime of its memory, `'static` if the library owns that.
#[derive(Debug)]
pub(crate) struct OrtTensor<'a> {
    runtime: &'static OrtRuntime,
    pub(super) raw: NonNull<OrtValue>,
    memory: PhantomData<&'a mut [u8]>,
}

// SAFETY: a value is not bound to a thread; moving it moves the right to use and release it.
unsafe impl Send for OrtTensor<'_> {}
// SAFETY: a shared reference only allows reading the value.
unsafe impl Sync for OrtTensor<'_> {}

impl Drop for OrtTensor<'_> {
    fn drop(&mut self) {
        // SAFETY: the value is ours and is not used again.
        unsafe { (self.runtime.api().ReleaseValue)(self.raw.as_ptr()) }
    }
}

impl<'a> OrtTensor<'a> {
    /// Takes ownership of a value that the library made.
    pub(super) fn owned(runtime: &'static OrtRuntime, raw: NonNull<OrtValue>) -> Self {
        Self {
            runtime,
            raw,
            memory: PhantomData,
        }
    }

    /// A tensor of fixed-size elements over `data`, which is only read.
    ///
    /// `data` holds exactly the bytes of `datatype` and `dims`, as every `TensorView` does.
    pub(crate) fn over(
        runtime: &'static OrtRuntime,
        datatype: DataType,
        dims: &[usize],
        data: &'a [u8],
    ) -> Result<Self, ApiError> {
        // SAFETY: the value is an input of a run, which the library only reads; `'a` keeps the memory alive.
        unsafe {
            Self::wrap(
                runtime,
                datatype,
                dims,
                data.as_ptr().cast_mut(),
                data.len(),
            )
        }
    }

    /// A tensor of fixed-size elements over `data`, which a run writes.
    pub(crate) fn over_mut(
        runtime: &'static OrtRuntime,
        datatype: DataType,
        dims: &[usize],
        data: &'a mut [u8],
    ) -> Result<Self, ApiError> {
        // SAFETY: the exclusive borrow `'a` keeps the memory alive and prevents other accesses.
        unsafe { Self::wrap(runtime, datatype, dims, data.as_mut_ptr(), data.len()) }
    }

    /// # Safety
    /// The memory stays valid for `'a`, for reading and, where a run writes the value, for writing.
    unsafe fn wrap(
        runtime: &'static OrtRuntime,
        datatype: DataType,
        dims: &[usize],
        data: *mut u8,
        length: usize,
    ) -> Result<Self, ApiError> {
        let dims = wire_dims(dims);
        let mut raw: *mut OrtValue = ptr::null_mut();
        // SAFETY: the dimensions live during the call; the library checks them against the length; the memory is
        // promised by the caller.
        let status = unsafe {
            (runtime.api().CreateTensorWithDataAsOrtValue)(
                runtime.memory.as_ptr(),
                data.cast::<c_void>(),
                length,
                dims.as_ptr(),
                dims.len(),
                element(datatype),
                &raw mut raw,
            )
        };
        check(runtime.api(), status)?;
        Ok(Self::owned(runtime, filled(raw)))
    }

    /// The tensor's bytes; not for strings.
    pub(crate) fn bytes(&self, datatype: DataType, dims: &[usize]) -> Result<&[u8], ApiError> {
        let elements: usize = dims.iter().product();
        let length = elements * datatype.element_size().unwrap_or(0);
        if length == 0 {
            return Ok(&[]);
        }
        let mut data: *mut c_void = ptr::null_mut();
        // SAFETY: the value is a live tensor.
        let status =
            unsafe { (self.runtime.api().GetTensorMutableData)(self.raw.as_ptr(), &raw mut data) };
        check(self.runtime.api(), status)?;
        // SAFETY: the tensor has this datatype and shape (the caller read both from it), so that many initialised
        // bytes, which live as long as the value.
        Ok(unsafe { slice::from_raw_parts(data.cast::<u8>().cast_const(), length) })
    }

    /// The tensor's element type and dimensions.
    pub(crate) fn datatype_and_dims(&self) -> Result<(DataType, SmallVec<[usize; 6]>), ApiError> {
        let api = self.runtime.api();
        let mut is_tensor = 0;
        // SAFETY: the value is live.
        check(api, unsafe {
            (api.IsTensor)(self.raw.as_ptr(), &raw mut is_tensor)
        })?;
        if is_tensor == 0 {
            return Err(unexpected("the output is not a tensor"));
        }
        let mut info: *mut OrtTensorTypeAndShapeInfo = ptr::null_mut();
        // SAFETY: the value is a live tensor.
        check(api, unsafe {
            (api.GetTensorTypeAndShape)(self.raw.as_ptr(), &raw mut info)
        })?;
        let info = ShapeInfo {
            runtime: self.runtime,
            raw: filled(info),
        };
        let mut element_type = 0i32;
        // SAFETY: the C enum is a 32-bit integer, which is what the pointer leads to (see the module's documentation).
        check(api, unsafe {
            (api.GetTensorElementType)(info.raw.as_ptr(), (&raw mut element_type).cast::<Element>())
        })?;
        let mut rank = 0;
        // SAFETY: the description is live.
        check(api, unsafe {
            (api.GetDimensionsCount)(info.raw.as_ptr(), &raw mut rank)
        })?;
        let mut dims: WireDims = SmallVec::from_elem(0, rank);
        // SAFETY: `dims` has room for `rank` dimensions.
        check(api, unsafe {
            (api.GetDimensions)(info.raw.as_ptr(), dims.as_mut_ptr(), rank)
        })?;
        let datatype = skep_onnx::datatype(element_type).ok_or_else(|| {
            unexpected(&format!(
                "the output has element type {element_type}, which the protocol does not support"
            ))
        })?;
        let dims: Option<SmallVec<[usize; 6]>> =
            dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        let dims = dims.ok_or_else(|| unexpected("the output has a negative dimension"))?;
        Ok((datatype, dims))
    }
}

impl OrtTensor<'static> {
    /// A tensor of strings, copied from the protocol's encoding.
    ///
    /// `strings` has exactly as many elements as `dims` demand, as every `TensorView` does.
    pub(crate) fn strings(
        runtime: &'static OrtRuntime,
        dims: &[usize],
        strings: StringElements<'_>,
    ) -> Result<Self, ApiError> {
        let api = runtime.api();
        let dims = wire_dims(dims);
        let mut raw: *mut OrtValue = ptr::null_mut();
        // SAFETY: the dimensions live during the call; the default allocator lives for ever.
        check(api, unsafe {
            (api.CreateTensorAsOrtValue)(
                runtime.allocator.as_ptr(),
                dims.as_ptr(),
                dims.len(),
                Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
                &raw mut raw,
            )
        })?;
        let value = Self::owned(runtime, filled(raw));
        // `FillStringTensor` takes C strings, which cannot hold a zero byte; this call takes any bytes.
        for (index, string) in strings.enumerate() {
            let mut buffer: *mut c_char = ptr::null_mut();
            // SAFETY: the library checks the index against the shape.
            check(api, unsafe {
                (api.GetResizedStringTensorElementBuffer)(
                    value.raw.as_ptr(),
                    index,
                    string.len(),
                    &raw mut buffer,
                )
            })?;
            if !string.is_empty() {
                // SAFETY: the element was just resized to the string's length, in memory of the library.
                unsafe {
                    ptr::copy_nonoverlapping(string.as_ptr(), buffer.cast::<u8>(), string.len());
                };
            }
        }
        Ok(value)
    }
}

impl OrtTensor<'_> {
    /// The elements of a tensor of strings in the protocol's encoding.
    pub(crate) fn encoded_strings(&self, elements: usize) -> Result<Vec<u8>, ApiError> {
        if elements == 0 {
            return Ok(Vec::new());
        }
        let api = self.runtime.api();
        let mut length = 0;
        // SAFETY: the value is live; the library checks that it holds strings.
        check(api, unsafe {
            (api.GetStringTensorDataLength)(self.raw.as_ptr(), &raw mut length)
        })?;
        let mut content = zeroed::<u8>(length)?;
        let mut offsets = zeroed::<usize>(elements)?;
        // SAFETY: both buffers have the lengths that are passed; the library checks them against the tensor.
        check(api, unsafe {
            (api.GetStringTensorContent)(
                self.raw.as_ptr(),
                content.as_mut_ptr().cast::<c_void>(),
                length,
                offsets.as_mut_ptr(),
                elements,
            )
        })?;
        let ends = offsets.iter().skip(1).copied().chain([length]);
        let strings = offsets.iter().zip(ends).map(|(&start, end)| {
            content
                .get(start..end)
                .ok_or_else(|| unexpected("the output's strings overlap"))
        });
        let strings: Vec<&[u8]> = strings.collect::<Result<_, _>>()?;
        Ok(skep_tensor::encode_strings(strings))
    }
}

/// A tensor's description, released when dropped.
struct ShapeInfo {
    runtime: &'static OrtRuntime,
    raw: NonNull<OrtTensorTypeAndShapeInfo>,
}

impl Drop for ShapeInfo {
    fn drop(&mut self) {
        // SAFETY: the description is ours and is not used again.
        unsafe { (self.runtime.api().ReleaseTensorTypeAndShapeInfo)(self.raw.as_ptr()) }
    }
}

/// An out parameter after a call that succeeded.
pub(super) fn filled<T>(pointer: *mut T) -> NonNull<T> {
    NonNull::new(pointer).expect("a successful call fills its out parameter")
}

/// Dimensions as the C API takes them. Those of a shape fit, because its element count fits `isize`.
fn wire_dims(dims: &[usize]) -> WireDims {
    dims.iter()
        .map(|&d| i64::try_from(d).unwrap_or(i64::MAX))
        .collect()
}

/// A list of zeros, whose length a model's output determines.
fn zeroed<T: Default + Clone>(length: usize) -> Result<Vec<T>, ApiError> {
    let mut list = Vec::new();
    list.try_reserve_exact(length).map_err(|_| ApiError {
        code: ApiErrorCode::NO_MEMORY,
        message: format!("no memory for {length} strings or bytes of strings"),
    })?;
    list.resize(length, T::default());
    Ok(list)
}

/// An error that the library did not report itself.
fn unexpected(message: &str) -> ApiError {
    ApiError {
        code: ApiErrorCode::FAIL,
        message: message.to_owned(),
    }
}

/// The library's element type for a datatype.
const fn element(datatype: DataType) -> Element {
    match datatype {
        DataType::Bool => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
        DataType::Uint8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
        DataType::Uint16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
        DataType::Uint32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
        DataType::Uint64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
        DataType::Int8 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
        DataType::Int16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
        DataType::Int32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        DataType::Int64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        DataType::Fp16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
        DataType::Bf16 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
        DataType::Fp32 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        DataType::Fp64 => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
        DataType::Bytes => Element::ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
    }
}
