//! Compressed files: gzip, within bounds.

use std::{
    borrow::Cow,
    io::{ErrorKind, Read},
};

use flate2::bufread::MultiGzDecoder;

use crate::error::RecordsError;

/// How gzip data begins.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// The most bytes that compressed data may expand to: a million buffers with long names take a tenth.
const MAX_BYTES: usize = 1 << 30;

/// Decompresses gzip data, of one member or several; anything else is returned unchanged.
///
/// # Errors
/// The data is broken or ends early, or becomes longer than 1 GiB.
pub fn unpack(bytes: &[u8]) -> Result<Cow<'_, [u8]>, RecordsError> {
    if !bytes.starts_with(&GZIP_MAGIC) {
        return Ok(Cow::Borrowed(bytes));
    }
    inflate(bytes, MAX_BYTES).map(Cow::Owned)
}

fn inflate(bytes: &[u8], limit: usize) -> Result<Vec<u8>, RecordsError> {
    let mut plain = Vec::new();
    // One more than the limit shows that it is passed.
    let bound = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    let read = MultiGzDecoder::new(bytes)
        .take(bound)
        .read_to_end(&mut plain);
    match read {
        Ok(_) if plain.len() > limit => Err(RecordsError::TooLong { limit }),
        Ok(_) => Ok(plain),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Err(RecordsError::Truncated {
            bytes: bytes.len(),
            plain: plain.len(),
        }),
        Err(error) => Err(RecordsError::Gzip {
            plain: plain.len(),
            reason: error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn packed(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(plain).expect("memory");
        encoder.finish().expect("memory")
    }

    #[test]
    fn compressed_data_comes_back() {
        let plain = b"id,lower,upper,size\n".repeat(1000);
        let mut twice = packed(&plain);
        twice.extend(packed(b"more"));
        assert_eq!(
            *unpack(&twice).expect("whole"),
            [plain, b"more".to_vec()].concat()
        );
        assert!(matches!(unpack(b"plain"), Ok(Cow::Borrowed(b"plain"))));
    }

    #[test]
    fn broken_data_is_refused() {
        let whole = packed(&b"id,lower,upper,size\n".repeat(1000));
        for end in 2..whole.len() {
            let error = unpack(&whole[..end]).expect_err("truncated");
            assert!(
                matches!(error, RecordsError::Truncated { bytes, .. } if bytes == end),
                "{error}"
            );
        }
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0xff;
        assert!(matches!(
            unpack(&flipped),
            Err(RecordsError::Gzip { .. } | RecordsError::Truncated { .. })
        ));
        let mut followed = whole;
        followed.extend(b"something else");
        assert!(matches!(unpack(&followed), Err(RecordsError::Gzip { .. })));
    }

    #[test]
    fn a_bomb_ends_at_the_limit() {
        let bomb = packed(&vec![0; 1 << 20]);
        assert_eq!(
            inflate(&bomb, 1 << 20).map(|plain| plain.len()),
            Ok(1 << 20)
        );
        assert_eq!(
            inflate(&bomb, (1 << 20) - 1),
            Err(RecordsError::TooLong {
                limit: (1 << 20) - 1
            })
        );
    }
}
