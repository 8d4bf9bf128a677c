//! Baking behind models that run: one at a time, in a process of the lowest priority, where there is memory for it.
//!
//! ```text
//! load: the model as it is, ready ---- order(model, what it was loaded from) ---->  queue
//! bakery (one thread):  is a form missing?            files are read and hashed at the lowest priority
//!                       has it died of that lately?   not now
//!                       another server's turn?        later
//!                       memory, room on the disk?     later, each time after a longer while
//!                       bake in a process of its own, publish
//!                       the model goes over to its form, or its next load does
//! unload, stop: the order is dropped ---> the process is ended, what it wrote is removed
//! ```

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant, SystemTime},
};

use skep_backend::{Backend, LoadRequest, Model, ModelFile, panic_text};
use skep_cache::{Begun, Claim, Found, Turn};
use skep_config::ModelConfig;
use skep_heap::give_back_freed_memory;
use skep_sandbox::{BakeEnd, BakeLimits, Cancel};
use skep_types::DeviceId;
use skep_weights::{
    BakingPolicy, WeightSource,
    baking::{BakeCost, FormPlan, NeededForm},
};

/// Models that wait to be baked, at most: more than a node serves. The next load of one beyond that orders it again.
const MAX_ORDERS: usize = 1024;

/// What must be left of the memory that is to be had, beside what baking takes: requests come meanwhile.
const MARGIN_BYTES: u64 = 128 << 20;

/// How soon to look again while another process has the turn, or makes the same form.
const ANOTHERS_TURN: Duration = Duration::from_secs(1);

/// How soon to look again for memory, or room on the disk; twice as long after each time.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Time of the processor for baking any model, and for so many bytes of it a second more: some ten times of what was
/// measured for models that are slow to bake.
const LEAST_TIME: Duration = Duration::from_secs(120);
const BYTES_A_SECOND: u64 = 4 << 20;

/// How much longer than its time of the processor baking may take on a node that has other work. One that sleeps has the
/// node's turn meanwhile.
const LONGEST_OF_CPU: u32 = 20;

/// The lowest priority of a thread.
const NICEST: i32 = 19;

/// A model that is to be baked, and all that it was loaded with.
pub(crate) struct BakeOrder {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) file: ModelFile,
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) threads: std::num::NonZeroUsize,
    pub(crate) device: DeviceId,
    pub(crate) weights: WeightSource,
    pub(crate) model: Weak<dyn Model>,
}

/// An order that was taken. Dropped, it is given up.
pub(crate) struct PendingBake(Arc<OpenOrder>);

impl Drop for PendingBake {
    fn drop(&mut self) {
        self.0.cancel.cancel();
        BAKERY.changed.notify_all();
    }
}

struct OpenOrder {
    order: BakeOrder,
    cancel: Cancel,
}

/// One that waits.
struct WaitingOrder {
    taken: Arc<OpenOrder>,
    due: Instant,
    /// For how long it waits the next time that something is short.
    wait: Duration,
}

#[derive(Default)]
struct State {
    waiting: Vec<WaitingOrder>,
    has_thread: bool,
    /// What is at work, until it has tidied up.
    at_work: Option<Arc<OpenOrder>>,
}

#[derive(Default)]
struct Bakery {
    state: Mutex<State>,
    changed: Condvar,
}

static BAKERY: Bakery = Bakery {
    state: Mutex::new(State {
        waiting: Vec::new(),
        has_thread: false,
        at_work: None,
    }),
    changed: Condvar::new(),
};

/// What became of an attempt.
enum BakeAttempt {
    Over,
    /// Another process is at it.
    AnothersTurn,
    /// Something is short: what.
    Short(String),
}

