//! Resources of a node, shared among instances: Triton's rate limiter.
//!
//! An instance declares what each of its executions needs, such as two copies of `R1` on its device and one copy of
//! `R2` of the whole node. Resources are names: what they stand for is the operator's. An execution begins when all that
//! it needs is free, and holds it until it ends.
//!
//! ```text
//!   a model's driver:  want ----------> [ models that want an execution ]
//!                      free instance -> [ instances that could run it   ]
//!                                          |  least turns first, all resources free
//!                      grant <-------------+
//! ```
//!
//! Among the free instances of all models that want an execution, the one with the fewest *turns* comes first. An
//! execution counts as many turns as the instance's priority, so an instance of priority 2 runs half as often as one of
//! priority 1 when both always want to. An instance whose model wanted nothing for a while does not catch up on the
//! turns that it left to others.
//!
//! What the first one waits for is kept for it: instances behind it get only what it does not need. So one that needs
//! much is not passed over forever, and instances that need other resources do not wait for it.
//!
//! A resource has as many copies as the operator says, or else as many as the most demanding instance needs.

use smallvec::SmallVec;

use crate::InstanceId;

/// What an execution needs of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceDemand {
    /// The resource's name.
    pub name: String,
    /// The device whose copies are meant; `None` for those of the whole node.
    pub device: Option<u32>,
    /// How many copies.
    pub count: u32,
}

/// How many copies of a resource there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResourceSupply {
    /// The resource's name.
    pub name: String,
    /// The device that has them; `None` for each device, and for the whole node.
    pub device: Option<u32>,
    /// How many copies.
    pub count: u32,
}

/// Why an instance cannot be added. Texts are Triton's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// It could never run.
    #[error(
        "Resource count for \"{name}\" is limited to {limit} which will prevent scheduling of one or more model instances, the minimum required count is {needed}"
    )]
    TooFew {
        /// The resource.
        name: String,
        /// The copies that there are.
        limit: u32,
        /// The copies that the instance needs.
        needed: u32,
    },
    /// Other instances use the name for a resource of the other kind.
    #[error(
        "Resource \"{name}\" is present as both global and device-specific resource in the model configuration."
    )]
    Mixed {
        /// The resource.
        name: String,
    },
}

/// A model at the resources. The number of one that left is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceSeatId(pub u32);

/// Models that were granted an execution, in this order. [`ResourceShare::claim`] says on which instance.
pub type ResourceGrants = SmallVec<[ResourceSeatId; 2]>;

/// The resources of a node, and who holds and wants them. See the module's documentation.
#[derive(Debug, Default)]
pub struct ResourceShare {
    supplies: Vec<ResourceSupply>,
    resources: Vec<SharedResource>,
    models: Vec<Option<LimitedModel>>,
    /// The turns of the latest instance that was granted an execution, before it.
    turns_now: u64,
    /// The number of the next wish.
    next_wish: u64,
}

#[derive(Debug)]
struct SharedResource {
    name: String,
    device: Option<u32>,
    /// The copies that there are: stated, or the largest demand.
    limit: u32,
    used: u32,
    /// Whether an instance needs it. One that none needs and none holds makes room for another one.
    is_needed: bool,
}

#[derive(Debug, Default)]
struct LimitedModel {
    wish: Wish,
    instances: Vec<LimitedInstance>,
}

/// Whether a model wants to begin one more execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Wish {
    #[default]
    Nothing,
    /// Wishes are numbered in their order.
    Waiting(u64),
    /// Granted and not claimed yet.
    Granted(InstanceId, u64),
}

#[derive(Debug)]
struct LimitedInstance {
    id: InstanceId,
    priority: u64,
    /// Indices of resources, with the copies of each.
    needs: SmallVec<[(usize, u32); 2]>,
    turns: u64,
    state: InstanceState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InstanceState {
    /// It takes no batches.
    Away,
    Free,
    /// It holds its resources.
    Holds,
}

impl ResourceShare {
    /// Resources of which the operator states how many there are; others follow the demand. Of two statements about the
    /// same resource the last one counts.
    #[must_use]
    pub fn new(supplies: Vec<ResourceSupply>) -> Self {
        Self {
            supplies,
            ..Self::default()
        }
    }

    /// Adds a model without instances.
    pub fn join(&mut self) -> ResourceSeatId {
        let vacant = self.models.iter().position(Option::is_none);
        let index = vacant.unwrap_or_else(|| {
            self.models.push(None);
            self.models.len() - 1
        });
        self.models[index] = Some(LimitedModel::default());
        ResourceSeatId(u32::try_from(index).expect("fewer models than 2^32"))
    }

    /// Removes a model, with all that its instances hold.
    pub fn leave(&mut self, seat: ResourceSeatId, grants: &mut ResourceGrants) {
        if let Some(model) = self.models[seat.0 as usize].take() {
            for instance in &model.instances {
                release(&mut self.resources, instance);
            }
            self.follow_demand();
            self.grant(grants);
        }
    }

