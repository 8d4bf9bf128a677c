//! Bounded decompression, for both protocols.

use std::io::{self, Read};

use flate2::read::{GzDecoder, ZlibDecoder};

use skep_tensor::{Charge, OverBudget};

/// The least and the most bytes reserved for decompressed data while its size is unknown.
const RESERVED_BYTES: (usize, usize) = (4 << 10, 1 << 20);

/// How gzip data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Why data cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InflateError {
    /// It would become longer than the limit.
    #[error("it becomes longer than it may")]
    TooLong,
    /// It would not fit into the memory of requests, or of the machine.
    #[error(transparent)]
    NoMemory(OverBudget),
    /// The compressed data is damaged.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

/// Decompresses gzip or zlib data to at most `limit` bytes; memory is charged before it is allocated. The data shows
/// the format: clients confuse the two.
pub(crate) fn inflate(body: &[u8], limit: usize, charge: &Charge) -> Result<Vec<u8>, InflateError> {
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
    charge: &Charge,
) -> Result<Vec<u8>, InflateError> {
    let (least, most) = RESERVED_BYTES;
    let mut plain = Vec::new();
    let mut room = packed_bytes.saturating_mul(2).clamp(least, most);
    loop {
        // One byte more than the limit shows that it is exceeded.
        room = room.min((limit - plain.len()).saturating_add(1));
        charge.add(room).map_err(InflateError::NoMemory)?;
        plain
            .try_reserve_exact(room)
            .map_err(|_| InflateError::NoMemory(OverBudget::of_system(room)))?;
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
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};
    use skep_tensor::MemoryBudget;

    use super::*;

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
            let error = inflate(broken, 100, &Charge::unbounded());
            assert!(matches!(error, Err(InflateError::Broken(_))), "{broken:?}");
        }
        // Cut off at the limit: damage after it is never seen.
        let limited = inflate(&packed[..packed.len() - 1], 5, &Charge::unbounded());
        assert!(matches!(limited, Err(InflateError::TooLong)), "{limited:?}");
        // Data after the end is ignored, as on Triton.
        let more = [&packed, &b"more"[..]].concat();
        assert!(
            matches!(inflate(&more, 100, &Charge::unbounded()), Ok(plain) if plain.len() == 19)
        );
    }

    /// For any size: all data arrives, a limit or budget of one byte less fails, and all memory is charged.
    #[test]
    fn sizes_and_memory_are_bounded() {
        for size in [0, 1, 4095, 4096, 4097, 100_000, (1 << 21) + 1] {
            let plain = vec![7; size];
            let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
            encoder.write_all(&plain).expect("a vector takes all");
            let packed = encoder.finish().expect("a vector takes all");
            let memory = MemoryBudget::new(16 << 20);
            let charge = memory.charge();
            let whole = inflate(&packed, size, &charge).expect("fits");
            assert_eq!(whole, plain);
            assert!(memory.used() >= size);
            if let Some(less) = size.checked_sub(1) {
                let error = inflate(&packed, less, &Charge::unbounded());
                assert!(matches!(error, Err(InflateError::TooLong)), "{size}");
                let charge = MemoryBudget::new(less).charge();
                let error = inflate(&packed, size, &charge);
                assert!(matches!(error, Err(InflateError::NoMemory(_))), "{size}");
            }
            drop(charge);
            assert_eq!(memory.used(), 0);
        }
    }
}
