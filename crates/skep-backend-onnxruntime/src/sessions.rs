//! Sessions that several models may share: one for each baked form and its settings. A session lives as long as a
//! model uses it, and a while longer.
//!
//! The library takes a tenth of a second or more to make a session of a large transformer, even from baked weights,
//! because it plans, packs and hashes. So a model that is unloaded and soon loaded again, for example scaled to zero
//! and back, reuses its session.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use skep_cache::{Form, FormKey};
use skep_config::ExecutionOptions;
use skep_store::{Digest, Store, Tenant};
use skep_types::CpuSet;
use skep_weights::WeightSource;

use crate::{ffi::Session, options::SessionSettings};

/// Everything that two models must have in common to share a session.
#[derive(Debug, Clone)]
pub(crate) struct SessionIdentity {
    form: FormKey,
    /// Tenants do not share sessions.
    store: Store,
    tenant: Tenant,
    execution: ExecutionOptions,
    threads: NonZeroUsize,
    /// The CPUs of the session's own threads, if it has some.
    cpus: Option<CpuSet>,
}

impl SessionIdentity {
    pub(crate) fn new(form: FormKey, shared: &WeightSource, setting: &SessionSettings<'_>) -> Self {
        Self {
            form,
            store: shared.store.clone(),
            tenant: shared.tenant.clone(),
            execution: setting.execution.clone(),
            threads: setting.threads,
            cpus: setting.cpus.filter(|_| setting.starts_threads()).cloned(),
        }
    }
}

impl PartialEq for SessionIdentity {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form
            && self.store.is_same(&other.store)
            && self.tenant == other.tenant
            && self.execution == other.execution
            && self.threads == other.threads
            && self.cpus == other.cpus
    }
}

/// The session that a model uses, until it switches to another one.
#[derive(Debug)]
pub(crate) struct CurrentSession(ArcSwap<SharedSession>);

impl CurrentSession {
    pub(crate) fn new(session: SharedSession) -> Self {
        Self(ArcSwap::from_pointee(session))
    }

    /// The current session. A run uses it to its end, even if the model switches meanwhile.
    pub(crate) fn get(&self) -> Guard<Arc<SharedSession>> {
        self.0.load()
    }

    /// Switches to another session, for runs that begin from now on.
    pub(crate) fn replace(&self, session: SharedSession) {
        self.0.store(Arc::new(session));
    }
}

/// A session that models may share.
#[derive(Debug)]
pub(crate) struct SharedSession {
    session: Arc<Session>,
    /// Under which identity to keep it after the model is dropped, and for how long; `None` if it is not shared.
    kept_as: Option<(SessionIdentity, Duration)>,
    /// The tensors of its form that runs use.
    tensors: Vec<(Digest, u64)>,
}

impl SharedSession {
    /// A session that one model uses alone.
    pub(crate) fn alone(session: Session) -> Self {
        Self {
            session: Arc::new(session),
            kept_as: None,
            tensors: Vec::new(),
        }
    }

    /// The same session, which uses these tensors of its form.
    pub(crate) fn with_tensors(mut self, form: &Form) -> Self {
        self.tensors = form.used_tensors();
        self
    }

    pub(crate) fn tensors(&self) -> &[(Digest, u64)] {
        &self.tensors
    }

    /// The existing session with this identity, or a new one from `make`.
    pub(crate) fn of<E>(
        identity: SessionIdentity,
        keep: Duration,
        make: impl FnOnce() -> Result<Session, E>,
    ) -> Result<Self, E> {
        let existing = sessions().find(&identity);
        let existing = existing.filter(|session| session.is_sound());
        let session = match existing {
            Some(session) => session,
            None => {
                let made = Arc::new(make()?);
                sessions().add(identity.clone(), &made);
                made
            }
        };
        Ok(Self {
            session,
            kept_as: Some((identity, keep)),
            tensors: Vec::new(),
        })
    }

    pub(crate) const fn session(&self) -> &Arc<Session> {
        &self.session
    }
}

impl Drop for SharedSession {
    fn drop(&mut self) {
        if let Some((identity, keep)) = self.kept_as.take()
            && !keep.is_zero()
        {
            let until = Instant::now().checked_add(keep);
            sessions().keep(&identity, &self.session, until);
            watch();
        }
    }
}

static SESSIONS: Mutex<SessionTable<SessionIdentity, Session>> = Mutex::new(SessionTable::new());
/// Signalled when a session is kept.
static KEPT: Condvar = Condvar::new();

fn sessions() -> MutexGuard<'static, SessionTable<SessionIdentity, Session>> {
    skep_host::lock(&SESSIONS)
}

/// Drops every kept session that no model uses, for when memory is short. Returns their number.
pub fn give_up_kept_sessions() -> usize {
    // The lock is released first: dropping sessions takes other locks.
    let all = sessions().expire(None);
    all.len()
}

