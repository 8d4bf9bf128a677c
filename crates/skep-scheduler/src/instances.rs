//! Which instances there are, and which are free.

use skep_types::Time;

/// One instance of the model, numbered by whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u32);

/// A batch that an instance executes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunningBatch {
    /// Its inferences.
    pub(crate) size: usize,
    /// When it was dispatched.
    pub(crate) since: Time,
}

/// The known instances; a handful, so a scan beats any index.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    /// With what they execute.
    known: Vec<(InstanceId, Option<RunningBatch>)>,
}

impl Instances {
    /// An instance joins, or has finished its execution, which is given back.
    pub(crate) fn set_free(&mut self, id: InstanceId) -> Option<RunningBatch> {
        match self.known.iter_mut().find(|(known, _)| *known == id) {
            Some((_, run)) => run.take(),
            None => {
                self.known.push((id, None));
                None
            }
        }
    }

    /// An instance leaves for good.
    pub(crate) fn remove(&mut self, id: InstanceId) {
        self.known.retain(|(known, _)| *known != id);
    }

    /// Takes the free instance with the lowest number: under light load always the same one, whose caches are warm.
    pub(crate) fn take_free(&mut self, with: RunningBatch) -> Option<InstanceId> {
        let free = self.known.iter_mut().filter(|(_, run)| run.is_none());
        let (id, run) = free.min_by_key(|(id, _)| *id)?;
        *run = Some(with);
        Some(*id)
    }

    pub(crate) fn any_free(&self) -> bool {
        self.known.iter().any(|(_, run)| run.is_none())
    }

    /// What each executes; none for free ones.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Option<RunningBatch>> + Clone + '_ {
        self.known.iter().map(|(_, run)| *run)
    }

    /// Whether it executes a batch; `None` for one that is not known.
    pub(crate) fn is_busy(&self, id: InstanceId) -> Option<bool> {
        let known = self.known.iter().find(|(known, _)| *known == id);
        known.map(|(_, run)| run.is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}
