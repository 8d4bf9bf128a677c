//! Baking in the background, while models run: one at a time, in a process of the lowest priority, if memory allows.
//!
//! ```text
//! load: the model serves from its own files ---- order(model, what it was loaded from) ---->  queue
//! bakery (one thread):  is the form missing?                    reads and hashes files at the lowest priority
//!                       did a process die baking it recently?   waits an hour or more
//!                       is it another server's turn?            tries again soon
//!                       too little memory or disk space?        tries again, after longer and longer waits
//!                       bakes in a separate process, publishes the form
//!                       the model switches to its form, or the next load uses it
//! unload, stop: the order is dropped ---> the bakery ends the process and removes what it wrote
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
use skep_types::{CpuSet, DeviceId};
use skep_weights::{
    BakingPolicy, WeightSource,
    baking::{BakeCost, FormPlan, NeededForm},
};

/// The most models that wait to be baked: more than a node serves. The next load of a further model orders it again.
const MAX_ORDERS: usize = 1024;

/// The memory that must stay available besides what baking takes, for requests that arrive meanwhile.
const MARGIN_BYTES: u64 = 128 << 20;

/// How soon to try again if another process has the turn, or makes the same form.
const ANOTHERS_TURN: Duration = Duration::from_secs(1);

/// How soon to try again if memory or disk space is short; the wait doubles each time.
const FIRST_WAIT: Duration = Duration::from_secs(5);
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// CPU time for baking: at least this, and one second more for every [`BYTES_A_SECOND`] bytes. This is about ten
/// times what slow models were measured to take.
const LEAST_TIME: Duration = Duration::from_secs(120);
const BYTES_A_SECOND: u64 = 4 << 20;

/// The most wall time, as a multiple of the CPU time, since the node has other work. A baking process that hangs
/// keeps the node's turn for this long.
const LONGEST_OF_CPU: u32 = 20;

/// The lowest priority of a thread.
const NICEST: i32 = 19;

/// An order to bake a model, with everything that it was loaded with.
pub(crate) struct BakeOrder {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) file: ModelFile,
    pub(crate) config: Arc<ModelConfig>,
    pub(crate) threads: std::num::NonZeroUsize,
    pub(crate) device: DeviceId,
    pub(crate) cpus: Option<CpuSet>,
    pub(crate) weights: WeightSource,
    pub(crate) model: Weak<dyn Model>,
}

/// An accepted order; dropping it cancels the order.
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

/// An order in the queue.
struct WaitingOrder {
    taken: Arc<OpenOrder>,
    due: Instant,
    /// How long it waits the next time that memory or disk space is short.
    wait: Duration,
}

#[derive(Default)]
struct BakeryState {
    waiting: Vec<WaitingOrder>,
    has_thread: bool,
    /// The order being carried out, until it has cleaned up.
    at_work: Option<Arc<OpenOrder>>,
}

#[derive(Default)]
struct Bakery {
    state: Mutex<BakeryState>,
    changed: Condvar,
}

static BAKERY: Bakery = Bakery {
    state: Mutex::new(BakeryState {
        waiting: Vec::new(),
        has_thread: false,
        at_work: None,
    }),
    changed: Condvar::new(),
};

/// The result of an attempt.
enum BakeAttempt {
    Over,
    /// Another process has the turn, or makes the same form.
    AnothersTurn,
    /// Memory or disk space is short, as the text says.
    Short(String),
}

/// Orders the baking of a model in the background, if its weights say so and it does not run on its form already.
pub(crate) fn order(order: BakeOrder) -> Option<PendingBake> {
    let is_left = order.model.upgrade().is_some_and(|model| !model.is_baked());
    if order.weights.baking != BakingPolicy::Background || !is_left {
        return None;
    }
    let mut state = BAKERY.lock();
    if state.waiting.len() >= MAX_ORDERS {
        let path = order.file.path().display();
        tracing::warn!(
            "`{path}` is not baked: {MAX_ORDERS} models are already waiting to be baked"
        );
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
                tracing::warn!("models are not baked: cannot start a thread: {error}");
                return None;
            }
        }
    }
    drop(state);
    BAKERY.changed.notify_all();
    Some(PendingBake(taken))
}