/// Has a model baked behind its runs, if its weights say so and it does not run on its form already.
pub(crate) fn order(order: BakeOrder) -> Option<PendingBake> {
    let is_left = order.model.upgrade().is_some_and(|model| !model.is_baked());
    if order.weights.baking != BakingPolicy::Behind || !is_left {
        return None;
    }
    let mut state = BAKERY.lock();
    if state.waiting.len() >= MAX_ORDERS {
        let path = order.file.path().display();
        tracing::warn!("`{path}` is not baked: {MAX_ORDERS} models wait for that already");
        return None;
    }
    let taken = Arc::new(OpenOrder {
        order,
        cancel: Cancel::default(),
    });
    state.waiting.push(WaitingOrder {
        taken: Arc::clone(&taken),
        due: Instant::now(),
        wait: FIRST_WAIT,
    });
    if !state.has_thread {
        let thread = thread::Builder::new().name("bakery".to_owned());
        match thread.spawn(|| BAKERY.run()) {
            Ok(_) => state.has_thread = true,
            Err(error) => {
                state.waiting.clear();
                tracing::warn!("no model is baked: no thread could be started: {error}");
                return None;
            }
        }
    }
    drop(state);
    BAKERY.changed.notify_all();
    Some(PendingBake(taken))
}

/// Gives up all orders, and waits until what was at work has tidied up, at most until then.
pub(crate) fn stop(deadline: Instant) {
    let mut state = BAKERY.lock();
    for waiting in state.waiting.drain(..) {
        waiting.taken.cancel.cancel();
    }
    if let Some(taken) = &state.at_work {
        taken.cancel.cancel();
    }
    BAKERY.changed.notify_all();
    while state.at_work.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let waited = BAKERY.changed.wait_timeout(state, left);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

impl Bakery {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change leaves a whole state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one order after the other; ends when none is left.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            state
                .waiting
                .retain(|waiting| !waiting.taken.cancel.is_cancelled());
            let now = Instant::now();
            let next = state.waiting.iter().position(|waiting| waiting.due <= now);
            let Some(next) = next else {
                let Some(due) = state.waiting.iter().map(|waiting| waiting.due).min() else {
                    state.has_thread = false;
                    return;
                };
                let waited = self
                    .changed
                    .wait_timeout(state, due.saturating_duration_since(now));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            };
            let mut waiting = state.waiting.remove(next);
            state.at_work = Some(Arc::clone(&waiting.taken));
            drop(state);
            let attempt = catch_unwind(AssertUnwindSafe(|| waiting.taken.attempt()));
            let attempt = attempt.unwrap_or_else(|panic| {
                let (path, text) = (waiting.taken.path().display(), panic_text(&*panic));
                tracing::error!("`{path}` is not baked: the backend panicked: {text}");
                BakeAttempt::Over
            });
            let again = match attempt {
                BakeAttempt::Over => None,
                BakeAttempt::AnothersTurn => Some(ANOTHERS_TURN),
                BakeAttempt::Short(what) => {
                    let (path, wait) = (waiting.taken.path().display(), waiting.wait);
                    // Normal operation: one line in the log is enough.
                    match wait == FIRST_WAIT {
                        true => tracing::info!(
                            "`{path}` is baked later, and the model serves normally until then: {what}"
                        ),
                        false => tracing::debug!("`{path}` is baked later: {what}"),
                    }
                    waiting.wait = (2 * wait).min(LONGEST_WAIT);
                    Some(wait)
                }
            };
            state = self.lock();
            state.at_work = None;
            if let Some(wait) = again {
                waiting.due = Instant::now() + wait;
                state.waiting.push(waiting);
            }
            self.changed.notify_all();
        }
    }
}

impl OpenOrder {
    fn path(&self) -> &Path {
        self.order.file.path()
    }

