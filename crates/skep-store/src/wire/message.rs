//! The messages, to bytes and back. The reader trusts nothing. Pure.

use std::time::Duration;

use skep_ipc::{Malformed, MessageReader, MessageWriter};

use crate::{
    Digest, ErrorKind, Stat, StoredTensor, Tenant, Wanted,
    acquire::Mode,
    availability::Availability,
    order::MAX_TENSORS,
    wire::fields::{read_digest, read_wanted, write_digest, write_digests, write_wanted},
};

/// The beginning of a client's first message.
const MAGIC: [u8; 8] = *b"skepstor";

/// The version of the protocol. Daemon and client must have the same.
const VERSION: u16 = 2;

/// The largest text of a refusal, in bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// Tensors on one page of a list.
pub(crate) const MAX_LISTED: usize = 1024;

/// A client's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreRequest {
    /// Begins the conversation.
    Hello,
    /// Asks for tensors.
    Take {
        /// Whether to look, claim or wait.
        mode: Mode,
        /// Tensors.
        wanted: Vec<Wanted>,
    },
    /// Before the hello: restricts the connection to these tensors, whichever process uses it.
    Restrict {
        /// Tensors.
        tensors: Vec<Digest>,
        /// Whether another such message follows. After the last one the restriction is final.
        more: bool,
    },
    /// Publishes tensors of the segment whose descriptor comes with it: each with its offset.
    Publish(Vec<(Wanted, u64)>),
    /// Gives tickets back.
    GiveBack(Vec<Digest>),
    /// Ends one lease to each of these.
    Release(Vec<Digest>),
    /// Asks for the figures.
    Stat,
    /// Asks for the tensors that follow a digest.
    List(Option<Digest>),
    /// Drops idle segments.
    Gc,
}

/// Where a tensor lies: the daemon's number of the segment, and the offset in there.
pub(crate) type WireLocation = (u64, u64);

/// A daemon's message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreReply {
    /// Accepts the hello; the connection belongs to this tenant.
    Welcome(Tenant),
    /// The number of the segment whose descriptor comes with it.
    Segment(u64),
    /// To `Take` and `Publish`, tensor by tensor.
    Answers(Vec<Availability<WireLocation>>),
    /// Success, with the bytes that were dropped, or 0.
    Done(u64),
    /// The figures.
    Stat(Stat),
    /// Tensors in the order of digests. An empty page ends the list.
    Page(Vec<StoredTensor>),
    /// The error.
    Refused(ErrorKind, String),
}

const KINDS: [ErrorKind; 8] = [
    ErrorKind::Fill,
    ErrorKind::Content,
    ErrorKind::Bound,
    ErrorKind::Memory,
    ErrorKind::Protocol,
    ErrorKind::Unreachable,
    ErrorKind::Tenant,
    ErrorKind::Serve,
];

const MODES: [Mode; 3] = [Mode::Look, Mode::Claim, Mode::Wait];

impl StoreRequest {
    /// Encodes the frame's kind and body.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = MessageWriter::default();
        match self {
            Self::Hello => {
                writer.u8(1);
                writer.raw(&MAGIC);
                writer.u16(VERSION);
            }
            Self::Take { mode, wanted } => {
                writer.u8(2);
                writer.item(&MODES, mode);
                writer.short_list(wanted, write_wanted);
            }
            Self::Publish(offered) => {
                writer.u8(3);
                writer.short_list(offered, |writer, (wanted, offset)| {
                    write_wanted(writer, wanted);
                    writer.u64(*offset);
                });
            }
            Self::GiveBack(given) => {
                writer.u8(4);
                write_digests(&mut writer, given);
            }
            Self::Release(released) => {
                writer.u8(5);
                write_digests(&mut writer, released);
            }
            Self::Stat => writer.u8(6),
            Self::List(after) => {
                writer.u8(7);
                writer.option(*after, write_digest);
            }
            Self::Gc => writer.u8(8),
            Self::Restrict { tensors, more } => {
                writer.u8(9);
                writer.raw(&MAGIC);
                writer.u16(VERSION);
                writer.bool(*more);
                write_digests(&mut writer, tensors);
            }
        }
        writer.into_bytes()
    }

    /// Decodes a frame's kind and body.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = MessageReader::new(bytes);
        let request = match reader.u8()? {
            1 => {
                greeting(&mut reader)?;
                Self::Hello
            }
            2 => Self::Take {
                mode: reader.item(&MODES, "mode")?,
                wanted: reader.short_list(MAX_TENSORS, "tensors", read_wanted)?,
            },
            3 => Self::Publish(reader.short_list(MAX_TENSORS, "tensors", |reader| {
                Ok((read_wanted(reader)?, reader.u64()?))
            })?),
            4 => Self::GiveBack(reader.short_list(MAX_TENSORS, "tickets", read_digest)?),
            5 => Self::Release(reader.short_list(MAX_TENSORS, "leases", read_digest)?),
            6 => Self::Stat,
            7 => Self::List(reader.option(read_digest)?),
            8 => Self::Gc,
            9 => {
                greeting(&mut reader)?;
                let more = reader.bool()?;
                let tensors = reader.short_list(MAX_TENSORS, "tensors", read_digest)?;
                Self::Restrict { tensors, more }
            }
            kind => return Err(Malformed::new(format!("unknown request kind {kind}"))),
        };
        reader.end()?;
        Ok(request)
    }
}

