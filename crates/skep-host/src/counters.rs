//! Counters of the processor and the kernel for the calling thread (`perf_event_open`).
#![allow(
    unsafe_code,
    reason = "the system call has no safe interface (invariant 5)"
)]

use std::{
    fs::File,
    io::Read,
    os::fd::{FromRawFd, OwnedFd},
};

/// `struct perf_event_attr`, as far as its first version goes. Source: perf_event_open(2).
#[repr(C)]
#[derive(Debug, Default)]
struct EventAttributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint_type: u32,
    breakpoint_address: u64,
}

/// `PERF_TYPE_HARDWARE`, `PERF_TYPE_SOFTWARE`, `PERF_TYPE_HW_CACHE`.
const HARDWARE: u32 = 0;
const SOFTWARE: u32 = 1;
const HARDWARE_CACHE: u32 = 3;
/// `PERF_COUNT_HW_CACHE_MISSES` and `PERF_COUNT_SW_PAGE_FAULTS`.
const CACHE_MISSES: u64 = 3;
const PAGE_FAULTS: u64 = 2;
/// `PERF_COUNT_HW_CACHE_DTLB`, reads or writes, misses.
const TLB_READ_MISSES: u64 = 3 | 1 << 16;
const TLB_WRITE_MISSES: u64 = 3 | 1 << 8 | 1 << 16;
/// `exclude_kernel` and `exclude_hv`: what needs no privilege.
const OWN_CODE_ALONE: u64 = 1 << 5 | 1 << 6;

/// What happened since the counters were opened; `None` for what this machine does not count, or not for this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Misses of the last level of caches.
    pub cache_misses: Option<u64>,
    /// Misses of the translation buffer of data, of reads and writes.
    pub tlb_misses: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
}

/// Counters of the thread that opened them.
#[derive(Debug)]
pub struct ThreadCounters {
    cache_misses: Option<File>,
    tlb_misses: [Option<File>; 2],
    page_faults: Option<File>,
}

impl ThreadCounters {
    /// Opens those that can be had.
    #[must_use]
    pub fn open() -> Self {
        Self {
            cache_misses: counter(HARDWARE, CACHE_MISSES),
            tlb_misses: [TLB_READ_MISSES, TLB_WRITE_MISSES]
                .map(|config| counter(HARDWARE_CACHE, config)),
            page_faults: counter(SOFTWARE, PAGE_FAULTS),
        }
    }

    /// Their values.
    #[must_use]
    pub fn read(&self) -> EventCounts {
        let [reads, writes] = &self.tlb_misses;
        EventCounts {
            cache_misses: value(self.cache_misses.as_ref()),
            tlb_misses: value(reads.as_ref())
                .map(|count| count + value(writes.as_ref()).unwrap_or(0)),
            page_faults: value(self.page_faults.as_ref()),
        }
    }
}

/// A counter of this thread, on any processor.
fn counter(kind: u32, config: u64) -> Option<File> {
    let attributes = EventAttributes {
        kind,
        size: u32::try_from(size_of::<EventAttributes>()).unwrap_or(0),
        config,
        flags: OWN_CODE_ALONE,
        ..EventAttributes::default()
    };
    let (this_thread, any, no_group, flags) = (0_i32, -1_i32, -1_i32, 0_u64);
    // SAFETY: the kernel reads the attributes during the call, as many bytes as their size says.
    let descriptor = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            this_thread,
            any,
            no_group,
            flags,
        )
    };
    let descriptor = i32::try_from(descriptor)
        .ok()
        .filter(|number| *number >= 0)?;
    // SAFETY: the kernel has just opened it, and nobody else owns it.
    Some(File::from(unsafe { OwnedFd::from_raw_fd(descriptor) }))
}

/// The value of a counter.
fn value(counter: Option<&File>) -> Option<u64> {
    let mut bytes = [0; 8];
    let mut file = counter?;
    file.read_exact(&mut bytes).ok()?;
    Some(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_never_run_backwards() {
        let counters = ThreadCounters::open();
        let first = counters.read();
        std::hint::black_box(vec![1_u8; 1 << 20]);
        let second = counters.read();
        for (first, second) in [
            (first.cache_misses, second.cache_misses),
            (first.tlb_misses, second.tlb_misses),
            (first.page_faults, second.page_faults),
        ] {
            // A machine without a counter has none at any time.
            assert_eq!(first.is_some(), second.is_some());
            assert!(second >= first);
        }
    }
}
