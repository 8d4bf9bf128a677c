//! Memory of a CUDA device, through the driver's own interface (`libcuda.so.1`), which is opened at run time.
//!
//! Functions and structures are those of the CUDA Driver API, sections "Memory Management" and "Virtual Memory
//! Management". A page is one physical allocation of the device's granularity, usually 2 MiB, so that any range of pages
//! can be unmapped again.
#![allow(unsafe_code, reason = "functions of a shared library (invariant 5)")]

use std::{
    collections::BTreeMap,
    ffi::{c_char, c_int, c_uint, c_void},
    ops::Range,
    path::Path,
    ptr,
    time::Instant,
};

use skep_lab::UsableSource;
use skep_layout::allocator::Source;

/// The driver's library where nothing else is named.
const DRIVER: &str = "libcuda.so.1";

/// Why a device gives no memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The dynamic loader refused the driver.
    #[error("the CUDA driver `{path}` cannot be opened: {reason}")]
    Driver {
        /// The library.
        path: String,
        /// The loader's reason.
        reason: String,
    },
    /// The driver lacks a function: it is older than CUDA 10.2, or another library.
    #[error(
        "the CUDA driver `{path}` lacks the function `{symbol}`, expected that of CUDA 10.2 or later"
    )]
    Symbol {
        /// The library.
        path: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// A call failed.
    #[error("`{call}` for CUDA device {device} failed with error {code}{text}")]
    Call {
        /// The driver's function.
        call: &'static str,
        /// The device.
        device: u32,
        /// `CUresult`.
        code: c_int,
        /// The driver's own words, in parentheses; or empty.
        text: String,
    },
}