/// Cancels all orders, and waits for the current one to clean up, at most until `deadline`.
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
    fn lock(&self) -> MutexGuard<'_, BakeryState> {
        skep_host::lock(&self.state)
    }

    /// Carries out one order after the other; ends when none is left.
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
                    // This is normal operation: one line in the log is enough.
                    match wait == FIRST_WAIT {
                        true => tracing::info!(
                            "`{path}` will be baked later and serves normally until then: {what}"
                        ),
                        false => tracing::debug!("`{path}` will be baked later: {what}"),
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
            cpus: self.order.cpus.as_ref(),
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
            Some(Ok(FormPlan::Known(_))) => return self.switch_to_form(),
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
            Ok(None) => self.switch_to_form(),
            Err(attempt) => attempt,
        }
    }

    /// Claims the right to make the form; `None` if another process has made it meanwhile.
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
                "`{path}` will not be baked for another {minutes} min, because the last process that tried died: {why}\n  \
                 run `skep bake` to bake it now"
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
            "baking `{path}` in the background, with up to {} MiB of memory and {} MiB of disk space",
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
                tracing::info!("baking `{path}` was cancelled: the model is no longer needed");
                return BakeAttempt::Over;
            }
            BakeEnd::Refused(error) => {
                tracing::warn!("`{path}` was not baked; the next load tries again: {error}");
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
                    "`{path}` was not baked, and will not be tried again for {minutes} min: {error}"
                );
                return BakeAttempt::Over;
            }
        }
        let published = at_lowest_priority(|| backend.publish_form(&self.request(), claim));
        match published {
            Some(Ok(Found::Form(form))) => tracing::info!(
                "baked `{path}` in the background in {} ms, {} MiB",
                began.elapsed().as_millis(),
                form.bytes().div_ceil(MIB)
            ),
            Some(Ok(Found::Unusable(why))) => {
                tracing::info!("`{path}` cannot be baked and is loaded from its own files: {why}");
                return BakeAttempt::Over;
            }
            Some(Err(error)) => {
                tracing::warn!("`{path}` was not baked: {error}");
                return BakeAttempt::Over;
            }
            Some(Ok(Found::Nothing)) | None => return BakeAttempt::Over,
        }
        self.switch_to_form()
    }

    /// Switches the model to its form. Runs at normal priority, because a session's threads inherit the priority of
    /// the thread that makes it.
    fn switch_to_form(&self) -> BakeAttempt {
        let path = self.path().display();
        let Some(model) = self.order.model.upgrade() else {
            return BakeAttempt::Over;
        };
        if self.cancel.is_cancelled() {
            return BakeAttempt::Over;
        }
        let began = Instant::now();
        match model.switch_to_form(&self.request()) {
            Ok(true) => tracing::info!(
                "`{path}` runs on its baked form, after {} ms",
                began.elapsed().as_millis()
            ),
            Ok(false) => {
                tracing::info!("`{path}` runs as it was loaded; the next load uses its baked form");
            }
            Err(error) => tracing::warn!("`{path}` runs as it was loaded: {error}"),
        }
        drop(model);
        give_back_freed_memory();
        BakeAttempt::Over
    }
}

const MIB: u64 = 1 << 20;

/// Checks that the memory and disk space for baking are available.
fn check(cost: BakeCost, directory: &Path) -> Result<(), BakeAttempt> {
    let memory = skep_host::memory();
    let wanted = cost.memory_bytes.saturating_add(MARGIN_BYTES);
    if memory.available < wanted {
        return Err(BakeAttempt::Short(format!(
            "it may take {} MiB of memory, and {} MiB are available, of which {} MiB stay free; {} MiB of memory would suffice \
             instead of {} MiB",
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
    // If the system does not report the free space, a lack of it shows when the process writes.
    let room = rustix::fs::statvfs(directory);
    let room = room.map_or(u64::MAX, |of| of.f_bavail.saturating_mul(of.f_frsize));
    if room < cost.disk_bytes {
        return Err(BakeAttempt::Short(format!(
            "it may take {} MiB of disk space in `{}`, which has {} MiB left",
            cost.disk_bytes.div_ceil(MIB),
            directory.display(),
            room / MIB
        )));
    }
    Ok(())
}

/// Runs `act` at the lowest priority. `None` if no thread can be started for it.
fn at_lowest_priority<T: Send>(act: impl FnOnce() -> T + Send) -> Option<T> {
    skep_host::with_niceness("bakery-reads", NICEST, act).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_what_is_short() {
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
            what.contains(" MiB of memory would suffice instead of "),
            "{what}"
        );
        let what = short(u64::MAX, 0).expect("nor that");
        assert!(what.contains("128 MiB stay free"), "{what}");
        let what = short(0, 1 << 62).expect("no disk has that");
        assert!(
            what.starts_with("it may take 4398046511104 MiB of disk space in "),
            "{what}"
        );
    }
}