    /// Adds an instance, which takes no batches yet. A `priority` of 0 means 1. One of the same number is replaced.
    ///
    /// # Errors
    /// [`ResourceError`]; nothing has changed then.
    pub fn add(
        &mut self,
        seat: ResourceSeatId,
        id: InstanceId,
        priority: u32,
        demands: &[ResourceDemand],
    ) -> Result<(), ResourceError> {
        for demand in demands {
            self.check(demand, demands)?;
        }
        let mut needs: SmallVec<[(usize, u32); 2]> = SmallVec::new();
        for demand in demands {
            let index = self.resource(demand);
            match needs.iter_mut().find(|(known, _)| *known == index) {
                Some((_, count)) => *count = (*count).max(demand.count),
                None => needs.push((index, demand.count)),
            }
        }
        let instance = LimitedInstance {
            id,
            priority: u64::from(priority.max(1)),
            needs,
            turns: self.turns_now,
            state: InstanceState::Away,
        };
        if let Some(model) = self.model(seat) {
            model.instances.retain(|known| known.id != id);
            model.instances.push(instance);
        }
        self.follow_demand();
        Ok(())
    }

    /// Removes an instance, with all that it holds.
    pub fn remove(&mut self, seat: ResourceSeatId, id: InstanceId, grants: &mut ResourceGrants) {
        self.end(seat, id, InstanceState::Away);
        if let Some(model) = self.model(seat) {
            model.instances.retain(|known| known.id != id);
        }
        self.follow_demand();
        self.grant(grants);
    }

    /// An instance executes nothing, and takes batches: it has become ready, or its execution has ended.
    pub fn free(&mut self, seat: ResourceSeatId, id: InstanceId, grants: &mut ResourceGrants) {
        self.end(seat, id, InstanceState::Free);
        self.grant(grants);
    }

    /// An instance executes nothing, and takes no batches until it is free again.
    pub fn away(&mut self, seat: ResourceSeatId, id: InstanceId, grants: &mut ResourceGrants) {
        self.end(seat, id, InstanceState::Away);
        self.grant(grants);
    }

    /// A claimed execution is not needed: the instance is free, and the turn does not count.
    pub fn give_back(&mut self, seat: ResourceSeatId, id: InstanceId, grants: &mut ResourceGrants) {
        if let Some(instance) = self.instance(seat, id)
            && instance.state == InstanceState::Holds
        {
            instance.turns = instance.turns.saturating_sub(instance.priority);
            self.free(seat, id, grants);
        }
    }

    /// A model wants to begin one more execution, on any of its instances.
    pub fn want(&mut self, seat: ResourceSeatId, grants: &mut ResourceGrants) {
        let (wish, turns_now) = (self.next_wish, self.turns_now);
        self.next_wish += 1;
        if let Some(model) = self.model(seat)
            && model.wish == Wish::Nothing
        {
            model.wish = Wish::Waiting(wish);
            for instance in &mut model.instances {
                // Turns in which it wanted nothing are not caught up.
                instance.turns = instance.turns.max(turns_now);
            }
            self.grant(grants);
        }
    }

    /// The instance on which a model may begin its execution, once after a grant.
    pub fn claim(&mut self, seat: ResourceSeatId) -> Option<InstanceId> {
        let model = self.model(seat)?;
        let Wish::Granted(instance, _) = model.wish else {
            return None;
        };
        model.wish = Wish::Nothing;
        Some(instance)
    }

    fn check(
        &self,
        demand: &ResourceDemand,
        others: &[ResourceDemand],
    ) -> Result<(), ResourceError> {
        let is_global = demand.device.is_none();
        let used = self.instances().flat_map(|instance| &instance.needs);
        let used = used.map(|&(index, _)| &self.resources[index]);
        let mut kinds = used
            .map(|resource| (&resource.name, resource.device))
            .chain(others.iter().map(|other| (&other.name, other.device)));
        if kinds.any(|(name, device)| *name == demand.name && device.is_none() != is_global) {
            return Err(ResourceError::Mixed {
                name: demand.name.clone(),
            });
        }
        match self.stated(&demand.name, demand.device) {
            Some(limit) if limit < demand.count => Err(ResourceError::TooFew {
                name: demand.name.clone(),
                limit,
                needed: demand.count,
            }),
            _ => Ok(()),
        }
    }

    /// The number of copies that the operator states.
    fn stated(&self, name: &str, device: Option<u32>) -> Option<u32> {
        let of = |device: Option<u32>| {
            let mut supplies = self.supplies.iter().rev();
            supplies.find(|supply| supply.name == name && supply.device == device)
        };
        device
            .and_then(|device| of(Some(device)))
            .or_else(|| of(None))
            .map(|supply| supply.count)
    }

