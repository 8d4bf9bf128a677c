//! Allocators in shared libraries, with the functions of `include/skep_allocator.h`.
//!
//! ```text
//! PluginLibrary ---> PluginAllocator            checked by a ValidatedAllocator
//!                      |   malloc, free, trim --->  the library's functions
//!                      '-- SourceTable  <---------  take, give_back, ...: the Source of the call in progress
//! ```
//!
//! The library runs in this process: it can crash it. `skep replay` uses a process of its own for each.
#![allow(unsafe_code, reason = "functions of a shared library (invariant 5)")]

use std::{
    ffi::{CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    ptr::NonNull,
    sync::Arc,
};

use skep_layout::allocator::{
    Allocator, BlockRequest, MemoryFigures, NotInUse, OutOfMemory, Source, ValidatedAllocator,
};

/// `SKEP_ALLOCATOR_ABI`.
const ABI: u32 = 1;

/// Requests from here on are refused without asking: sums of two addresses never overflow below it.
const MOST_BYTES: u64 = 1 << 62;

/// Why a library is no allocator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The dynamic loader refused it.
    #[error("`{path}` cannot be opened as a library: {reason}")]
    Open {
        /// The library.
        path: String,
        /// The loader's reason.
        reason: String,
    },
    /// It lacks a function.
    #[error("`{path}` lacks the function `{symbol}`, expected those of `include/skep_allocator.h`")]
    Symbol {
        /// The library.
        path: String,
        /// What it lacks.
        symbol: &'static str,
    },
    /// It made no allocator.
    #[error(
        "`{path}` made no allocator: its `skep_allocator_create` returned NULL for version {ABI} of the interface and options `{options}`"
    )]
    Create {
        /// The library.
        path: String,
        /// The options.
        options: String,
    },
    /// Options that C cannot read.
    #[error("options of `{path}` contain a zero byte")]
    Options {
        /// The library.
        path: String,
    },
}

/// `skep_source`.
#[repr(C)]
#[derive(Debug)]
struct SourceTable {
    context: *mut c_void,
    take: unsafe extern "C" fn(*mut c_void, u64) -> u64,
    give_back: unsafe extern "C" fn(*mut c_void, u64, u64),
    reserve: unsafe extern "C" fn(*mut c_void, u64) -> u64,
    release: unsafe extern "C" fn(*mut c_void, u64, u64),
    commit: unsafe extern "C" fn(*mut c_void, u64, u64) -> c_int,
    decommit: unsafe extern "C" fn(*mut c_void, u64, u64),
    page: unsafe extern "C" fn(*mut c_void) -> u64,
    available: unsafe extern "C" fn(*mut c_void) -> u64,
    wait: unsafe extern "C" fn(*mut c_void),
    now: unsafe extern "C" fn(*mut c_void) -> u64,
}

/// `skep_allocator_figures`.
#[repr(C)]
#[derive(Debug, Default)]
struct FiguresTable {
    in_use: u64,
    padding: u64,
    reserved: u64,
    largest_free: u64,
}

type CreateFunction = unsafe extern "C" fn(u32, *const SourceTable, *const c_char) -> *mut c_void;
type MallocFunction = unsafe extern "C" fn(*mut c_void, u64, u64, u64) -> u64;
type FreeFunction = unsafe extern "C" fn(*mut c_void, u64) -> u64;
type StatsFunction = unsafe extern "C" fn(*const c_void, *mut FiguresTable);
type EndFunction = unsafe extern "C" fn(*mut c_void);

#[derive(Debug, Clone, Copy)]
struct Functions {
    create: CreateFunction,
    malloc: MallocFunction,
    free: FreeFunction,
    stats: StatsFunction,
    destroy: EndFunction,
    trim: Option<EndFunction>,
}

/// A library that makes allocators.
#[derive(Debug, Clone)]
pub struct PluginLibrary {
    path: PathBuf,
    functions: Functions,
    /// Open as long as an allocator of it exists.
    library: Arc<libloading::Library>,
}

