//! The handle of a store.

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

/// A tensor store, in this process or a daemon. Clones are handles of the same store.
#[derive(Debug, Clone)]
pub struct Store(StoreKind);

#[derive(Debug, Clone)]
enum StoreKind {
    Local(Arc<LocalStores>),
    Remote(Arc<DaemonClient>),
}

/// Opens a connection to a store of this process.
fn pair(local: &LocalStores, tenant: &Tenant, rights: Rights) -> Result<UnixStream, StoreError> {
    let session = local.store(tenant)?.join()?;
    let (ours, theirs) = UnixStream::pair().map_err(StoreError::disconnected)?;
    serve_apart(session, ours, rights)?;
    Ok(theirs)
}

impl Store {
    /// Creates a store in this process, which ends with its last handle and lease.
    #[must_use]
    pub fn in_process(options: StoreOptions) -> Self {
        Self(StoreKind::Local(LocalStores::new(options, Duration::ZERO)))
    }

    /// Connects to the node's store: `path` is the daemon's directory, or the socket of one tenant.
    ///
    /// When the daemon ends, leases stay valid, and are handed back to the next daemon when it starts. An acquire waits
    /// some seconds for it.
    ///
    /// # Errors
    /// [`StoreError::Connect`] if `path` is not a directory and no daemon serves there.
    pub fn connect(path: &Path) -> Result<Self, StoreError> {
        Ok(Self(StoreKind::Remote(DaemonClient::connect(path)?)))
    }

    /// Uses a connection from [`Self::stream`] that another process handed to this one. It is bound to one tenant. When
    /// it ends, leases stay valid, but nothing more can be acquired.
    ///
    /// # Errors
    /// [`StoreError::Disconnected`], or the other side's error.
    pub fn over(stream: UnixStream) -> Result<Self, StoreError> {
        Ok(Self(StoreKind::Remote(DaemonClient::over(stream)?)))
    }

    /// Opens a connection to a tenant's store, to hand it to another process for [`Self::over`]. A store of this
    /// process serves it on its own thread until the other side closes it. It counts as a holder.
    ///
    /// # Errors
    /// [`StoreError::Bound`] if there are too many connections, [`StoreError::Connect`] if there is no daemon,
    /// [`StoreError::Inherited`] if this store has itself inherited its connection.
    pub fn stream(&self, tenant: &Tenant) -> Result<UnixStream, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => pair(local, tenant, Rights::All),
            StoreKind::Remote(client) => client.stream(tenant),
        }
    }

    /// As [`Self::stream`], for a process that is not trusted: the connection only lets it acquire, fill and release
    /// these tensors. Any other request ends the connection with an error.
    ///
    /// # Errors
    /// As [`Self::stream`]; [`StoreError::Bound`] if there are more tensors than a connection can be restricted to;
    /// with a daemon also its error.
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
            StoreKind::Local(local) => {
                let rights = Rights::These(tensors.iter().copied().collect());
                pair(local, tenant, rights)
            }
            StoreKind::Remote(client) => client.stream_for(tenant, tensors),
        }
    }

    /// The tenant, if the connection decides it; `None` if callers may name any.
    #[must_use]
    pub fn tenant(&self) -> Option<&Tenant> {
        match &self.0 {
            StoreKind::Local(_) => None,
            StoreKind::Remote(client) => client.tenant(),
        }
    }

    /// Whether both are handles of the same store.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (StoreKind::Local(one), StoreKind::Local(other)) => Arc::ptr_eq(one, other),
            (StoreKind::Remote(one), StoreKind::Remote(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Acquires tensors. Those that are there are leased at once. Each of the others is filled by one of the holders
    /// that want it, while the rest wait. Returns when all are there; each is verified once, when it is published.
    ///
    /// `fill` writes the bytes of the tensor at an index of `wanted` into zeroed memory of exactly its length. It is
    /// called once for each distinct tensor that this caller has to fill, with the first index of that tensor.
    ///
    /// # Errors
    /// [`StoreError::Fill`] if `fill` fails; others may then fill the tensor. [`StoreError::Content`] if the bytes do
    /// not have the digest. [`StoreError::Bound`] and [`StoreError::Memory`] if there is no room. With a daemon also
    /// errors of the connection.
    pub fn acquire(
        &self,
        tenant: &Tenant,
        wanted: &[Wanted],
        order: LoadOrder,
        fill: Fill<'_>,
    ) -> Result<Lease, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => {
                let session = local.store(tenant)?.join()?;
                let got = acquire(&mut &session, wanted, order, fill)?;
                Lease::new(got, |index| wanted[index].length, Box::new(session))
            }
            StoreKind::Remote(client) => client.acquire(tenant, wanted, order, fill),
        }
    }

    /// Leases those tensors that are there, without filling or waiting.
    ///
    /// # Errors
    /// [`StoreError::Bound`] if there is no room for another holder or its leases. With a daemon also errors of the
    /// connection.
    pub fn look(&self, tenant: &Tenant, wanted: &[Wanted]) -> Result<Present, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => {
                let session = local.store(tenant)?.join()?;
                let (got, indices) = look(&mut &session, wanted)?;
                let lengths = lengths(wanted, &indices);
                let lease = Lease::new(got, |index| lengths[index], Box::new(session))?;
                Ok(Present { lease, indices })
            }
            StoreKind::Remote(client) => client.look(tenant, wanted),
        }
    }

    /// The tenants that have a store, in order.
    ///
    /// # Errors
    /// If a daemon's directory cannot be read.
    pub fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => Ok(local
                .stores()
                .iter()
                .map(|store| store.tenant().clone())
                .collect()),
            StoreKind::Remote(client) => client.tenants(),
        }
    }

    /// The figures of every tenant's store, in order of tenants. `None` for a daemon, which has to be asked.
    #[must_use]
    pub fn own_figures(&self) -> Option<Vec<(Tenant, Stat)>> {
        let StoreKind::Local(local) = &self.0 else {
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
    /// If the daemon does not answer.
    pub fn stat(&self, tenant: &Tenant) -> Result<Stat, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => Ok(local.store(tenant)?.stat()),
            StoreKind::Remote(client) => client.stat(tenant),
        }
    }

    /// Every tensor of a tenant's store, in order of digests.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn ls(&self, tenant: &Tenant) -> Result<Vec<StoredTensor>, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => Ok(local.store(tenant)?.list(None, usize::MAX)),
            StoreKind::Remote(client) => client.list(tenant),
        }
    }

    /// Drops half of the idle bytes of every tenant, the least recently used first, because memory is short. Returns
    /// the bytes dropped. Does nothing for a daemon, which watches memory itself.
    pub fn relieve(&self) -> u64 {
        match &self.0 {
            StoreKind::Local(local) => local.relieve(),
            StoreKind::Remote(_) => 0,
        }
    }

    /// Drops every idle segment of a tenant's store. Returns their bytes.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub fn gc(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        match &self.0 {
            StoreKind::Local(local) => Ok(local.store(tenant)?.gc()),
            StoreKind::Remote(client) => client.gc(tenant),
        }
    }
}
