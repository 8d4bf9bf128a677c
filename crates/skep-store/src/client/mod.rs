//! A store in another process: the connections to it, the leases held through them, and how both outlive the daemon.
//!
//! If the socket has a path, each acquire opens its own connection, and its lease keeps it: shutting the connection
//! down ends the lease. A process that inherited a connection uses it for everything, one request at a time, and says
//! which leases end.

mod hold;
mod keeper;
mod link;

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use crate::{
    Digest, Lease, LoadOrder, Present, Stat, StoreError, StoredTensor, Tenant, Wanted,
    acquire::{AcquiredTensors, Fill, acquire, look},
    lease::lengths,
    wire::{StoreReply, StoreRequest},
};
use hold::{Acquisition, HeldTensors};
use keeper::LeaseKeeper;
use link::DaemonLink;

/// Where the daemon is.
#[derive(Debug)]
enum DaemonAddress {
    /// Its directory: each tenant has a socket there.
    Directory(PathBuf),
    /// One tenant's socket.
    Socket(PathBuf, Tenant),
    /// A connection that another process made for this one.
    Inherited(Arc<DaemonLink>),
}

/// This process's side of a daemon.
#[derive(Debug)]
pub(crate) struct DaemonClient {
    target: DaemonAddress,
    keeper: LeaseKeeper,
}

impl DaemonClient {
    /// Connects to a daemon's directory, or to one tenant's socket.
    pub(crate) fn connect(path: &Path) -> Result<Arc<Self>, StoreError> {
        let target = if path.is_dir() {
            DaemonAddress::Directory(path.to_owned())
        } else {
            let tenant = DaemonLink::connect(path)?.tenant().clone();
            DaemonAddress::Socket(path.to_owned(), tenant)
        };
        Self::new(target)
    }

    /// Uses an existing connection on which nothing has been sent.
    pub(crate) fn over(stream: UnixStream) -> Result<Arc<Self>, StoreError> {
        Self::new(DaemonAddress::Inherited(Arc::new(DaemonLink::new(stream)?)))
    }

    fn new(target: DaemonAddress) -> Result<Arc<Self>, StoreError> {
        Ok(Arc::new_cyclic(|client: &Weak<Self>| Self {
            target,
            keeper: LeaseKeeper::new(client.clone()),
        }))
    }

    /// The tenant, if the connection decides it.
    pub(crate) fn tenant(&self) -> Option<&Tenant> {
        match &self.target {
            DaemonAddress::Directory(_) => None,
            DaemonAddress::Socket(_, tenant) => Some(tenant),
            DaemonAddress::Inherited(link) => Some(link.tenant()),
        }
    }

    /// A connection as this tenant: a new one, except for an inherited one.
    fn link(&self, tenant: &Tenant) -> Result<Arc<DaemonLink>, StoreError> {
        let link = match &self.target {
            DaemonAddress::Directory(directory) => {
                Arc::new(DaemonLink::connect(&tenant.socket(directory))?)
            }
            DaemonAddress::Socket(path, _) => Arc::new(DaemonLink::connect(path)?),
            DaemonAddress::Inherited(link) => Arc::clone(link),
        };
        if link.tenant() != tenant {
            return Err(StoreError::Tenant {
                connected: link.tenant().clone(),
                wanted: tenant.clone(),
            });
        }
        Ok(link)
    }

    /// Whether this process can open connections.
    const fn has_own_links(&self) -> bool {
        !matches!(self.target, DaemonAddress::Inherited(_))
    }

    pub(crate) fn acquire(
        self: &Arc<Self>,
        tenant: &Tenant,
        wanted: &[Wanted],
        order: LoadOrder,
        fill: Fill<'_>,
    ) -> Result<Lease, StoreError> {
        let mut acquisition = self.begin(tenant)?;
        let got = acquire(&mut acquisition, wanted, order, fill)?;
        let lengths: Vec<u64> = wanted.iter().map(|tensor| tensor.length).collect();
        self.lease(acquisition, got, &lengths)
    }