impl PluginLibrary {
    /// Opens the library at `path`, or what the dynamic loader finds for a name without a directory. That runs its
    /// initialisers: open only what the user named.
    ///
    /// # Errors
    /// [`PluginError`] if it cannot be opened or lacks a function.
    pub fn open(path: &Path) -> Result<Self, PluginError> {
        let name = || path.display().to_string();
        // SAFETY: opening a library runs its initialisers, for which the user vouches who names it.
        let library = unsafe { libloading::Library::new(path) };
        let library = library.map_err(|error| PluginError::Open {
            path: name(),
            reason: std::error::Error::source(&error)
                .map_or_else(|| error.to_string(), ToString::to_string),
        })?;
        /// # Safety
        /// The function of this name has the type `T`.
        unsafe fn find<T: Copy>(
            library: &libloading::Library,
            symbol: &'static str,
        ) -> Result<T, &'static str> {
            // SAFETY: the caller knows its type.
            let found = unsafe { library.get::<T>(symbol.as_bytes()) };
            found.map(|found| *found).map_err(|_| symbol)
        }
        // SAFETY: these are the types of the header; nothing else uses the names.
        let functions = unsafe {
            let functions = || {
                Ok(Functions {
                    create: find(&library, "skep_allocator_create")?,
                    malloc: find(&library, "skep_allocator_malloc")?,
                    free: find(&library, "skep_allocator_free")?,
                    stats: find(&library, "skep_allocator_stats")?,
                    destroy: find(&library, "skep_allocator_destroy")?,
                    trim: find(&library, "skep_allocator_trim").ok(),
                })
            };
            functions()
        };
        let functions = functions.map_err(|symbol| PluginError::Symbol {
            path: name(),
            symbol,
        })?;
        Ok(Self {
            path: path.to_owned(),
            functions,
            library: Arc::new(library),
        })
    }

    /// An allocator of the library, every answer of which is checked.
    ///
    /// # Errors
    /// [`PluginError::Create`] if the library makes none with these options.
    pub fn build(&self, options: &str) -> Result<ValidatedAllocator, PluginError> {
        let path = || self.path.display().to_string();
        let text = CString::new(options).map_err(|_| PluginError::Options { path: path() })?;
        let source = SourceTable::without_source();
        // SAFETY: the functions are those of the header. The source's table has its own place, which stays until after
        // `destroy`; the text is read during the call.
        let made = unsafe { (self.functions.create)(ABI, source.table.as_ptr(), text.as_ptr()) };
        let this = NonNull::new(made).ok_or_else(|| PluginError::Create {
            path: path(),
            options: options.to_owned(),
        })?;
        Ok(ValidatedAllocator::new(Box::new(PluginAllocator {
            this,
            functions: self.functions,
            source,
            _library: Arc::clone(&self.library),
        })))
    }
}

/// The source of the call that is in progress, if one is.
type SourceOfCall = Option<NonNull<dyn Source>>;

/// A table at an address that stays, and the source that it leads to.
#[derive(Debug)]
struct OwnedTable {
    table: NonNull<SourceTable>,
    current: NonNull<SourceOfCall>,
}

impl SourceTable {
    fn without_source() -> OwnedTable {
        let current = NonNull::from(Box::leak(Box::new(None::<NonNull<dyn Source>>)));
        let table = Self {
            context: current.as_ptr().cast(),
            take: source_take,
            give_back: source_give_back,
            reserve: source_reserve,
            release: source_release,
            commit: source_commit,
            decommit: source_decommit,
            page: source_page,
            available: source_available,
            wait: source_wait,
            now: source_now,
        };
        OwnedTable {
            table: NonNull::from(Box::leak(Box::new(table))),
            current,
        }
    }
}

impl OwnedTable {
    /// Calls a function of the library, which may call `source` meanwhile.
    fn during<T>(&mut self, source: &mut dyn Source, call: impl FnOnce() -> T) -> T {
        let source: NonNull<dyn Source + '_> = NonNull::from(source);
        // SAFETY: the pointer is used until the call returns, which the source outlives.
        let source = unsafe {
            std::mem::transmute::<NonNull<dyn Source + '_>, NonNull<dyn Source + 'static>>(source)
        };
        // SAFETY: `current` is this table's own, and only this thread uses it.
        unsafe { self.current.write(Some(source)) };
        let result = call();
        // SAFETY: as above.
        unsafe { self.current.write(None) };
        result
    }
}

impl Drop for OwnedTable {
    fn drop(&mut self) {
        // SAFETY: both were boxes, and the allocator that knew them is gone.
        unsafe {
            drop(Box::from_raw(self.table.as_ptr()));
            drop(Box::from_raw(self.current.as_ptr()));
        }
    }
}

/// What `call` makes of the source in progress; `otherwise` where the library calls without one. A panic in here ends the
/// process: it cannot pass through the library.
///
/// # Safety
/// `context` is the one of a table whose allocator lives.
unsafe fn with_source<T>(
    context: *mut c_void,
    otherwise: T,
    call: impl FnOnce(&mut dyn Source) -> T,
) -> T {
    // SAFETY: `context` points to the table's cell, and the pointer in it is valid for the length of the call.
    unsafe {
        match *context.cast::<SourceOfCall>() {
            Some(mut source) => call(source.as_mut()),
            None => otherwise,
        }
    }
}

