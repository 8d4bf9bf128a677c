//! One connection to a daemon: one request at a time.

use std::{
    collections::HashMap,
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::{net::sockopt::socket_peercred, process::geteuid};
use skep_host::lock;

use crate::{
    Digest, StoreError, Tenant, Wanted,
    acquire::{Mode, Offered, Spot},
    availability::Availability,
    ledger::SegmentId,
    order::MAX_TENSORS,
    segment::Segment,
    wire::{Connection, StoreReply, StoreRequest, WireLocation},
};

/// How long an answer may take. A publication takes longest: the daemon verifies its tensors first.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a daemon may take to welcome a connection, which needs no work: a stopped one must not hold up a load.
const WELCOMING: Duration = Duration::from_secs(5);

/// How long a daemon may take for each message that restricts a connection.
const RESTRICTING: Duration = Duration::from_secs(10);

/// Connects to a daemon's socket.
pub(super) fn open(path: &Path) -> Result<UnixStream, StoreError> {
    let error = |cause| StoreError::Connect {
        path: path.to_owned(),
        cause,
    };
    let stream = UnixStream::connect(path).map_err(error)?;
    // This process trusts what the daemon says.
    let peer = socket_peercred(&stream).map_err(|e| error(e.into()))?.uid;
    if peer != geteuid() {
        let reason = format!("it is served by user {}", peer.as_raw());
        return Err(error(io::Error::new(
            io::ErrorKind::PermissionDenied,
            reason,
        )));
    }
    Ok(stream)
}

/// Restricts a connection to these tensors, before anything else is sent on it.
pub(super) fn restrict(stream: UnixStream, tensors: &[Digest]) -> Result<UnixStream, StoreError> {
    let socket = Connection::new(stream);
    socket.set_patience(Some(RESTRICTING), RESTRICTING)?;
    // At least one message: a connection may be restricted to no tensors at all.
    let mut rest = tensors;
    loop {
        let (some, behind) = rest.split_at(rest.len().min(MAX_TENSORS));
        rest = behind;
        let more = !rest.is_empty();
        let request = StoreRequest::Restrict {
            tensors: some.to_vec(),
            more,
        };
        // A daemon that has no room says so at once, without reading.
        let sent = socket.send(&request.encode(), None);
        let Some((reply, _)) = socket.receive(StoreReply::decode)? else {
            sent?;
            return Err(StoreError::disconnected("it ended before an answer"));
        };
        match reply {
            StoreReply::Done(_) => {}
            StoreReply::Refused(kind, message) => {
                return Err(StoreError::Refused { kind, message });
            }
            _ => return Err(unexpected()),
        }
        if !more {
            return Ok(socket.into_stream());
        }
    }
}

pub(super) fn unexpected() -> StoreError {
    StoreError::protocol("the answer does not match the request")
}

pub(super) fn done(reply: StoreReply) -> Result<u64, StoreError> {
    match reply {
        StoreReply::Done(number) => Ok(number),
        _ => Err(unexpected()),
    }
}

/// Segments by the daemon's numbers.
pub(super) type Segments = HashMap<SegmentId, Arc<Segment>>;

/// A connection that has been welcomed.
#[derive(Debug)]
pub(crate) struct DaemonLink {
    /// Locked from a request to its answer.
    connection: Mutex<()>,
    socket: Connection,
    tenant: Tenant,
    /// Leases that ended while another thread was waiting for an answer.
    ended: Mutex<Vec<Digest>>,
    lost: AtomicBool,
}

impl DaemonLink {
    pub(super) fn connect(path: &Path) -> Result<Self, StoreError> {
        Self::new(open(path)?)
    }

    /// Says hello.
    pub(super) fn new(stream: UnixStream) -> Result<Self, StoreError> {
        let socket = Connection::new(stream);
        socket.set_patience(Some(WELCOMING), WELCOMING)?;
        // A daemon that has no room says so at once, without reading.
        let sent = socket.send(&StoreRequest::Hello.encode(), None);
        let Some((reply, _)) = socket.receive(StoreReply::decode)? else {
            sent?;
            return Err(StoreError::disconnected("it ended before the welcome"));
        };
        socket.set_patience(Some(PATIENCE), PATIENCE)?;
        match reply {
            StoreReply::Welcome(tenant) => Ok(Self {
                connection: Mutex::new(()),
                socket,
                tenant,
                ended: Mutex::default(),
                lost: AtomicBool::new(false),
            }),
            StoreReply::Refused(kind, message) => Err(StoreError::Refused { kind, message }),
            _ => Err(unexpected()),
        }
    }

    pub(super) const fn tenant(&self) -> &Tenant {
        &self.tenant
    }

    pub(super) const fn stream(&self) -> &UnixStream {
        self.socket.stream()
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::Release);
    }

    pub(super) fn shut_down(&self) {
        self.socket.shut_down();
    }

    /// Sends a request, and waits for the answer and its segments.
    pub(super) fn ask(
        &self,
        request: &StoreRequest,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(StoreReply, Segments), StoreError> {
        let turn = lock(&self.connection);
        let answer = self.converse(request, descriptor);
        drop(turn);
        self.tell_ended();
        match answer? {
            (StoreReply::Refused(kind, message), _) => Err(StoreError::Refused { kind, message }),
            answer => Ok(answer),
        }
    }

    fn converse(
        &self,
        request: &StoreRequest,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(StoreReply, Segments), StoreError> {
        if self.is_lost() {
            return Err(StoreError::disconnected("it has already ended"));
        }
        let answer = self.exchange(request, descriptor);
        if answer.is_err() {
            // The rest of an answer may still arrive, and would be taken for the next one.
            self.lose();
            self.shut_down();
        }
        answer
    }

    fn exchange(
        &self,
        request: &StoreRequest,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(StoreReply, Segments), StoreError> {
        self.socket.send(&request.encode(), descriptor)?;
        let mut segments = Segments::new();
        loop {
            let Some(message) = self.socket.receive(StoreReply::decode)? else {
                return Err(StoreError::disconnected("it ended before an answer"));
            };
            match message {
                (StoreReply::Segment(number), Some(file)) if segments.len() < MAX_TENSORS => {
                    segments.insert(SegmentId(number), Arc::new(Segment::check(file)?));
                }
                (StoreReply::Segment(_), _) | (_, Some(_)) => return Err(unexpected()),
                (reply, None) => return Ok((reply, segments)),
            }
        }
    }

    /// Ends leases at once, or after the request that is in progress.
    pub(super) fn end_leases(&self, digests: Vec<Digest>) {
        self.ended().extend(digests);
        self.tell_ended();
    }

    fn ended(&self) -> MutexGuard<'_, Vec<Digest>> {
        lock(&self.ended)
    }

    /// Tells the daemon which leases have ended. A thread that is waiting for an answer does it afterwards instead.
    fn tell_ended(&self) {
        while !self.ended().is_empty() {
            let turn = match self.connection.try_lock() {
                Ok(turn) => turn,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            let some = {
                let mut ended = self.ended();
                let from = ended.len().saturating_sub(MAX_TENSORS);
                ended.split_off(from)
            };
            // A lost connection has no leases.
            let _ = self.converse(&StoreRequest::Release(some), None);
            drop(turn);
        }
    }

    pub(super) fn take(
        &self,
        wanted: &[&Wanted],
        mode: Mode,
        known: &mut Segments,
    ) -> Result<Vec<Availability<Spot>>, StoreError> {
        let request = StoreRequest::Take {
            mode,
            wanted: wanted.iter().map(|wanted| (*wanted).clone()).collect(),
        };
        let (reply, segments) = self.ask(&request, None)?;
        for (id, segment) in segments {
            known.entry(id).or_insert(segment);
        }
        let answers = answers(reply, wanted.len())?.into_iter();
        answers
            .map(|answer| answer.try_map(|location| spot(known, location)))
            .collect()
    }

    /// Hands a segment over. If the answer names the same memory file, the existing mapping is used.
    pub(super) fn publish(
        &self,
        segment: &Arc<Segment>,
        offered: &[Offered<'_>],
        known: &mut Segments,
    ) -> Result<Vec<Spot>, StoreError> {
        let request = StoreRequest::Publish(
            offered
                .iter()
                .map(|tensor| (tensor.wanted.clone(), tensor.offset))
                .collect(),
        );
        let (reply, segments) = self.ask(&request, Some(segment.descriptor()))?;
        for (id, theirs) in segments {
            let same = theirs.identity() == segment.identity();
            let one = if same { Arc::clone(segment) } else { theirs };
            known.entry(id).or_insert(one);
        }
        let spots = answers(reply, offered.len())?.into_iter().map(|answer| {
            if let Availability::Here(location) = answer {
                spot(known, location)
            } else {
                Err(unexpected())
            }
        });
        spots.collect()
    }
}

fn answers(
    reply: StoreReply,
    expected: usize,
) -> Result<Vec<Availability<WireLocation>>, StoreError> {
    match reply {
        StoreReply::Answers(answers) if answers.len() == expected => Ok(answers),
        _ => Err(unexpected()),
    }
}

fn spot(known: &Segments, (number, offset): WireLocation) -> Result<Spot, StoreError> {
    let id = SegmentId(number);
    let segment = known
        .get(&id)
        .ok_or_else(|| StoreError::protocol("an answer names a segment that did not come"))?;
    Ok(Spot {
        id,
        segment: Arc::clone(segment),
        offset,
    })
}
