//! Decompression within bounds, for both protocols.

use std::io::{self, Read};

use flate2::read::{GzDecoder, ZlibDecoder};

use crate::edge::{BodyError, Charge};

/// What is reserved for decompressed data before it has shown its size, at least and at most.
const RESERVED_BYTES: (usize, usize) = (4 << 10, 1 << 20);

/// How gzip data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why data is not decompressed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflateError {
    /// It would become longer than it may.
    #[error("it becomes longer than it may")]
    TooLong,
    /// It would not fit into the memory of requests.
    #[error(transparent)]
    NoMemory(BodyError),
    /// It is not what it says it is.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Decompresses gzip or zlib data to at most `limit` bytes; memory is charged before it is taken. Which of the formats it
/// is shows in the data: clients mix them up.
pub(crate) fn inflate(
    body: &[u8],
    limit: usize,
    charge: Option<&Charge>,
) -> Result<Vec<u8>, InflateError> {
    if body.starts_with(&GZIP_MAGIC) {
        read(GzDecoder::new(body), body.len(), limit, charge)
    } else {
        read(ZlibDecoder::new(body), body.len(), limit, charge)
    }
}

fn read(
    mut decoder: impl Read,
    packed_bytes: usize,
    limit: usize,
    charge: Option<&Charge>,
) -> Result<Vec<u8>, InflateError> {
    let (least, most) = RESERVED_BYTES;
    let mut plain = Vec::new();
    let mut room = packed_bytes.saturating_mul(2).clamp(least, most);
    loop {
        // One more than the limit shows that it is passed.
        room = room.min((limit - plain.len()).saturating_add(1));
        if let Some(charge) = charge {
            charge.add(room).map_err(InflateError::NoMemory)?;
        }
        plain.reserve_exact(room);
        let bound = u64::try_from(room).unwrap_or(u64::MAX);
        let read = decoder.by_ref().take(bound).read_to_end(&mut plain)?;
        if plain.len() > limit {
            return Err(InflateError::TooLong);
        }
        if read < room {
            return Ok(plain);
        }
        room = plain.len();
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, sync::Arc};

    use flate2::{Compression, write::GzEncoder};

    use super::*;
    use crate::edge::RequestMemory;

    #[test]
    fn broken_data_is_an_error() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder
            .write_all(b"hello, hello, hello")
            .expect("a vector takes all");
        let packed = encoder.finish().expect("a vector takes all");
        for broken in [
            &packed[..packed.len() - 1],
            &packed[..5],
            b"no compressed data",
            b"x",
        ] {
            let error = inflate(broken, 100, None);
            assert!(matches!(error, Err(InflateError::Broken(_))), "{broken:?}");
        }
        // Cut off at the limit: what is broken behind it is never seen.
        let limited = inflate(&packed[..packed.len() - 1], 5, None);
        assert!(matches!(limited, Err(InflateError::TooLong)), "{limited:?}");
        // Data behind the end is left alone, as on Triton.
        let more = [&packed, &b"more"[..]].concat();
        assert!(matches!(inflate(&more, 100, None), Ok(plain) if plain.len() == 19));
    }

    /// Whatever the size, all of it comes, a byte less than it needs does not do, and memory is charged for all of it.
    #[test]
    fn sizes_and_memory_are_bounded() {
        for size in [0, 1, 4095, 4096, 4097, 100_000, (1 << 21) + 1] {
            let plain = vec![7; size];
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&plain).expect("a vector takes all");
            let packed = encoder.finish().expect("a vector takes all");
            let memory = Arc::new(RequestMemory::new(16 << 20));
            let charge = Charge::new(Arc::clone(&memory));
            let whole = inflate(&packed, size, Some(&charge)).expect("fits");
            assert_eq!(whole, plain);
            assert!(memory.used() >= size);
            if let Some(less) = size.checked_sub(1) {
                let error = inflate(&packed, less, None);
                assert!(matches!(error, Err(InflateError::TooLong)), "{size}");
                let charge = Charge::new(Arc::new(RequestMemory::new(less)));
                let error = inflate(&packed, size, Some(&charge));
                assert!(matches!(error, Err(InflateError::NoMemory(_))), "{size}");
            }
            drop(charge);
            assert_eq!(memory.used(), 0);
        }
    }
}