unsafe extern "C" fn source_take(context: *mut c_void, bytes: u64) -> u64 {
    // SAFETY: libraries pass the context that they were given; so below.
    unsafe { with_source(context, 0, |source| source.take(bytes).unwrap_or(0)) }
}

unsafe extern "C" fn source_give_back(context: *mut c_void, address: u64, bytes: u64) {
    // SAFETY: as above.
    unsafe { with_source(context, (), |source| source.give_back(address, bytes)) }
}

unsafe extern "C" fn source_reserve(context: *mut c_void, bytes: u64) -> u64 {
    // SAFETY: as above.
    unsafe { with_source(context, 0, |source| source.reserve(bytes).unwrap_or(0)) }
}

unsafe extern "C" fn source_release(context: *mut c_void, address: u64, bytes: u64) {
    // SAFETY: as above.
    unsafe { with_source(context, (), |source| source.release(address, bytes)) }
}

unsafe extern "C" fn source_commit(context: *mut c_void, address: u64, bytes: u64) -> c_int {
    let pages = address..address.saturating_add(bytes);
    // SAFETY: as above.
    unsafe { with_source(context, 0, |source| c_int::from(source.commit(pages))) }
}

unsafe extern "C" fn source_decommit(context: *mut c_void, address: u64, bytes: u64) {
    let pages = address..address.saturating_add(bytes);
    // SAFETY: as above.
    unsafe { with_source(context, (), |source| source.decommit(pages)) }
}

unsafe extern "C" fn source_page(context: *mut c_void) -> u64 {
    // SAFETY: as above.
    unsafe { with_source(context, 4096, |source| source.page()) }
}

unsafe extern "C" fn source_available(context: *mut c_void) -> u64 {
    let all = |source: &mut dyn Source| source.available().unwrap_or(u64::MAX);
    // SAFETY: as above.
    unsafe { with_source(context, 0, all) }
}

unsafe extern "C" fn source_wait(context: *mut c_void) {
    // SAFETY: as above.
    unsafe { with_source(context, (), |source| source.wait()) }
}

unsafe extern "C" fn source_now(context: *mut c_void) -> u64 {
    // SAFETY: as above.
    unsafe { with_source(context, 0, |source| source.now()) }
}

/// An allocator of a library.
#[derive(Debug)]
struct PluginAllocator {
    this: NonNull<c_void>,
    functions: Functions,
    source: OwnedTable,
    _library: Arc<libloading::Library>,
}

// SAFETY: the header allows calls from any thread, one at a time.
unsafe impl Send for PluginAllocator {}

impl PluginAllocator {
    fn stats(&self) -> FiguresTable {
        let mut figures = FiguresTable::default();
        // SAFETY: the allocator lives, and the figures have the header's layout.
        unsafe { (self.functions.stats)(self.this.as_ptr(), &raw mut figures) };
        figures
    }
}

impl Allocator for PluginAllocator {
    fn malloc(
        &mut self,
        request: BlockRequest,
        source: &mut dyn Source,
    ) -> Result<u64, OutOfMemory> {
        let BlockRequest {
            bytes,
            alignment,
            stream,
        } = request;
        let (this, malloc) = (self.this.as_ptr(), self.functions.malloc);
        let address = match bytes < MOST_BYTES {
            // SAFETY: the allocator lives.
            true => self
                .source
                .during(source, || unsafe { malloc(this, bytes, alignment, stream) }),
            false => 0,
        };
        match address {
            0 => Err(OutOfMemory { bytes }),
            address => Ok(address),
        }
    }

    fn free(&mut self, address: u64, source: &mut dyn Source) -> Result<u64, NotInUse> {
        let (this, free) = (self.this.as_ptr(), self.functions.free);
        // SAFETY: the allocator lives.
        let bytes = self
            .source
            .during(source, || unsafe { free(this, address) });
        match bytes {
            0 => Err(NotInUse { address }),
            bytes => Ok(bytes),
        }
    }

    fn trim(&mut self, source: &mut dyn Source) {
        let this = self.this.as_ptr();
        if let Some(trim) = self.functions.trim {
            // SAFETY: the allocator lives.
            self.source.during(source, || unsafe { trim(this) });
        }
    }

    fn figures(&self) -> MemoryFigures {
        let figures = self.stats();
        MemoryFigures {
            in_use: figures.in_use,
            padding: figures.padding,
            reserved: figures.reserved,
        }
    }

    fn largest_free(&self) -> u64 {
        self.stats().largest_free
    }
}

impl Drop for PluginAllocator {
    fn drop(&mut self) {
        // SAFETY: the allocator lives until here, and so does its library.
        unsafe { (self.functions.destroy)(self.this.as_ptr()) };
    }
}
