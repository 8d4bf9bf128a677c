//! The resources of a node at run time: Triton's rate limiter behind a lock.
//!
//! A driver gets resources before it asks its device for slots: an execution that waits for slots may hold resources, but
//! none that waits for resources holds slots. Locks are taken as those of a device are: a driver's may be held
//! while the limiter's is taken, never the other way round, and other drivers are told when no lock is held.

use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
};

use skep_host::lock;
use skep_scheduler::{
    InstanceId, ResourceDemand, ResourceError, ResourceGrants, ResourceSeatId, ResourceShare,
    ResourceSupply,
};
use smallvec::SmallVec;

use super::device::{PendingGrants, SlotHolder};

/// The resources that the instances of a node share (`--rate-limit=execution_count`).
pub struct RateLimiter {
    state: Mutex<LimiterState>,
}

struct LimiterState {
    share: ResourceShare,
    /// The holders, by their number at the share.
    holders: Vec<Weak<dyn SlotHolder>>,
}

impl RateLimiter {
    /// Resources of which the operator states how many there are; others follow the demand.
    #[must_use]
    pub fn new(supplies: Vec<ResourceSupply>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(LimiterState {
                share: ResourceShare::new(supplies),
                holders: Vec::new(),
            }),
        })
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").finish_non_exhaustive()
    }
}

/// What has become of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstanceNews {
    /// It executes nothing, and takes batches.
    Free(InstanceId),
    /// It executes nothing, and takes no batches.
    Away(InstanceId),
    /// It was granted an execution that is not needed.
    Unused(InstanceId),
    /// It is gone.
    Removed(InstanceId),
}

/// What a driver keeps of its permits under its lock.
#[derive(Debug, Default)]
pub(crate) struct PermitState {
    /// News that the limiter has not been told.
    pub(crate) news: SmallVec<[InstanceNews; 2]>,
    /// The instance that has its resources for the next execution, which waits for slots.
    pub(crate) held: Option<InstanceId>,
    /// The instance that the scheduler was last told to use.
    pub(crate) used: Option<InstanceId>,
}

/// A model's place at the limiter, given up on drop.
pub(crate) struct ResourceSeat {
    limiter: Arc<RateLimiter>,
    id: ResourceSeatId,
}

impl ResourceSeat {
    /// A place for `holder`.
    pub(crate) fn new(limiter: Arc<RateLimiter>, holder: Weak<dyn SlotHolder>) -> Self {
        let mut state = lock(&limiter.state);
        let id = state.share.join();
        let index = index(id);
        if index < state.holders.len() {
            state.holders[index] = holder;
        } else {
            state.holders.push(holder);
        }
        drop(state);
        Self { limiter, id }
    }

    /// Adds an instance that needs so much for each execution. It takes no batches before it is free.
    pub(crate) fn add(
        &self,
        instance: InstanceId,
        priority: u32,
        demands: &[ResourceDemand],
    ) -> Result<(), ResourceError> {
        let mut state = lock(&self.limiter.state);
        state.share.add(self.id, instance, priority, demands)
    }

    /// Tells the limiter the news, and whether an execution is wanted. Returns the instance that may begin one.
    pub(crate) fn tell(
        &self,
        news: &[InstanceNews],
        wants: bool,
        pending: &mut PendingGrants,
    ) -> Option<InstanceId> {
        let mut grants = ResourceGrants::new();
        let mut state = lock(&self.limiter.state);
        let share = &mut state.share;
        for news in news {
            match *news {
                InstanceNews::Free(instance) => share.free(self.id, instance, &mut grants),
                InstanceNews::Away(instance) => share.away(self.id, instance, &mut grants),
                InstanceNews::Unused(instance) => share.give_back(self.id, instance, &mut grants),
                InstanceNews::Removed(instance) => share.remove(self.id, instance, &mut grants),
            }
        }
        if wants {
            share.want(self.id, &mut grants);
        }
        let claimed = share.claim(self.id);
        self.note(&state, &grants, pending);
        claimed
    }

    /// Notes the grants to others.
    fn note(&self, state: &LimiterState, grants: &ResourceGrants, pending: &mut PendingGrants) {
        for id in grants.iter().filter(|id| **id != self.id) {
            if let Some(holder) = state.holders[index(*id)].upgrade() {
                pending.resources_for(holder);
            }
        }
    }
}

impl Drop for ResourceSeat {
    fn drop(&mut self) {
        let mut pending = PendingGrants::default();
        let mut grants = ResourceGrants::new();
        let mut state = lock(&self.limiter.state);
        state.share.leave(self.id, &mut grants);
        self.note(&state, &grants, &mut pending);
        drop(state);
        pending.deliver();
    }
}

fn index(id: ResourceSeatId) -> usize {
    usize::try_from(id.0).unwrap_or(usize::MAX)
}
