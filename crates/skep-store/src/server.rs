//! Serves one connection.

use std::{
    collections::{BTreeMap, HashSet},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    time::Duration,
};

use crate::{
    ErrorKind, StoreError,
    acquire::{Offered, Spot},
    availability::Availability,
    rights::{MAX_RESTRICTED, Rights},
    segment::Segment,
    tenant_store::HolderSession,
    wire::{Connection, MAX_LISTED, StoreReply, StoreRequest, WireLocation},
};

/// How long a client may take for its first message, and to read an answer. Between requests it may be silent for as
/// long as it has leases.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves a holder's connection until it ends; the holder ends with it. If `rights` are already restricted, the client
/// cannot change them.
///
/// # Errors
/// Why the connection ended, unless the client closed it. The client has been told, if possible.
pub(crate) fn serve(
    session: &HolderSession,
    connection: &Connection,
    rights: Rights,
) -> Result<(), StoreError> {
    connection.set_patience(Some(PATIENCE), PATIENCE)?;
    let outcome = converse(session, connection, rights);
    if let Err(error) = &outcome
        && ends(error)
    {
        refuse(connection, error);
    }
    connection.shut_down();
    outcome
}

/// Whether an error ends the connection: the client broke the protocol, or asked for something that it may not have.
fn ends(error: &StoreError) -> bool {
    matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Tenant)
}

/// Tells the client about an error, if it still reads.
pub(crate) fn refuse(connection: &Connection, error: &StoreError) {
    let reply = StoreReply::Refused(error.kind(), error.to_string());
    let _ = connection.send(&reply.encode(), None);
}

fn converse(
    session: &HolderSession,
    connection: &Connection,
    rights: Rights,
) -> Result<(), StoreError> {
    let Some(rights) = begin(connection, rights)? else {
        return Ok(());
    };
    let welcome = StoreReply::Welcome(session.store().tenant().clone());
    connection.send(&welcome.encode(), None)?;
    connection.set_patience(None, PATIENCE)?;
    while let Some((request, descriptor)) = connection.receive(StoreRequest::decode)? {
        rights.check(&request)?;
        match answer(session, connection, &rights, request, descriptor) {
            Ok(reply) => connection.send(&reply.encode(), None)?,
            Err(error) if ends(&error) => return Err(error),
            Err(error) => refuse(connection, &error),
        }
    }
    Ok(())
}

/// Receives restrictions and the hello. `None` if the client closed the connection before that.
fn begin(connection: &Connection, mut rights: Rights) -> Result<Option<Rights>, StoreError> {
    let mut may_restrict = rights == Rights::All;
    while let Some((request, _)) = connection.receive(StoreRequest::decode)? {
        match request {
            StoreRequest::Hello => return Ok(Some(rights)),
            StoreRequest::Restrict { tensors, more } if may_restrict => {
                may_restrict = more;
                let mut all = match rights {
                    Rights::All => HashSet::new(),
                    Rights::These(all) => all,
                };
                all.extend(tensors);
                if all.len() > MAX_RESTRICTED {
                    return Err(StoreError::protocol(format!(
                        "{} tensors of a restricted connection, expected at most {MAX_RESTRICTED}",
                        all.len()
                    )));
                }
                rights = Rights::These(all);
                connection.send(&StoreReply::Done(0).encode(), None)?;
            }
            StoreRequest::Restrict { .. } => {
                return Err(StoreError::protocol("the connection is restricted already"));
            }
            _ => return Err(StoreError::protocol("expected a hello first")),
        }
    }
    Ok(None)
}

fn answer(
    session: &HolderSession,
    connection: &Connection,
    rights: &Rights,
    request: StoreRequest,
    descriptor: Option<OwnedFd>,
) -> Result<StoreReply, StoreError> {
    if descriptor.is_some() != matches!(request, StoreRequest::Publish(_)) {
        return Err(StoreError::protocol(
            "expected one descriptor with a publication, and none otherwise",
        ));
    }
    match request {
        StoreRequest::Hello => Err(StoreError::protocol("a second hello")),
        StoreRequest::Restrict { .. } => Err(StoreError::protocol("a restriction after the hello")),
        StoreRequest::Take { mode, wanted } => {
            let wanted: Vec<_> = wanted.iter().collect();
            let found = session.take(&wanted, mode)?;
            let mut segments = BTreeMap::new();
            let answers = found
                .into_iter()
                .map(|found| found.map(|spot| location(&mut segments, spot)));
            let answers = answers.collect();
            send_segments(connection, &segments)?;
            Ok(StoreReply::Answers(answers))
        }
        StoreRequest::Publish(offered) => {
            let file = descriptor.ok_or_else(|| StoreError::segment("it is missing"))?;
            let segment = Arc::new(Segment::check(file)?);
            segment.check_pages()?;
            let offered: Vec<Offered<'_>> = offered
                .iter()
                .map(|(wanted, offset)| Offered {
                    wanted,
                    offset: *offset,
                })
                .collect();
            rights.check_size(&segment, &offered)?;
            let spots = session.publish(segment, &offered)?;
            let mut segments = BTreeMap::new();
            let answers = spots
                .into_iter()
                .map(|spot| Availability::Here(location(&mut segments, spot)));
            let answers = answers.collect();
            send_segments(connection, &segments)?;
            Ok(StoreReply::Answers(answers))
        }
        StoreRequest::GiveBack(digests) => {
            session.give_back(&digests);
            Ok(StoreReply::Done(0))
        }
        StoreRequest::Release(digests) => {
            session.release(&digests);
            Ok(StoreReply::Done(0))
        }
        StoreRequest::Stat => Ok(StoreReply::Stat(session.store().stat())),
        StoreRequest::List(after) => Ok(StoreReply::Page(session.store().list(after, MAX_LISTED))),
        StoreRequest::Gc => Ok(StoreReply::Done(session.store().gc())),
    }
}

/// Where the client finds a tensor, whose segment is to be sent.
fn location(segments: &mut BTreeMap<u64, Arc<Segment>>, spot: Spot) -> WireLocation {
    let number = spot.id.0;
    segments.insert(number, spot.segment);
    (number, spot.offset)
}

/// Sends the descriptors of the segments that an answer names. If the client is gone, its leases end with the
/// connection.
fn send_segments(
    connection: &Connection,
    segments: &BTreeMap<u64, Arc<Segment>>,
) -> Result<(), StoreError> {
    for (number, segment) in segments {
        let descriptor = segment.descriptor();
        connection.send(
            &StoreReply::Segment(*number).encode(),
            Some(descriptor.as_fd()),
        )?;
    }
    Ok(())
}

/// Serves a connection on a new thread.
pub(crate) fn serve_apart(
    session: HolderSession,
    stream: UnixStream,
    rights: Rights,
) -> Result<(), StoreError> {
    let serving = move || {
        // The client was told about errors.
        let _ = serve(&session, &Connection::new(stream), rights);
    };
    std::thread::Builder::new()
        .name("store connection".to_owned())
        .stack_size(STACK_BYTES)
        .spawn(serving)
        .map(|_| ())
        .map_err(|cause| StoreError::Memory {
            bytes: STACK_BYTES as u64,
            step: "a thread",
            cause,
        })
}

/// The stack of a connection's thread: there may be a thousand of them.
pub(crate) const STACK_BYTES: usize = 256 << 10;