/// Checks the beginning of a client's first message.
fn greeting(reader: &mut MessageReader<'_>) -> Result<(), Malformed> {
    if reader.array()? != MAGIC {
        return Err(Malformed::new("it is not from a client of a tensor store"));
    }
    let version = reader.u16()?;
    if version != VERSION {
        return Err(Malformed::new(format!(
            "version {version} of the protocol, expected {VERSION}"
        )));
    }
    Ok(())
}

impl StoreReply {
    /// Encodes the frame's kind and body.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = MessageWriter::default();
        match self {
            Self::Welcome(tenant) => {
                writer.u8(128);
                writer.u16(VERSION);
                writer.option(tenant.name(), MessageWriter::short_text);
            }
            Self::Segment(id) => {
                writer.u8(129);
                writer.u64(*id);
            }
            Self::Answers(answers) => {
                writer.u8(130);
                writer.short_list(answers, |writer, answer| match *answer {
                    Availability::Here((segment, offset)) => {
                        writer.u8(0);
                        writer.u64(segment);
                        writer.u64(offset);
                    }
                    Availability::Fill => writer.u8(1),
                    Availability::Wait => writer.u8(2),
                    Availability::Absent => writer.u8(3),
                });
            }
            Self::Done(number) => {
                writer.u8(131);
                writer.u64(*number);
            }
            Self::Stat(stat) => {
                writer.u8(132);
                figures(*stat)
                    .into_iter()
                    .for_each(|figure| writer.u64(figure));
            }
            Self::Page(tensors) => {
                writer.u8(133);
                writer.short_list(tensors, |writer, tensor| {
                    write_wanted(
                        writer,
                        &Wanted {
                            digest: tensor.digest,
                            description: tensor.description.clone(),
                            length: tensor.length,
                        },
                    );
                    writer.u64(tensor.leases);
                    writer.option(tensor.idle, |writer, idle| {
                        writer.u64(u64::try_from(idle.as_nanos()).unwrap_or(u64::MAX));
                    });
                });
            }
            Self::Refused(kind, message) => {
                writer.u8(134);
                writer.item(&KINDS, kind);
                let end = message.floor_char_boundary(MAX_TEXT_BYTES);
                writer.short_text(&message[..end]);
            }
        }
        writer.into_bytes()
    }

    /// Decodes a frame's kind and body.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = MessageReader::new(bytes);
        let reply = match reader.u8()? {
            128 => {
                let version = reader.u16()?;
                if version != VERSION {
                    return Err(Malformed::new(format!(
                        "version {version} of the protocol, expected {VERSION}"
                    )));
                }
                let name = reader.option(|reader| reader.short_text(MAX_TEXT_BYTES))?;
                let tenant = name.map_or(Ok(Tenant::GENERAL), Tenant::named);
                Self::Welcome(tenant.map_err(|error| Malformed::new(error.to_string()))?)
            }
            129 => Self::Segment(reader.u64()?),
            130 => Self::Answers(reader.short_list(MAX_TENSORS, "answers", |reader| {
                Ok(match reader.u8()? {
                    0 => Availability::Here((reader.u64()?, reader.u64()?)),
                    1 => Availability::Fill,
                    2 => Availability::Wait,
                    3 => Availability::Absent,
                    other => return Err(Malformed::new(format!("answer {other} is unknown"))),
                })
            })?),
            131 => Self::Done(reader.u64()?),
            132 => {
                let mut figures = [0; FIGURES];
                for figure in &mut figures {
                    *figure = reader.u64()?;
                }
                Self::Stat(of_figures(figures))
            }
            133 => Self::Page(reader.short_list(MAX_LISTED, "tensors", |reader| {
                let wanted = read_wanted(reader)?;
                Ok(StoredTensor {
                    digest: wanted.digest,
                    description: wanted.description,
                    length: wanted.length,
                    leases: reader.u64()?,
                    idle: reader.option(MessageReader::u64)?.map(Duration::from_nanos),
                })
            })?),
            134 => {
                let kind = reader.item(&KINDS, "error kind")?;
                Self::Refused(kind, reader.short_text(MAX_TEXT_BYTES)?.to_owned())
            }
            kind => return Err(Malformed::new(format!("unknown answer kind {kind}"))),
        };
        reader.end()?;
        Ok(reply)
    }
}

const FIGURES: usize = 12;

/// A new figure does not compile until it is encoded here.
const fn figures(stat: Stat) -> [u64; FIGURES] {
    let Stat {
        segments,
        tensors,
        bytes_stored,
        bytes_padding,
        bytes_leased,
        leases,
        holders,
        hits,
        misses,
        waits,
        reclaimed,
        wait_ns,
    } = stat;
    [
        segments,
        tensors,
        bytes_stored,
        bytes_padding,
        bytes_leased,
        leases,
        holders,
        hits,
        misses,
        waits,
        reclaimed,
        wait_ns,
    ]
}

const fn of_figures(figures: [u64; FIGURES]) -> Stat {
    let [
        segments,
        tensors,
        bytes_stored,
        bytes_padding,
        bytes_leased,
        leases,
        holders,
        hits,
        misses,
        waits,
        reclaimed,
        wait_ns,
    ] = figures;
    Stat {
        segments,
        tensors,
        bytes_stored,
        bytes_padding,
        bytes_leased,
        leases,
        holders,
        hits,
        misses,
        waits,
        reclaimed,
        wait_ns,
    }
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
