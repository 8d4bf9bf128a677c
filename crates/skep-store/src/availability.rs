//! What a holder is told of a tensor that it asks for.

/// The answer of a ledger, a store or a daemon. `L` says where the tensor lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Availability<L> {
    /// It lies there, and the holder has a lease to it.
    Here(L),
    /// The holder has the ticket: it is the one that fills the tensor.
    Fill,
    /// Another holder has the ticket, or tickets are not given out yet.
    Wait,
    /// It is not there.
    Absent,
}

impl<L> Availability<L> {
    /// The same answer, with another way to say where the tensor lies.
    pub(crate) fn map<M>(self, locate: impl FnOnce(L) -> M) -> Availability<M> {
        match self {
            Self::Here(location) => Availability::Here(locate(location)),
            Self::Fill => Availability::Fill,
            Self::Wait => Availability::Wait,
            Self::Absent => Availability::Absent,
        }
    }

    /// [`Self::map`] with a location that may be unknown.
    ///
    /// # Errors
    /// That of `locate`.
    pub(crate) fn try_map<M, E>(
        self,
        locate: impl FnOnce(L) -> Result<M, E>,
    ) -> Result<Availability<M>, E> {
        Ok(match self {
            Self::Here(location) => Availability::Here(locate(location)?),
            Self::Fill => Availability::Fill,
            Self::Wait => Availability::Wait,
            Self::Absent => Availability::Absent,
        })
    }
}