    /// See [`Store::look`](crate::Store::look).
    pub(crate) fn look(
        self: &Arc<Self>,
        tenant: &Tenant,
        wanted: &[Wanted],
    ) -> Result<Present, StoreError> {
        let mut acquisition = self.begin(tenant)?;
        let (got, indices) = look(&mut acquisition, wanted)?;
        let lengths = lengths(wanted, &indices);
        let lease = self.lease(acquisition, got, &lengths)?;
        Ok(Present { lease, indices })
    }

    fn begin(self: &Arc<Self>, tenant: &Tenant) -> Result<Acquisition, StoreError> {
        let link = self.link(tenant)?;
        let hold = HeldTensors::new(Arc::clone(self), tenant.clone(), link);
        Ok(Acquisition::new(hold))
    }

    /// Turns what an acquisition got into a lease.
    fn lease(
        &self,
        acquisition: Acquisition,
        got: AcquiredTensors,
        lengths: &[u64],
    ) -> Result<Lease, StoreError> {
        let hold = Arc::new(acquisition.into_hold());
        let held_one: Arc<HeldTensors> = Arc::clone(&hold);
        let lease = Lease::new(got, |index| lengths[index], Box::new(held_one))?;
        if self.has_own_links() {
            self.keeper.keep(&hold);
        }
        Ok(lease)
    }

    /// A connection for another process.
    pub(crate) fn stream(&self, tenant: &Tenant) -> Result<UnixStream, StoreError> {
        let path = match &self.target {
            DaemonAddress::Directory(directory) => tenant.socket(directory),
            DaemonAddress::Socket(path, own) if own == tenant => path.clone(),
            DaemonAddress::Socket(_, own) => {
                return Err(StoreError::Tenant {
                    connected: own.clone(),
                    wanted: tenant.clone(),
                });
            }
            DaemonAddress::Inherited(_) => return Err(StoreError::Inherited),
        };
        link::open(&path)
    }

    /// A connection for another process that may name these tensors alone.
    pub(crate) fn stream_for(
        &self,
        tenant: &Tenant,
        tensors: &[Digest],
    ) -> Result<UnixStream, StoreError> {
        link::restrict(self.stream(tenant)?, tensors)
    }

    /// The tenants that have a socket.
    pub(crate) fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let DaemonAddress::Directory(directory) = &self.target else {
            return Ok(self.tenant().cloned().into_iter().collect());
        };
        let unreadable = |cause| StoreError::Connect {
            path: directory.clone(),
            cause,
        };
        let mut tenants = Vec::new();
        for entry in fs::read_dir(directory).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            tenants.extend(name.to_str().and_then(Tenant::of_socket));
        }
        tenants.sort();
        Ok(tenants)
    }

    pub(crate) fn stat(&self, tenant: &Tenant) -> Result<Stat, StoreError> {
        match self.link(tenant)?.ask(&StoreRequest::Stat, None)?.0 {
            StoreReply::Stat(stat) => Ok(stat),
            _ => Err(link::unexpected()),
        }
    }

    pub(crate) fn list(&self, tenant: &Tenant) -> Result<Vec<StoredTensor>, StoreError> {
        let link = self.link(tenant)?;
        let mut tensors: Vec<StoredTensor> = Vec::new();
        loop {
            let after: Option<Digest> = tensors.last().map(|tensor| tensor.digest);
            let StoreReply::Page(page) = link.ask(&StoreRequest::List(after), None)?.0 else {
                return Err(link::unexpected());
            };
            if page.is_empty() {
                return Ok(tensors);
            }
            tensors.extend(page);
        }
    }

    pub(crate) fn gc(&self, tenant: &Tenant) -> Result<u64, StoreError> {
        link::done(self.link(tenant)?.ask(&StoreRequest::Gc, None)?.0)
    }
}
