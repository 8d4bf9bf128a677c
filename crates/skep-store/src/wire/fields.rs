//! Fields that several messages have.

use std::borrow::Cow;

use skep_ipc::{Malformed, MessageReader, MessageWriter};

use crate::{Description, Digest, MAX_DIMS, MAX_LAYOUT_BYTES, Wanted};

pub(super) fn write_digest(writer: &mut MessageWriter, digest: Digest) {
    writer.raw(&digest.0);
}

pub(super) fn read_digest(reader: &mut MessageReader<'_>) -> Result<Digest, Malformed> {
    reader.array().map(Digest)
}

pub(super) fn write_digests(writer: &mut MessageWriter, digests: &[Digest]) {
    writer.short_list(digests, |writer, digest| write_digest(writer, *digest));
}

pub(super) fn write_wanted(writer: &mut MessageWriter, wanted: &Wanted) {
    write_digest(writer, wanted.digest);
    writer.datatype(wanted.description.datatype);
    writer.short_list(&wanted.description.dims, |writer, extent| {
        writer.u64(*extent);
    });
    writer.short_text(&wanted.description.layout);
    writer.u64(wanted.length);
}

pub(super) fn read_wanted(reader: &mut MessageReader<'_>) -> Result<Wanted, Malformed> {
    Ok(Wanted {
        digest: read_digest(reader)?,
        description: Description {
            datatype: reader.datatype()?,
            dims: reader.short_list(MAX_DIMS, "dims", MessageReader::u64)?,
            layout: Cow::Owned(reader.short_text(MAX_LAYOUT_BYTES)?.to_owned()),
        },
        length: reader.u64()?,
    })
}
