//! The response cache: responses that are kept for equal requests.
//!
//! ```text
//! LoadedVersion::infer -> digest (of the request) -> CachedResponder -- found --> the response, in its turn
//!                                                         |  `-- not found --> the version's own responder
//!                                                         |                         |
//!                                                      CacheShare <-- kept ---- Submission::answered
//!                                                         |
//! ResponseCache, one for the node: the lock around        `--> table: which entries stay, which leave
//! ```
//!
//! A version's entries leave with it: its responder has a [`CacheShare`], whose end removes them. Errors are never kept,
//! nor are responses that nobody waits for any more: an entry is made by the task that waits for the answer.

pub(crate) mod digest;
mod kept;
mod long_work;
mod responder;
mod table;

use std::{
    num::NonZeroU64,
    sync::{Arc, Mutex},
};

use skep_config::ResponseCaching;
use skep_host::lock;
use skep_types::Time;

pub(crate) use self::responder::{CachedResponder, PendingEntry};
pub use self::table::{DropReason, VersionCacheReport};
use self::{
    kept::entry_bytes,
    table::{CacheTable, EntryDigest, OwnerId, OwnerLimits},
};
use crate::serving::request::InferResponse;

/// The node's cache of responses, which the models with `response_cache` share.
#[derive(Debug)]
pub struct ResponseCache {
    table: Mutex<CacheTable<Arc<InferResponse>>>,
}

/// The memory of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResponseCacheReport {
    /// Bytes that all responses may take.
    pub limit_bytes: u64,
    /// Bytes that they take.
    pub used_bytes: u64,
}

impl ResponseCache {
    /// An empty cache whose responses take `bytes` bytes at most.
    #[must_use]
    pub fn new(bytes: NonZeroU64) -> Arc<Self> {
        Arc::new(Self {
            table: Mutex::new(CacheTable::new(bytes.get())),
        })
    }

    /// How much memory it has and uses.
    #[must_use]
    pub fn report(&self) -> ResponseCacheReport {
        let table = lock(&self.table);
        ResponseCacheReport {
            limit_bytes: table.limit(),
            used_bytes: table.bytes(),
        }
    }

    /// A part for one version.
    pub(crate) fn share(self: &Arc<Self>, caching: &ResponseCaching) -> CacheShare {
        let owner = lock(&self.table).add_owner(OwnerLimits {
            bytes: caching.max_bytes,
            time_to_live: caching.time_to_live,
        });
        CacheShare {
            cache: Arc::clone(self),
            owner,
        }
    }
}

/// A version's part of the cache. Its end removes the version's responses.
#[derive(Debug)]
pub(crate) struct CacheShare {
    cache: Arc<ResponseCache>,
    owner: OwnerId,
}

impl CacheShare {
    /// The response to an equal request.
    fn look_up(&self, now: Time, digest: &EntryDigest) -> Option<Arc<InferResponse>> {
        // Freed after the lock.
        let mut leaving = Vec::new();
        let mut table = lock(&self.cache.table);
        table
            .look_up(now, self.owner, digest, &mut leaving)
            .cloned()
    }

    /// Keeps a response, as far as there is room.
    fn insert(&self, now: Time, digest: EntryDigest, response: InferResponse) {
        let bytes = entry_bytes(&response);
        let mut leaving = Vec::new();
        let entry = (Arc::new(response), bytes);
        lock(&self.cache.table).insert(now, self.owner, digest, entry, &mut leaving);
    }

    fn report(&self) -> VersionCacheReport {
        lock(&self.cache.table).report(self.owner)
    }
}

impl Drop for CacheShare {
    fn drop(&mut self) {
        let values = lock(&self.cache.table).remove_owner(self.owner);
        // After the lock.
        drop(values);
    }
}
