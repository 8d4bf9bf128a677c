//! The threads of a session's pool. Skep creates them, so that it can measure a run's CPU time: a model that may use
//! eight threads often keeps one busy.

use std::{
    ffi::c_void,
    mem::MaybeUninit,
    ptr,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ort_sys::{OrtCustomHandleType, OrtCustomThreadHandle, OrtThreadWorkerFn};

/// The stack size of the threads that the library creates itself.
const STACK_BYTES: usize = 8 << 20;

/// The first runs of a session are measured, then one in [`EVERY_RUNS`]: a measurement takes a system call per thread.
const FIRST_RUNS: u32 = 16;
const EVERY_RUNS: u32 = 32;

/// The threads of a session's pool, and counts of its runs.
#[derive(Debug, Default)]
pub(crate) struct PoolThreads {
    /// The clock of each thread's CPU time. The threads end with the session.
    clocks: Mutex<Vec<libc::clockid_t>>,
    in_flight: AtomicU32,
    begun: AtomicU32,
}

/// A run that may be measured.
pub(crate) struct StartedRun {
    number: u32,
    /// The CPU time of all threads when the run began; `None` if it is not measured.
    cpu: Option<Duration>,
}

impl PoolThreads {
    fn clocks(&self) -> MutexGuard<'_, Vec<libc::clockid_t>> {
        skep_host::lock(&self.clocks)
    }

    /// Notes that a run begins on the calling thread.
    pub(super) fn begin(&self) -> StartedRun {
        let others = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        let is_due = number < FIRST_RUNS || number.is_multiple_of(EVERY_RUNS);
        StartedRun {
            number,
            cpu: (others == 0 && is_due).then(|| self.cpu_time()),
        }
    }

    /// Notes that the run is over. Returns its CPU time if it was measured and no other run overlapped.
    pub(super) fn end(&self, started: StartedRun) -> Option<Duration> {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let before = started.cpu?;
        let was_alone = self.begun.load(Ordering::Relaxed) == started.number.wrapping_add(1);
        was_alone.then(|| self.cpu_time().saturating_sub(before))
    }

    /// The CPU time of the pool's threads and the calling one, since they began.
    fn cpu_time(&self) -> Duration {
        let own = read(libc::CLOCK_THREAD_CPUTIME_ID);
        self.clocks()
            .iter()
            .copied()
            .map(read)
            .fold(own, |a, b| a + b)
    }
}

/// Reads a clock; zero for the clock of a thread that has ended.
fn read(clock: libc::clockid_t) -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: the pointer is valid for writing.
    let status = unsafe { libc::clock_gettime(clock, time.as_mut_ptr()) };
    if status != 0 {
        return Duration::ZERO;
    }
    // SAFETY: a successful call fills it.
    let time = unsafe { time.assume_init() };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

/// The library's function for a thread of its pool, with its parameter.
struct ThreadWork(OrtThreadWorkerFn, *mut c_void, *const PoolThreads);

// SAFETY: the library intends the function and its parameter for another thread; a lock protects the pool.
unsafe impl Send for ThreadWork {}

impl ThreadWork {
    fn run(self) {
        let Self(worker, parameter, pool) = self;
        let mut clock = 0;
        // SAFETY: the calling thread lives, and the pointer is valid for writing.
        let status = unsafe { libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock) };
        if status == 0 {
            // SAFETY: the session keeps the pool until it has joined this thread.
            unsafe { (*pool).clocks().push(clock) };
        }
        // SAFETY: the library gave both for this call, once.
        unsafe { worker(parameter) };
    }
}

/// Creates a thread of a session.
///
/// # Safety
/// `pool` points at a [`PoolThreads`] that lives until [`join`] was called with what this returns.
pub(super) unsafe extern "C" fn create(
    pool: *mut c_void,
    worker: OrtThreadWorkerFn,
    parameter: *mut c_void,
) -> OrtCustomThreadHandle {
    let work = ThreadWork(worker, parameter, pool.cast_const().cast());
    let builder = thread::Builder::new().name("ort-pool".to_owned());
    match builder.stack_size(STACK_BYTES).spawn(move || work.run()) {
        Ok(handle) => Box::into_raw(Box::new(handle))
            .cast::<OrtCustomHandleType>()
            .cast_const(),
        // The library then fails to make the session.
        Err(_) => ptr::null(),
    }
}

/// Waits for the end of a thread.
///
/// # Safety
/// `handle` comes from [`create`], and is not used again.
pub(super) unsafe extern "C" fn join(handle: OrtCustomThreadHandle) {
    if handle.is_null() {
        return;
    }
    // SAFETY: promised by the caller.
    let handle = unsafe { Box::from_raw(handle.cast_mut().cast::<JoinHandle<()>>()) };
    // A thread that panicked has ended, too.
    drop(handle.join());
}
