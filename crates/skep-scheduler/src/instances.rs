//! Which instances there are, and which are free.

/// One instance of the model, numbered by whoever made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Busy,
}

/// The known instances; a handful, so a scan beats any index.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    known: Vec<(InstanceId, State)>,
}

impl Instances {
    /// An instance joins, or has finished its execution.
    pub(crate) fn set_free(&mut self, id: InstanceId) {
        match self.known.iter_mut().find(|(known, _)| *known == id) {
            Some((_, state)) => *state = State::Free,
            None => self.known.push((id, State::Free)),
        }
    }

    /// An instance leaves for good.
    pub(crate) fn remove(&mut self, id: InstanceId) {
        self.known.retain(|(known, _)| *known != id);
    }

    /// Takes the free instance with the lowest number: under light load always the same one, whose caches are warm.
    pub(crate) fn take_free(&mut self) -> Option<InstanceId> {
        let free = self
            .known
            .iter_mut()
            .filter(|(_, state)| *state == State::Free);
        let (id, state) = free.min_by_key(|(id, _)| *id)?;
        *state = State::Busy;
        Some(*id)
    }

    pub(crate) fn any_free(&self) -> bool {
        self.known.iter().any(|(_, state)| *state == State::Free)
    }

    /// Whether it executes a batch; `None` for one that is not known.
    pub(crate) fn is_busy(&self, id: InstanceId) -> Option<bool> {
        let known = self.known.iter().find(|(known, _)| *known == id);
        known.map(|(_, state)| *state == State::Busy)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}
