//! Sessions that more than one model may run on: one for each baked form under the same settings, for as long as a model
//! uses it and a while longer.
//!
//! Making a session of a large transformer takes the library a tenth of a second and more however its weights are given
//! (it plans, packs and hashes), so a model that is unloaded and loaded again soon, as one that is scaled to zero and back,
//! finds its session where it was.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak},
    thread,
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, Guard};
use skep_cache::FormKey;
use skep_config::ExecutionOptions;
use skep_store::{Store, Tenant};
use skep_weights::WeightSource;

use crate::{ffi::Session, options::Setting};

/// What sessions have in common that are the same.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    form: FormKey,
    /// Tenants share nothing.
    store: Store,
    tenant: Tenant,
    execution: ExecutionOptions,
    threads: NonZeroUsize,
}

impl Identity {
    pub(crate) fn new(form: FormKey, shared: &WeightSource, setting: &Setting<'_>) -> Self {
        Self {
            form,
            store: shared.store.clone(),
            tenant: shared.tenant.clone(),
            execution: setting.execution.clone(),
            threads: setting.threads,
        }
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.form == other.form
            && self.store.is_same(&other.store)
            && self.tenant == other.tenant
            && self.execution == other.execution
            && self.threads == other.threads
    }
}

/// The session that a model uses, until it goes over to another one.
#[derive(Debug)]
pub(crate) struct Current(ArcSwap<SharedSession>);

impl Current {
    pub(crate) fn new(session: SharedSession) -> Self {
        Self(ArcSwap::from_pointee(session))
    }

    /// The session now. Whatever comes of it stays of this one.
    pub(crate) fn get(&self) -> Guard<Arc<SharedSession>> {
        self.0.load()
    }

    /// Goes over to another session: for runs that begin from now on.
    pub(crate) fn replace(&self, session: SharedSession) {
        self.0.store(Arc::new(session));
    }
}

/// A session that models may share.
#[derive(Debug)]
pub(crate) struct SharedSession {
    session: Arc<Session>,
    /// What it is kept as when the model is gone, and for how long; `None` of one that is this model's alone.
    kept_as: Option<(Identity, Duration)>,
}

impl SharedSession {
    /// A session of one model alone.
    pub(crate) fn alone(session: Session) -> Self {
        Self {
            session: Arc::new(session),
            kept_as: None,
        }
    }

    /// The session of this identity that is there, or one that `make` makes.
    pub(crate) fn of<E>(
        identity: Identity,
        keep: Duration,
        make: impl FnOnce() -> Result<Session, E>,
    ) -> Result<Self, E> {
        let there = sessions().find(&identity);
        let there = there.filter(|session| session.is_sound());
        let session = match there {
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

static SESSIONS: Mutex<Known<Identity, Session>> = Mutex::new(Known::new());
/// Signalled when a session is kept.
static KEPT: Condvar = Condvar::new();

fn sessions() -> MutexGuard<'static, Known<Identity, Session>> {
    // Nothing panics while it holds this lock.
    SESSIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory is short: lets go of every session that no model uses. How many there were.
pub fn give_up_kept_sessions() -> usize {
    // Their end takes locks of its own.
    let all = sessions().expire(None);
    all.len()
}

/// Sees to it that the thread runs that lets kept sessions go.
fn watch() {
    let mut known = sessions();
    KEPT.notify_all();
    if known.is_watched {
        return;
    }
    let started = thread::Builder::new()
        .name("kept-sessions".to_owned())
        .spawn(let_go);
    known.is_watched = started.is_ok();
    if !known.is_watched {
        // Nobody would let them go later.
        let all = known.expire(None);
        drop(known);
        drop(all);
    }
}

/// Lets kept sessions go when their time has come; ends when none is left.
fn let_go() {
    let mut known = sessions();
    loop {
        let now = Instant::now();
        let expired = known.expire(Some(now));
        if !expired.is_empty() {
            // Their end takes locks of its own, and time.
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

/// What is there, by identity.
#[derive(Debug)]
struct Known<K, T> {
    entries: Vec<Entry<K, T>>,
    is_watched: bool,
}

#[derive(Debug)]
struct Entry<K, T> {
    identity: K,
    there: Weak<T>,
    /// Until when; for ever at none, since a moment that cannot be represented never comes.
    kept: Option<(Arc<T>, Option<Instant>)>,
}

impl<K: PartialEq, T> Known<K, T> {
    const fn new() -> Self {
        Self {
            entries: Vec::new(),
            is_watched: false,
        }
    }

    fn find(&self, identity: &K) -> Option<Arc<T>> {
        let entries = self.entries.iter();
        let mut same = entries.filter(|entry| entry.identity == *identity);
        same.find_map(|entry| entry.there.upgrade())
    }

    fn add(&mut self, identity: K, session: &Arc<T>) {
        self.entries
            .retain(|entry| entry.there.strong_count() > 0 && entry.identity != identity);
        self.entries.push(Entry {
            identity,
            there: Arc::downgrade(session),
            kept: None,
        });
    }

    /// Keeps a session until then; one that another has taken the place of is not kept.
    fn keep(&mut self, identity: &K, session: &Arc<T>, until: Option<Instant>) {
        let same = |entry: &&mut Entry<K, T>| {
            entry.identity == *identity && entry.there.as_ptr() == Arc::as_ptr(session)
        };
        if let Some(entry) = self.entries.iter_mut().find(same) {
            entry.kept = Some((Arc::clone(session), until));
        }
    }

    /// What need not be kept any more at this moment; everything at none.
    fn expire(&mut self, now: Option<Instant>) -> Vec<Arc<T>> {
        let is_over = |kept: &mut (Arc<T>, Option<Instant>)| {
            now.is_none_or(|now| kept.1.is_some_and(|until| until <= now))
        };
        let entries = self.entries.iter_mut();
        let expired = entries.filter_map(|entry| entry.kept.take_if(is_over));
        expired.map(|(session, _)| session).collect()
    }

    /// When the next one need not be kept any more.
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
        let mut known = Known::<&str, u32>::new();
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

        // Used again and let go again: from then on.
        let again = known.find(&"a").expect("kept");
        known.keep(&"a", &again, Some(at(15)));
        drop(again);
        assert_eq!(known.expire(Some(at(14))), []);
        assert_eq!(known.expire(Some(at(15))), [Arc::new(1)]);
        assert_eq!((known.find(&"a"), known.next_end()), (None, None));
    }

    #[test]
    fn the_latest_of_an_identity_is_the_one() {
        let mut known = Known::<&str, u32>::new();
        let (old, new) = (Arc::new(1), Arc::new(2));
        known.add("a", &old);
        known.add("a", &new);
        assert_eq!(known.find(&"a").as_deref(), Some(&2));
        // Made at the same time as the other one: nobody would find it.
        known.keep(&"a", &old, Some(Instant::now()));
        assert_eq!(known.next_end(), None);
        known.keep(&"a", &new, Some(Instant::now()));
        assert!(known.next_end().is_some());
        // Until a moment that cannot be represented.
        known.keep(&"a", &new, None);
        assert_eq!(
            (known.next_end(), known.expire(Some(Instant::now()))),
            (None, vec![])
        );
        assert_eq!(known.expire(None), [Arc::new(2)]);
    }
}