    /// The index of the resource that a demand means.
    fn resource(&mut self, demand: &ResourceDemand) -> usize {
        let known = self
            .resources
            .iter()
            .position(|resource| resource.name == demand.name && resource.device == demand.device);
        if let Some(index) = known {
            self.resources[index].is_needed = true;
            return index;
        }
        let new = SharedResource {
            name: demand.name.clone(),
            device: demand.device,
            limit: 0,
            used: 0,
            is_needed: true,
        };
        let mut resources = self.resources.iter();
        match resources.position(|resource| !resource.is_needed && resource.used == 0) {
            Some(index) => {
                self.resources[index] = new;
                index
            }
            None => {
                self.resources.push(new);
                self.resources.len() - 1
            }
        }
    }

    /// Sets how many copies there are of each resource.
    fn follow_demand(&mut self) {
        let mut most: Vec<Option<u32>> = vec![None; self.resources.len()];
        for instance in self.instances() {
            for &(index, count) in &instance.needs {
                most[index] = most[index].max(Some(count));
            }
        }
        for (index, most) in most.into_iter().enumerate() {
            let resource = &self.resources[index];
            let stated = self.stated(&resource.name, resource.device);
            let resource = &mut self.resources[index];
            resource.is_needed = most.is_some();
            resource.limit = stated.or(most).unwrap_or(0);
        }
    }

    fn instances(&self) -> impl Iterator<Item = &LimitedInstance> {
        let models = self.models.iter().flatten();
        models.flat_map(|model| &model.instances)
    }

    fn model(&mut self, seat: ResourceSeatId) -> Option<&mut LimitedModel> {
        self.models.get_mut(seat.0 as usize)?.as_mut()
    }

    fn instance(&mut self, seat: ResourceSeatId, id: InstanceId) -> Option<&mut LimitedInstance> {
        let mut instances = self.model(seat)?.instances.iter_mut();
        instances.find(|instance| instance.id == id)
    }

    /// Ends an instance's execution, if it has one.
    fn end(&mut self, seat: ResourceSeatId, id: InstanceId, state: InstanceState) {
        let Some(model) = self
            .models
            .get_mut(seat.0 as usize)
            .and_then(Option::as_mut)
        else {
            return;
        };
        let known = model.instances.iter_mut().find(|known| known.id == id);
        let Some(instance) = known else { return };
        release(&mut self.resources, instance);
        instance.state = state;
        if let Wish::Granted(granted, wish) = model.wish
            && granted == id
        {
            // It has gone before its model claimed it. The model still wants an execution.
            model.wish = Wish::Waiting(wish);
        }
    }

    /// Grants executions until none can begin.
    fn grant(&mut self, grants: &mut ResourceGrants) {
        while let Some((model_index, instance_index)) = self.next_turn() {
            let seat = ResourceSeatId(u32::try_from(model_index).expect("fewer models than 2^32"));
            let Some(model) = &mut self.models[model_index] else {
                return;
            };
            let instance = &mut model.instances[instance_index];
            instance.state = InstanceState::Holds;
            for &(index, count) in &instance.needs {
                self.resources[index].used += count;
            }
            self.turns_now = self.turns_now.max(instance.turns);
            instance.turns += instance.priority;
            if let Wish::Waiting(wish) = model.wish {
                model.wish = Wish::Granted(instance.id, wish);
            }
            grants.push(seat);
        }
    }

    /// The instance that may begin an execution next: the indices of its model, and of itself in there.
    fn next_turn(&self) -> Option<(usize, usize)> {
        // Turns, the number of the wish, and the indices.
        let mut candidates: Vec<(u64, u64, usize, usize)> = Vec::new();
        for (model_index, model) in self.models.iter().enumerate() {
            let Some(model) = model else { continue };
            let Wish::Waiting(wish) = model.wish else {
                continue;
            };
            for (index, instance) in model.instances.iter().enumerate() {
                if instance.state == InstanceState::Free {
                    candidates.push((instance.turns, wish, model_index, index));
                }
            }
        }
        candidates.sort_unstable();
        let mut kept = vec![0; self.resources.len()];
        // Models with an instance for which something is kept already: a model wants one execution.
        let mut waiting: SmallVec<[usize; 8]> = SmallVec::new();
        for (_, _, model_index, index) in candidates {
            let model = self.models[model_index].as_ref()?;
            let needs = &model.instances[index].needs;
            let is_free = |&(index, count): &(usize, u32)| {
                let resource = &self.resources[index];
                let taken = u64::from(resource.used) + kept[index];
                taken + u64::from(count) <= u64::from(resource.limit)
            };
            if needs.iter().all(is_free) {
                return Some((model_index, index));
            }
            if !waiting.contains(&model_index) {
                waiting.push(model_index);
                for &(index, count) in needs {
                    kept[index] += u64::from(count);
                }
            }
        }
        None
    }
}

/// Gives back what an instance holds.
fn release(resources: &mut [SharedResource], instance: &LimitedInstance) {
    if instance.state == InstanceState::Holds {
        for &(index, count) in &instance.needs {
            resources[index].used -= count;
        }
    }
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
