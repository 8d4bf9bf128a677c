//! Decompression within a bound, for both protocols.

use std::io::{self, Read};

use flate2::read::{GzDecoder, ZlibDecoder};

/// What is reserved for decompressed data before it has shown its size.
const MAX_RESERVED_BYTES: usize = 1 << 20;

/// How gzip data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Decompresses gzip or zlib data; `None` for more than `limit` bytes. Which of the formats it is shows in the data:
/// clients mix them up.
pub(crate) fn inflate(body: &[u8], limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut plain = Vec::with_capacity(body.len().saturating_mul(2).min(MAX_RESERVED_BYTES));
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    if body.starts_with(&GZIP_MAGIC) {
        GzDecoder::new(body).take(bound).read_to_end(&mut plain)?;
    } else {
        ZlibDecoder::new(body).take(bound).read_to_end(&mut plain)?;
    }
    Ok(Some(plain).filter(|plain| plain.len() <= limit))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

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
            assert!(inflate(broken, 100).is_err(), "{broken:?}");
        }
        // Cut off at the limit: what is broken behind it is never seen.
        let limited = inflate(&packed[..packed.len() - 1], 5);
        assert!(matches!(limited, Ok(None)), "{limited:?}");
        // Data behind the end is left alone, as on Triton.
        let more = [&packed, &b"more"[..]].concat();
        assert!(matches!(inflate(&more, 100), Ok(Some(plain)) if plain.len() == 19));
    }
}
