//! What a connection may ask for.
//!
//! A server hands connections to processes that it does not trust, each of which runs one model. It *restricts* such a
//! connection first: through it the process can acquire, fill and release the tensors of that model. It cannot list
//! tensors, read figures, drop idle tensors, or learn whether a tensor of another model is there.

use std::collections::{HashMap, HashSet};

use crate::{
    Digest, StoreError, acquire::Offered, layout::room, segment::Segment, wire::StoreRequest,
};

/// The tensors that a restricted connection may name: as many as one holder may lease by default.
pub(crate) const MAX_RESTRICTED: usize = 1 << 16;

/// A memory file of huge pages takes up to one huge page more than its bytes.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// The rights of a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Every request.
    #[default]
    All,
    /// These tensors alone.
    These(HashSet<Digest>),
}

impl Rights {
    /// Checks a request.
    ///
    /// # Errors
    /// [`StoreError::NotAllowed`], which ends the connection.
    pub(crate) fn check(&self, request: &StoreRequest) -> Result<(), StoreError> {
        let Self::These(tensors) = self else {
            return Ok(());
        };
        match request {
            StoreRequest::Hello | StoreRequest::Restrict { .. } => Ok(()),
            StoreRequest::Take { wanted, .. } => {
                check_all(tensors, wanted.iter().map(|tensor| tensor.digest))
            }
            StoreRequest::Publish(offered) => {
                check_all(tensors, offered.iter().map(|(tensor, _)| tensor.digest))
            }
            StoreRequest::GiveBack(digests) | StoreRequest::Release(digests) => {
                check_all(tensors, digests.iter().copied())
            }
            StoreRequest::Stat => Err(not_allowed("figures")),
            StoreRequest::List(_) => Err(not_allowed("a list of tensors")),
            StoreRequest::Gc => Err(not_allowed("dropping idle tensors")),
        }
    }

    /// Checks that a memory file takes no more memory than its tensors need.
    ///
    /// # Errors
    /// [`StoreError::NotAllowed`].
    pub(crate) fn check_size(
        &self,
        segment: &Segment,
        offered: &[Offered<'_>],
    ) -> Result<(), StoreError> {
        if *self == Self::All {
            return Ok(());
        }
        // A tensor that is offered twice lies in the file once.
        let tensors: HashMap<Digest, u64> = offered
            .iter()
            .map(|tensor| (tensor.wanted.digest, tensor.wanted.length))
            .collect();
        let needed = tensors
            .values()
            .fold(0_u64, |sum, length| sum.saturating_add(room(*length)));
        if segment.reserved() <= needed.saturating_add(HUGE_PAGE_BYTES) {
            return Ok(());
        }
        Err(not_allowed(format!(
            "a memory file of {} bytes for tensors of {needed}",
            segment.reserved()
        )))
    }
}

/// Checks that a connection may name all of these digests.
fn check_all(
    allowed: &HashSet<Digest>,
    digests: impl Iterator<Item = Digest>,
) -> Result<(), StoreError> {
    let mut foreign = digests.filter(|digest| !allowed.contains(digest));
    foreign.next().map_or(Ok(()), |digest| {
        Err(not_allowed(format!("tensor `{digest}`")))
    })
}

fn not_allowed(what: impl Into<String>) -> StoreError {
    StoreError::NotAllowed { what: what.into() }
}
