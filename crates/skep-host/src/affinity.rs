//! The CPUs that threads may run on.

use std::{
    io,
    panic::resume_unwind,
    thread::{self, Builder},
};

use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// The numbers of the CPUs that the calling thread may run on, ascending: its affinity within the process's control group.
///
/// # Errors
/// Those of the system.
pub fn own_cpus() -> io::Result<Vec<u32>> {
    let mask = sched_getaffinity(None)?;
    let all = 0..CpuSet::MAX_CPU;
    let numbers = all.filter(|cpu| mask.is_set(*cpu));
    Ok(numbers.filter_map(|cpu| u32::try_from(cpu).ok()).collect())
}

/// Binds the calling thread to these CPUs. Threads and processes that it starts later are bound as well.
///
/// # Errors
/// Those of the system: none of the CPUs is one that the process may use.
pub fn bind_thread(cpus: impl IntoIterator<Item = u32>) -> io::Result<()> {
    Ok(sched_setaffinity(None, &mask(cpus))?)
}

/// Binds the first thread of another process to these CPUs, before it has started others.
///
/// # Errors
/// Those of the system: the process is gone, or none of the CPUs is one that it may use.
pub fn bind_process(process: u32, cpus: impl IntoIterator<Item = u32>) -> io::Result<()> {
    let process = Pid::from_raw(process.cast_signed()).ok_or(io::ErrorKind::NotFound)?;
    Ok(sched_setaffinity(Some(process), &mask(cpus))?)
}

/// Runs `act` on a new thread that is bound to these CPUs, and waits for it. Threads that `act` starts stay bound.
///
/// # Errors
/// If no thread can be started, or if it cannot be bound.
///
/// # Panics
/// If `act` panics.
pub fn on_cpus<T: Send>(
    name: &str,
    cpus: impl IntoIterator<Item = u32> + Send,
    act: impl FnOnce() -> T + Send,
) -> io::Result<T> {
    thread::scope(|scope| {
        let bound = || bind_thread(cpus).map(|()| act());
        let thread = Builder::new().name(name.to_owned());
        let outcome = thread.spawn_scoped(scope, bound)?.join();
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn mask(cpus: impl IntoIterator<Item = u32>) -> CpuSet {
    let mut mask = CpuSet::new();
    for cpu in cpus {
        let cpu = usize::try_from(cpu).unwrap_or(usize::MAX);
        if cpu < CpuSet::MAX_CPU {
            mask.set(cpu);
        }
    }
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_and_so_are_those_that_it_starts() {
        let before = own_cpus().expect("an affinity");
        let last = *before.last().expect("a CPU");
        let seen = on_cpus("bound", [last], || {
            let inner = thread::scope(|scope| scope.spawn(own_cpus).join());
            (
                own_cpus().expect("an affinity"),
                inner.expect("no panic").expect("an affinity"),
            )
        });
        assert_eq!(seen.expect("bound"), (vec![last], vec![last]));
        assert_eq!(own_cpus().expect("an affinity"), before);
    }

    #[test]
    fn cpus_that_the_machine_does_not_have_are_refused() {
        let outcome = on_cpus("nowhere", [1023], || ());
        assert_eq!(
            outcome.map_err(|error| error.kind()),
            Err(io::ErrorKind::InvalidInput)
        );
    }
}
