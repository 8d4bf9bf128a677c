//! The handle that users of a store have.

use std::{os::unix::net::UnixStream, path::Path, sync::Arc, time::Duration};

use crate::{
    Digest, Fill, Lease, LoadOrder, Present, Stat, StoreError, StoreOptions, StoredTensor, Tenant,
    Wanted,
    acquire::{acquire, look},
    client::DaemonClient,
    lease::lengths,
    local::LocalStores,
    rights::{MAX_RESTRICTED, Rights},
    server::serve_apart,
};

/// A tensor store: in this process, or a daemon's. Clones are the same store.
#[derive(Debug, Clone)]
pub struct Store(Inner);

#[derive(Debug, Clone)]
enum Inner {
    Local(Arc<LocalStores>),
    Remote(Arc<DaemonClient>),
}

/// A connection to a store of this process.
fn pair(local: &LocalStores, tenant: &Tenant, rights: Rights) -> Result<UnixStream, StoreError> {
    let session = local.store(tenant)?.join()?;
    let (ours, theirs) = UnixStream::pair().map_err(StoreError::disconnected)?;
    serve_apart(session, ours, rights)?;
    Ok(theirs)
}

impl Store {
    /// A store of this process, which ends with the last handle and the last lease.
    #[must_use]
    pub fn in_process(options: StoreOptions) -> Self {
        Self(Inner::Local(LocalStores::new(options, Duration::ZERO)))
    }

    /// The store of the node: `path` is the daemon's directory, or the socket of one tenant.
    ///
    /// When the daemon ends, leases stay good, and are handed back to the next one as soon as that is there; an acquire
    /// waits some seconds for it.
    ///
    /// # Errors
    /// [`StoreError::Connect`] if `path` is no directory and nobody serves there.
    pub fn connect(path: &Path) -> Result<Self, StoreError> {
        Ok(Self(Inner::Remote(DaemonClient::connect(path)?)))
    }

    /// A store at the other end of a connection from [`Self::stream`] that this process was given. It is that one
    /// tenant's, and when it ends leases stay good, but nothing more can be acquired.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`], or what the other side says.
    pub fn over(stream: UnixStream) -> Result<Self, StoreError> {
        Ok(Self(Inner::Remote(DaemonClient::over(stream)?)))
    }

    /// A new connection to a tenant's store, to be handed to another process for [`Self::over`]. A store of this process
    /// serves it on a thread of its own until the other side ends it; it counts as a holder.
    ///
    /// # Errors
    /// [`StoreError::Bound`] if there are too many connections, [`StoreError::Connect`] if there is no daemon,
    /// [`StoreError::Inherited`] if this store has itself only been handed a connection.
    pub fn stream(&self, tenant: &Tenant) -> Result<UnixStream, StoreError> {
        match &self.0 {
            Inner::Local(local) => pair(local, tenant, Rights::All),
            Inner::Remote(client) => client.stream(tenant),
        }
    }

    /// As [`Self::stream`], for a process that is not trusted: through the connection it gets, fills and lets go of these
    /// tensors, and does nothing else. One that asks for more is told so, and its connection ends.
    ///
    /// # Errors
    /// Those of [`Self::stream`]; [`StoreError::Bound`] if there are more tensors than a connection can be restricted to;
    /// with a daemon also what it says to the restriction.
    pub fn stream_for(
        &self,
        tenant: &Tenant,
        tensors: &[Digest],
    ) -> Result<UnixStream, StoreError> {
        if tensors.len() > MAX_RESTRICTED {
            return Err(StoreError::Bound {
                bound: "tensors of a restricted connection",
                tenant: tenant.clone(),
                would_be: tensors.len() as u64,
                limit: MAX_RESTRICTED as u64,
            });
        }
        match &self.0 {
            Inner::Local(local) => {
                let rights = Rights::These(tensors.iter().copied().collect());
                pair(local, tenant, rights)
            }
            Inner::Remote(client) => client.stream_for(tenant, tensors),
        }
    }

    /// The only tenant of this store, where the connection decides it; none if any may be asked for.
    #[must_use]
    pub fn tenant(&self) -> Option<&Tenant> {
        match &self.0 {
            Inner::Local(_) => None,
            Inner::Remote(client) => client.tenant(),
        }
    }

    /// Whether both are handles of one store.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Inner::Local(one), Inner::Local(other)) => Arc::ptr_eq(one, other),
            (Inner::Remote(one), Inner::Remote(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
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
                let session = local.store(tenant)?.join()?;
                let got = acquire(&mut &session, wanted, order, fill)?;
                Lease::new(got, |index| wanted[index].length, Box::new(session))
            }
            Inner::Remote(client) => client.acquire(tenant, wanted, order, fill),
        }
    }

    /// Gets those tensors that are there already, and waits for nobody.
    ///
    /// # Errors
    /// [`StoreError::Bound`] if there is no room for another holder or its leases. With a daemon also what its connection
    /// says.
    pub fn look(&self, tenant: &Tenant, wanted: &[Wanted]) -> Result<Present, StoreError> {
        match &self.0 {
            Inner::Local(local) => {
                let session = local.store(tenant)?.join()?;
                let (got, indices) = look(&mut &session, wanted)?;
                let lengths = lengths(wanted, &indices);
                let lease = Lease::new(got, |index| lengths[index], Box::new(session))?;
                Ok(Present { lease, indices })
            }
            Inner::Remote(client) => client.look(tenant, wanted),
        }
    }

    /// Tenants with a store, in order.
    ///
    /// # Errors
    /// If a daemon's directory cannot be read.
    pub fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local
                .stores()
                .iter()
                .map(|store| store.tenant().clone())
                .collect()),
            Inner::Remote(client) => client.tenants(),
        }
    }

    /// The figures of every tenant's store, in order of tenants; none if they are those of a daemon, which has to be asked.
    #[must_use]
    pub fn own_figures(&self) -> Option<Vec<(Tenant, Stat)>> {
        let Inner::Local(local) = &self.0 else {
            return None;
        };
        let figures = local.stores().into_iter();
        Some(
            figures
                .map(|store| (store.tenant().clone(), store.stat()))
                .collect(),
        )
    }

    /// The figures of a tenant's store.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn stat(&self, tenant: &Tenant) -> Result<Stat, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.store(tenant)?.stat()),
            Inner::Remote(client) => client.stat(tenant),
        }
    }

    /// Every tensor of a tenant's store, in order of digests.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn ls(&self, tenant: &Tenant) -> Result<Vec<StoredTensor>, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.store(tenant)?.list(None, usize::MAX)),
            Inner::Remote(client) => client.list(tenant),
        }
    }

    /// Memory is short: a store of this process gives up tensors that nobody has a lease to, of every tenant, the least
    /// recently used first; half of them each time that it is told so. A daemon looks after that itself. Bytes that went.
    pub fn relieve(&self) -> u64 {
        match &self.0 {
            Inner::Local(local) => local.relieve(),
            Inner::Remote(_) => 0,
        }
    }

    /// Drops every segment of a tenant's store in which nobody has a lease to a tensor. Bytes of these segments.
    ///
    /// # Errors
    /// If a daemon does not answer.
    pub fn gc(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        match &self.0 {
            Inner::Local(local) => Ok(local.store(tenant)?.gc()),
            Inner::Remote(client) => client.gc(tenant),
        }
    }
}
