//! Which instances there are, and which are free.

use skep_types::Time;

/// One instance of the model; its owner chooses the number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u32);

/// A batch on an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunningBatch {
    /// Its inferences.
    pub(crate) size: usize,
    /// When it was dispatched.
    pub(crate) since: Time,
}

/// The known instances. They are few, so a scan beats any index.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    /// Each with the batch that it executes.
    known: Vec<(InstanceId, Option<RunningBatch>)>,
}

impl Instances {
    /// Adds an instance, or frees one and returns the batch that it has executed.
    pub(crate) fn set_free(&mut self, id: InstanceId) -> Option<RunningBatch> {
        match self.known.iter_mut().find(|(known, _)| *known == id) {
            Some((_, run)) => run.take(),
            None => {
                self.known.push((id, None));
                None
            }
        }
    }

    /// Removes an instance.
    pub(crate) fn remove(&mut self, id: InstanceId) {
        self.known.retain(|(known, _)| *known != id);
    }

    /// Takes the free instance with the lowest number. Under light load that is always the same one, whose caches are
    /// warm.
    pub(crate) fn take_free(&mut self, with: RunningBatch) -> Option<InstanceId> {
        let free = self.known.iter_mut().filter(|(_, run)| run.is_none());
        let (id, run) = free.min_by_key(|(id, _)| *id)?;
        *run = Some(with);
        Some(*id)
    }

    /// Takes an instance, if it is free.
    pub(crate) fn take(&mut self, id: InstanceId, with: RunningBatch) -> Option<InstanceId> {
        let mut known = self.known.iter_mut();
        let (_, run) = known.find(|(known, run)| *known == id && run.is_none())?;
        *run = Some(with);
        Some(id)
    }

    pub(crate) fn any_free(&self) -> bool {
        self.known.iter().any(|(_, run)| run.is_none())
    }

    /// What each executes; `None` for free ones.
    pub(crate) fn runs(&self) -> impl Iterator<Item = Option<RunningBatch>> + Clone + '_ {
        self.known.iter().map(|(_, run)| *run)
    }

    /// Whether an instance executes a batch; `None` for an unknown one.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(size: usize) -> RunningBatch {
        RunningBatch {
            size,
            since: Time::ZERO,
        }
    }

    #[test]
    fn instances_join_run_and_leave() {
        let mut instances = Instances::default();
        assert!(instances.is_empty() && !instances.any_free());
        for id in [5, 2, 7] {
            assert_eq!(instances.set_free(InstanceId(id)), None);
        }
        assert_eq!(instances.take_free(batch(1)), Some(InstanceId(2)));
        assert_eq!(instances.take_free(batch(3)), Some(InstanceId(5)));
        assert_eq!(instances.len(), 3);
        let mut runs: Vec<Option<usize>> = instances
            .runs()
            .map(|run| run.map(|run| run.size))
            .collect();
        runs.sort_unstable();
        assert_eq!(runs, [None, Some(1), Some(3)]);
        assert_eq!(instances.is_busy(InstanceId(5)), Some(true));
        assert_eq!(instances.is_busy(InstanceId(7)), Some(false));
        assert_eq!(instances.is_busy(InstanceId(6)), None);
        instances.remove(InstanceId(7));
        assert!(!instances.any_free());
        assert_eq!(instances.take_free(batch(1)), None);
        assert_eq!(instances.set_free(InstanceId(5)), Some(batch(3)));
        assert!(instances.any_free() && !instances.is_empty());
    }
}
