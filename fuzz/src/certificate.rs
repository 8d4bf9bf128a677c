//! Certificates.

use skep_tls::certificate::Certificate;

/// Parses bytes that may be a certificate; every field lies within it.
pub fn parse(data: &[u8]) {
    let Some(certificate) = Certificate::parse(data) else {
        return;
    };
    let inner = certificate.signed.as_ptr_range();
    let outer = data.as_ptr_range();
    assert!(outer.start < inner.start && inner.end < outer.end);
    assert!(certificate.signed.len() + certificate.signature.len() < data.len());
    assert!(certificate.public_key.bits.len() < certificate.public_key_info.len());
    assert!(certificate.issuer.len() < certificate.signed.len());
    let _ = certificate.validity();
}
