//! The handle that users of a store have.

use std::{sync::Arc, time::Duration};

use crate::{
    Fill, Lease, Listed, LoadOrder, Stat, StoreError, StoreOptions, Tenant, Wanted,
    acquire::acquire, local::Local,
};

/// A tensor store: in this process, or a daemon's.
#[derive(Debug, Clone)]
pub struct Store(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Local(Arc<Local>),
}

impl Store {
    /// A store of this process, which ends with the last handle and the last lease.
    #[must_use]
    pub fn in_process(options: StoreOptions) -> Self {
        Self(Inner::Local(Local::new(options, Duration::ZERO)))
    }

    /// Gets tensors: those that are there at once; of the others each is filled by one of those who want it, and the
    /// rest wait. Returns when all are there, each verified once, when it was published.
    ///
    /// `fill` writes the bytes of the tensor at an index of `wanted`, exactly as many as that says, into zeroed memory. It
    /// is called once for each distinct tensor that is this caller's to fill, with the first index that it has.
    ///
    /// # Errors
    /// [`StoreError::Fill`] if `fill` fails; others may fill then. [`StoreError::Content`] if what it wrote is not what
    /// was wanted. [`StoreError::Bound`] and [`StoreError::Memory`] if there is no room. With a daemon also what its
    /// connection says.
    pub fn acquire(
        &self,
        tenant: &Tenant,
        wanted: &[Wanted],
        order: LoadOrder,
        fill: Fill<'_>,
    ) -> Result<Lease, StoreError> {
        match &self.0 {
            Inner::Local(local) => {
                let session = local.shelf(tenant)?.join()?;
                let got = acquire(&mut &session, wanted, order, fill)?;
                Lease::new(got, |index| wanted[index].length, Box::new(session))
            }
        }
    }

    /// Tenants with a store, in order.
    ///
    /// # Errors
    /// If a daemon's directory cannot be read.
    pub fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local
                .shelves()
                .iter()
                .map(|shelf| shelf.tenant().clone())
                .collect()),
        }
    }

    /// The figures of a tenant's store.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn stat(&self, tenant: &Tenant) -> Result<Stat, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.shelf(tenant)?.stat()),
        }
    }

    /// Every tensor of a tenant's store, in order of digests.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn ls(&self, tenant: &Tenant) -> Result<Vec<Listed>, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.shelf(tenant)?.list(None, usize::MAX)),
        }
    }

    /// Drops every segment of a tenant's store in which nobody has a lease to a tensor. Bytes of these segments.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn gc(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.shelf(tenant)?.gc()),
        }
    }
}