    fn request(&self) -> LoadRequest<'_> {
        LoadRequest {
            file: &self.order.file,
            config: &self.order.config,
            threads: self.order.threads,
            weights: Some(&self.order.weights),
            device: self.order.device,
            request_memory: None,
        }
    }

    fn attempt(&self) -> BakeAttempt {
        if self.cancel.is_cancelled() {
            return BakeAttempt::Over;
        }
        let path = self.path().display();
        let planned = at_lowest_priority(|| self.order.backend.plan_form(&self.request()));
        let needed = match planned {
            Some(Ok(FormPlan::Needed(needed))) => needed,
            Some(Ok(FormPlan::Known(_))) => return self.change_over(),
            Some(Ok(FormPlan::WithoutForm(why))) => {
                tracing::debug!("`{path}` is not baked: {why}");
                return BakeAttempt::Over;
            }
            Some(Err(error)) => {
                tracing::warn!("`{path}` is not baked: {error}");
                return BakeAttempt::Over;
            }
            None => return BakeAttempt::Over,
        };
        match self.begin(&needed) {
            Ok(Some((_turn, claim))) => self.bake(claim, needed.cost),
            Ok(None) => self.change_over(),
            Err(attempt) => attempt,
        }
    }

    /// The right to make the form; `None` where another process made it meanwhile.
    fn begin(&self, needed: &NeededForm) -> Result<Option<(Turn, Claim)>, BakeAttempt> {
        let (path, cache) = (self.path().display(), &self.order.weights.cache);
        let over = |error: &dyn std::fmt::Display| {
            tracing::warn!("`{path}` is not baked: {error}");
            BakeAttempt::Over
        };
        if let Some(deaths) = cache.deaths(&needed.key)
            && let Some(wait) = deaths.wait(SystemTime::now())
        {
            let (minutes, why) = (wait.as_secs().div_ceil(60), &deaths.why);
            tracing::warn!(
                "`{path}` is not baked for another {minutes} min, since the process died that tried the last time: {why}\n  \
                 `skep bake` tries at once"
            );
            return Err(BakeAttempt::Over);
        }
        let Some(turn) = cache.try_turn().map_err(|error| over(&error))? else {
            return Err(BakeAttempt::AnothersTurn);
        };
        check(needed.cost, cache.root())?;
        let begun = cache.try_begin(&needed.key, needed.content.clone());
        match begun.map_err(|error| over(&error))? {
            Begun::Claimed(claim) => Ok(Some((turn, claim))),
            Begun::Found(_) => Ok(None),
            Begun::Busy => Err(BakeAttempt::AnothersTurn),
        }
    }

    fn bake(&self, claim: Claim, cost: BakeCost) -> BakeAttempt {
        let path = self.path().display();
        tracing::info!(
            "baking `{path}` behind the model, with up to {} MiB of memory and {} MiB on the disk",
            cost.memory_bytes.div_ceil(MIB),
            cost.disk_bytes.div_ceil(MIB)
        );
        let began = Instant::now();
        let (cache, backend) = (&self.order.weights.cache, &*self.order.backend);
        let size = Duration::from_secs(cost.disk_bytes / BYTES_A_SECOND);
        let of_cpu = LEAST_TIME.saturating_add(size);
        let limits = BakeLimits {
            wall: Some(of_cpu.saturating_mul(LONGEST_OF_CPU)),
            behind: Some(of_cpu),
        };
        let key = *claim.key();
        let into = (claim.directory(), cache.budget_bytes());
        let end = skep_sandbox::bake(backend, &self.request(), into, limits, &self.cancel);
        match end {
            BakeEnd::Made => {}
            BakeEnd::Cancelled => {
                tracing::info!("baking `{path}` was given up: the model is not wanted any more");
                return BakeAttempt::Over;
            }
            BakeEnd::Refused(error) => {
                tracing::warn!("`{path}` was not baked, the next load tries again: {error}");
                return BakeAttempt::Over;
            }
            BakeEnd::Died(error) => {
                let now = SystemTime::now();
                if let Err(error) = cache.note_death(&key, now, &error.to_string()) {
                    tracing::warn!("{error}");
                }
                let wait = cache.deaths(&key).and_then(|deaths| deaths.wait(now));
                let minutes = wait.unwrap_or_default().as_secs().div_ceil(60);
                tracing::warn!(
                    "`{path}` was not baked, and is not for another {minutes} min: {error}"
                );
                return BakeAttempt::Over;
            }
        }
        let published = at_lowest_priority(|| backend.publish_form(&self.request(), claim));
        match published {
            Some(Ok(Found::Form(form))) => tracing::info!(
                "baked `{path}` behind the model in {} ms, {} MiB",
                began.elapsed().as_millis(),
                form.bytes().div_ceil(MIB)
            ),
            Some(Ok(Found::Unusable(why))) => {
                tracing::info!("`{path}` is loaded as it is from now on: {why}");
                return BakeAttempt::Over;
            }
            Some(Err(error)) => {
                tracing::warn!("`{path}` was not baked: {error}");
                return BakeAttempt::Over;
            }
            Some(Ok(Found::Nothing)) | None => return BakeAttempt::Over,
        }
        self.change_over()
    }

    /// The form is there: the model goes over to it, at the priority of everything else, since threads that a session starts
    /// have that of who makes it.
    fn change_over(&self) -> BakeAttempt {
        let path = self.path().display();
        let Some(model) = self.order.model.upgrade() else {
            return BakeAttempt::Over;
        };
        if self.cancel.is_cancelled() {
            return BakeAttempt::Over;
        }
        let began = Instant::now();
        match model.change_over(&self.request()) {
            Ok(true) => tracing::info!(
                "`{path}` runs on its baked form, after {} ms",
                began.elapsed().as_millis()
            ),
            Ok(false) => {
                tracing::info!(
                    "`{path}` runs as it was loaded, the next load is of its baked form"
                );
            }
            Err(error) => tracing::warn!("`{path}` runs as it was loaded: {error}"),
        }
        drop(model);
        give_back_freed_memory();
        BakeAttempt::Over
    }
}