/// `CUmemLocation` of a device.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct MemoryLocation {
    kind: c_int,
    id: c_int,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AllocationProperties {
    kind: c_int,
    requested_handle_types: c_int,
    location: MemoryLocation,
    win32_handle_metadata: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct AccessDescription {
    location: MemoryLocation,
    flags: c_int,
}

/// `CU_MEM_LOCATION_TYPE_DEVICE`, `CU_MEM_ALLOCATION_TYPE_PINNED`, `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`,
/// `CU_MEM_ALLOC_GRANULARITY_MINIMUM`.
const LOCATION_DEVICE: c_int = 1;
const ALLOCATION_PINNED: c_int = 1;
const ACCESS_READ_WRITE: c_int = 3;
const GRANULARITY_MINIMUM: c_int = 0;

type Code = c_int;
/// `CUcontext`, an opaque pointer.
type Context = *mut c_void;

/// Declares the driver's functions that are used, by their exported names.
macro_rules! driver {
    ($($field:ident: $symbol:literal, fn($($argument:ty),*);)*) => {
        #[derive(Debug, Clone, Copy)]
        struct Driver {
            $($field: unsafe extern "C" fn($($argument),*) -> Code,)*
        }

        impl Driver {
            /// # Safety
            /// The library is the CUDA driver.
            unsafe fn of(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: these are the types of `cuda.h`.
                    $($field: *unsafe {
                        library.get::<unsafe extern "C" fn($($argument),*) -> Code>($symbol.as_bytes())
                    }
                    .map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

driver! {
    init: "cuInit", fn(c_uint);
    device_get: "cuDeviceGet", fn(*mut c_int, c_int);
    context_retain: "cuDevicePrimaryCtxRetain", fn(*mut Context, c_int);
    context_release: "cuDevicePrimaryCtxRelease_v2", fn(c_int);
    context_set: "cuCtxSetCurrent", fn(Context);
    synchronize: "cuCtxSynchronize", fn();
    info: "cuMemGetInfo_v2", fn(*mut usize, *mut usize);
    alloc: "cuMemAlloc_v2", fn(*mut u64, usize);
    free: "cuMemFree_v2", fn(u64);
    address_reserve: "cuMemAddressReserve", fn(*mut u64, usize, usize, u64, u64);
    address_free: "cuMemAddressFree", fn(u64, usize);
    granularity: "cuMemGetAllocationGranularity", fn(*mut usize, *const AllocationProperties, c_int);
    create: "cuMemCreate", fn(*mut u64, usize, *const AllocationProperties, u64);
    release: "cuMemRelease", fn(u64);
    map: "cuMemMap", fn(u64, usize, usize, u64, u64);
    unmap: "cuMemUnmap", fn(u64, usize);
    set_access: "cuMemSetAccess", fn(u64, usize, *const AccessDescription, usize);
    error_string: "cuGetErrorString", fn(Code, *mut *const c_char);
}

/// A CUDA device's memory. Of one thread: the driver's context is a thread's.
#[derive(Debug)]
pub struct CudaSource {
    driver: Driver,
    _library: libloading::Library,
    device: c_int,
    properties: AllocationProperties,
    page: u64,
    /// Chunks, and reserved addresses with their bytes.
    chunks: BTreeMap<u64, u64>,
    reserved: BTreeMap<u64, u64>,
    /// The physical allocation behind each page.
    pages: BTreeMap<u64, u64>,
    began: Instant,
}

impl CudaSource {
    /// The memory of a device by its number, through the driver at `driver`, or where the dynamic loader finds it.
    ///
    /// # Errors
    /// [`CudaError`] if there is no driver, it is too old, or there is no such device.
    pub fn open(device: u32, driver: Option<&Path>) -> Result<Self, CudaError> {
        let path = driver.unwrap_or(Path::new(DRIVER));
        let name = || path.display().to_string();
        // SAFETY: opening a library runs its initialisers. This is the driver, or what the user named as one.
        let library = unsafe { libloading::Library::new(path) };
        let library = library.map_err(|error| CudaError::Driver {
            path: name(),
            reason: std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        // SAFETY: the library is the driver.
        let driver = unsafe { Driver::of(&library) }.map_err(|symbol| CudaError::Symbol {
            path: name(),
            symbol,
        })?;
        let check = |call, code| driver.check(call, device, code);
        let ordinal = c_int::try_from(device).unwrap_or(c_int::MAX);
        let (mut handle, mut context) = (0, ptr::null_mut());
        // SAFETY: the driver's functions, with pointers to places of their types.
        unsafe {
            check("cuInit", (driver.init)(0))?;
            check("cuDeviceGet", (driver.device_get)(&raw mut handle, ordinal))?;
            check(
                "cuDevicePrimaryCtxRetain",
                (driver.context_retain)(&raw mut context, handle),
            )?;
            check("cuCtxSetCurrent", (driver.context_set)(context))?;
        }
        let properties = AllocationProperties {
            kind: ALLOCATION_PINNED,
            requested_handle_types: 0,
            location: MemoryLocation {
                kind: LOCATION_DEVICE,
                id: handle,
            },
            win32_handle_metadata: ptr::null_mut(),
            flags: [0; 8],
        };
        let mut page = 0;
        // SAFETY: as above.
        let code = unsafe {
            (driver.granularity)(&raw mut page, &raw const properties, GRANULARITY_MINIMUM)
        };
        check("cuMemGetAllocationGranularity", code)?;
        Ok(Self {
            driver,
            _library: library,
            device: handle,
            properties,
            page: (page as u64).max(1).next_power_of_two(),
            chunks: BTreeMap::new(),
            reserved: BTreeMap::new(),
            pages: BTreeMap::new(),
            began: Instant::now(),
        })
    }

    /// Maps a page to new memory of the device.
    fn commit_page(&mut self, page: u64) -> bool {
        let size = self.page as usize;
        let mut handle = 0;
        let access = AccessDescription {
            location: self.properties.location,
            flags: ACCESS_READ_WRITE,
        };
        // SAFETY: the driver's functions; the page is reserved and has no memory. What fails is undone.
        unsafe {
            if (self.driver.create)(&raw mut handle, size, &raw const self.properties, 0) != 0 {
                return false;
            }
            if (self.driver.map)(page, size, 0, handle, 0) != 0 {
                (self.driver.release)(handle);
                return false;
            }
            if (self.driver.set_access)(page, size, &raw const access, 1) != 0 {
                (self.driver.unmap)(page, size);
                (self.driver.release)(handle);
                return false;
            }
        }
        self.pages.insert(page, handle);
        true
    }

    fn decommit_page(&mut self, page: u64) {
        if let Some(handle) = self.pages.remove(&page) {
            // SAFETY: the page is mapped to this allocation.
            unsafe {
                (self.driver.unmap)(page, self.page as usize);
                (self.driver.release)(handle);
            }
        }
    }
}

impl Driver {
    fn check(&self, call: &'static str, device: u32, code: Code) -> Result<(), CudaError> {
        if code == 0 {
            return Ok(());
        }
        let mut text = ptr::null();
        // SAFETY: the driver writes a pointer to its own text, or null.
        let text = unsafe {
            match (self.error_string)(code, &raw mut text) == 0 && !text.is_null() {
                true => format!(" ({})", std::ffi::CStr::from_ptr(text).to_string_lossy()),
                false => String::new(),
            }
        };
        Err(CudaError::Call {
            call,
            device,
            code,
            text,
        })
    }
}

impl Drop for CudaSource {
    fn drop(&mut self) {
        let pages: Vec<u64> = self.pages.keys().copied().collect();
        pages.into_iter().for_each(|page| self.decommit_page(page));
        // SAFETY: what this source still holds, and nobody else.
        unsafe {
            for (address, bytes) in &self.reserved {
                (self.driver.address_free)(*address, *bytes as usize);
            }
            for address in self.chunks.keys() {
                (self.driver.free)(*address);
            }
            (self.driver.context_release)(self.device);
        }
    }
}

/// A host cannot touch the memory of a device: its kernels would have to.
impl UsableSource for CudaSource {
    fn write(&mut self, _: Range<u64>) {}

    fn read(&self, _: Range<u64>) {}
}

impl Source for CudaSource {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let mut address = 0;
        let size = usize::try_from(bytes).ok()?;
        // SAFETY: the driver writes an address of its own.
        let code = unsafe { (self.driver.alloc)(&raw mut address, size) };
        if code != 0 {
            return None;
        }
        self.chunks.insert(address, bytes);
        Some(address)
    }

    fn give_back(&mut self, address: u64, _: u64) {
        if self.chunks.remove(&address).is_some() {
            // SAFETY: the chunk is this source's.
            unsafe { (self.driver.free)(address) };
        }
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.checked_next_multiple_of(self.page)?;
        let size = usize::try_from(bytes).ok()?;
        let mut address = 0;
        // SAFETY: as in `take`.
        let code = unsafe { (self.driver.address_reserve)(&raw mut address, size, 0, 0, 0) };
        if code != 0 {
            return None;
        }
        self.reserved.insert(address, bytes);
        Some(address)
    }

    fn release(&mut self, address: u64, _: u64) {
        if let Some(bytes) = self.reserved.remove(&address) {
            // SAFETY: the addresses are this source's, without memory.
            unsafe { (self.driver.address_free)(address, bytes as usize) };
        }
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        let step = self.page as usize;
        for page in pages.clone().step_by(step) {
            if !self.commit_page(page) {
                for page in (pages.start..page).step_by(step) {
                    self.decommit_page(page);
                }
                return false;
            }
        }
        true
    }

    fn decommit(&mut self, pages: Range<u64>) {
        // Kernels that are queued may still use them.
        self.wait();
        for page in pages.step_by(self.page as usize) {
            self.decommit_page(page);
        }
    }

    fn page(&self) -> u64 {
        self.page
    }

    fn available(&self) -> Option<u64> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two numbers.
        let code = unsafe { (self.driver.info)(&raw mut free, &raw mut total) };
        (code == 0).then_some(free as u64)
    }

    fn wait(&mut self) {
        // SAFETY: it takes nothing.
        unsafe { (self.driver.synchronize)() };
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