/// Starts the thread that drops kept sessions, if it does not run.
fn watch() {
    let mut known = sessions();
    KEPT.notify_all();
    if known.is_watched {
        return;
    }
    let started = thread::Builder::new()
        .name("kept-sessions".to_owned())
        .spawn(drop_expired);
    known.is_watched = started.is_ok();
    if !known.is_watched {
        // Without the thread they would stay for ever.
        let all = known.expire(None);
        drop(known);
        drop(all);
    }
}

/// Drops kept sessions when their time is over; ends when none is left.
fn drop_expired() {
    let mut known = sessions();
    loop {
        let now = Instant::now();
        let expired = known.expire(Some(now));
        if !expired.is_empty() {
            // Dropping sessions takes other locks, and time.
            drop(known);
            drop(expired);
            skep_heap::give_back_freed_memory();
            known = sessions();
            continue;
        }
        let Some(next) = known.next_end() else {
            known.is_watched = false;
            return;
        };
        let waited = KEPT.wait_timeout(known, next.saturating_duration_since(now));
        known = waited.unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// The existing sessions, by identity.
#[derive(Debug)]
struct SessionTable<K, T> {
    entries: Vec<SessionEntry<K, T>>,
    is_watched: bool,
}

#[derive(Debug)]
struct SessionEntry<K, T> {
    identity: K,
    session: Weak<T>,
    /// The session while it is kept, and until when; `None` for a moment too late to be represented, which never comes.
    kept: Option<(Arc<T>, Option<Instant>)>,
}

impl<K: PartialEq, T> SessionTable<K, T> {
    const fn new() -> Self {
        Self {
            entries: Vec::new(),
            is_watched: false,
        }
    }

    fn find(&self, identity: &K) -> Option<Arc<T>> {
        let entries = self.entries.iter();
        let mut same = entries.filter(|entry| entry.identity == *identity);
        same.find_map(|entry| entry.session.upgrade())
    }

    fn add(&mut self, identity: K, session: &Arc<T>) {
        self.entries
            .retain(|entry| entry.session.strong_count() > 0 && entry.identity != identity);
        self.entries.push(SessionEntry {
            identity,
            session: Arc::downgrade(session),
            kept: None,
        });
    }

    /// Keeps a session until a moment, unless a newer one has replaced it.
    fn keep(&mut self, identity: &K, session: &Arc<T>, until: Option<Instant>) {
        let same = |entry: &&mut SessionEntry<K, T>| {
            entry.identity == *identity && entry.session.as_ptr() == Arc::as_ptr(session)
        };
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.kept = Some((Arc::clone(session), until));
        }
    }

    /// Removes and returns the kept sessions whose time is over at `now`; without `now`, all of them.
    fn expire(&mut self, now: Option<Instant>) -> Vec<Arc<T>> {
        let is_over = |kept: &mut (Arc<T>, Option<Instant>)| {
            now.is_none_or(|now| kept.1.is_some_and(|until| until <= now))
        };
        let entries = self.entries.iter_mut();
        let expired = entries.filter_map(|entry| entry.kept.take_if(is_over));
        expired.map(|(session, _)| session).collect()
    }

    /// When the time of the next kept session is over.
    fn next_end(&self) -> Option<Instant> {
        let kept = self.entries.iter().filter_map(|entry| entry.kept.as_ref());
        kept.filter_map(|(_, until)| *until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_found_while_they_are_used_or_kept() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut known = SessionTable::<&str, u32>::new();
        let (one, two) = (Arc::new(1), Arc::new(2));
        known.add("a", &one);
        known.add("b", &two);
        assert_eq!(known.find(&"a").as_deref(), Some(&1));
        assert_eq!(known.find(&"c"), None);

        known.keep(&"a", &one, Some(at(10)));
        drop((one, two));
        assert_eq!(known.find(&"a").as_deref(), Some(&1), "kept");
        assert_eq!(known.find(&"b"), None, "not kept");
        assert_eq!(known.next_end(), Some(at(10)));
        assert_eq!(known.expire(Some(at(9))), []);

        // Used and dropped again: the time starts from the beginning.
        let again = known.find(&"a").expect("kept");
        known.keep(&"a", &again, Some(at(15)));
        drop(again);
        assert_eq!(known.expire(Some(at(14))), []);
        assert_eq!(known.expire(Some(at(15))), [Arc::new(1)]);
        assert_eq!((known.find(&"a"), known.next_end()), (None, None));
    }

    #[test]
    fn the_latest_session_of_an_identity_is_found_and_kept() {
        let mut known = SessionTable::<&str, u32>::new();
        let (old, new) = (Arc::new(1), Arc::new(2));
        known.add("a", &old);
        known.add("a", &new);
        assert_eq!(known.find(&"a").as_deref(), Some(&2));
        // Made at the same time as the other: a load would never find it.
        known.keep(&"a", &old, Some(Instant::now()));
        assert_eq!(known.next_end(), None);
        known.keep(&"a", &new, Some(Instant::now()));
        assert!(known.next_end().is_some());
        // A moment that cannot be represented never comes.
        known.keep(&"a", &new, None);
        assert_eq!(
            (known.next_end(), known.expire(Some(Instant::now()))),
            (None, vec![])
        );
        assert_eq!(known.expire(None), [Arc::new(2)]);
    }
}