const MIB: u64 = 1 << 20;

/// Whether there is what baking takes, now.
fn check(cost: BakeCost, directory: &Path) -> Result<(), BakeAttempt> {
    let memory = skep_host::memory();
    let wanted = cost.memory_bytes.saturating_add(MARGIN_BYTES);
    if memory.available < wanted {
        return Err(BakeAttempt::Short(format!(
            "it may take {} MiB of memory, and {} MiB are to be had, of which {} MiB stay free; {} MiB of memory would do instead \
             of {} MiB",
            cost.memory_bytes.div_ceil(MIB),
            memory.available / MIB,
            MARGIN_BYTES / MIB,
            memory
                .total
                .saturating_add(wanted - memory.available)
                .div_ceil(MIB),
            memory.total / MIB
        )));
    }
    // Where the system does not say it shows when something is written.
    let room = rustix::fs::statvfs(directory);
    let room = room.map_or(u64::MAX, |of| of.f_bavail.saturating_mul(of.f_frsize));
    if room < cost.disk_bytes {
        return Err(BakeAttempt::Short(format!(
            "it may take {} MiB on the disk of `{}`, which has {} MiB left",
            cost.disk_bytes.div_ceil(MIB),
            directory.display(),
            room / MIB
        )));
    }
    Ok(())
}

/// Does something on a thread of the lowest priority, which ends with that: what is lowered stays so. `None` where the
/// system gives no thread, or after a panic, as of a backend.
fn at_lowest_priority<T: Send>(act: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let lowered = || {
            // Of this thread alone: that is what Linux takes it for.
            let _ = rustix::process::setpriority_process(None, NICEST);
            act()
        };
        let thread = thread::Builder::new().name("bakery-reads".to_owned());
        thread.spawn_scoped(scope, lowered).ok()?.join().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_is_said() {
        let root = tempfile::tempdir().expect("a directory");
        let short = |memory_bytes, disk_bytes| {
            let cost = BakeCost {
                memory_bytes,
                disk_bytes,
            };
            match check(cost, root.path()) {
                Ok(()) => None,
                Err(BakeAttempt::Short(what)) => Some(what),
                Err(_) => unreachable!("something else"),
            }
        };
        assert_eq!(short(0, 0), None);
        let what = short(1 << 60, 0).expect("no machine has that");
        assert!(
            what.starts_with("it may take 1099511627776 MiB of memory, and "),
            "{what}"
        );
        assert!(
            what.contains(" MiB of memory would do instead of "),
            "{what}"
        );
        let what = short(u64::MAX, 0).expect("nor that");
        assert!(what.contains("128 MiB stay free"), "{what}");
        let what = short(0, 1 << 62).expect("no disk has that");
        assert!(
            what.starts_with("it may take 4398046511104 MiB on the disk of "),
            "{what}"
        );
    }

    #[test]
    fn what_is_done_at_the_lowest_priority_changes_no_others() {
        let own = || rustix::process::getpriority_process(None).expect("a priority");
        let before = own();
        assert_eq!(at_lowest_priority(own), Some(NICEST));
        assert_eq!(own(), before);
    }
}
