//! Client certificates of X.509 version 1: what `openssl x509 -req` makes without a file of extensions.
//!
//! Such a certificate has no extensions: no constraints, no purpose, no alternative names. OpenSSL, and with it Triton,
//! accepts it from a client; webpki refuses it. It is accepted here if a root has signed it directly. It never signs
//! another certificate, so the missing constraints do no harm. A root with name constraints accepts none of them, since
//! the names could not be checked.

use skep_tls::certificate::{Certificate, PublicKey};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, PeerMisbehaved, RootCertStore,
    client::danger::HandshakeSignatureValid,
    crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key},
    pki_types::{SubjectPublicKeyInfoDer, UnixTime, alg_id},
};

/// The modulus alone of the shortest RSA key that `ring` takes: 2048 bits.
const SHORTEST_RSA_BYTES: usize = 2048 / 8;

fn parse(der: &[u8]) -> Result<Certificate<'_>, Error> {
    Certificate::parse(der)
        .filter(|certificate| certificate.is_version_1)
        .ok_or_else(|| CertificateError::BadEncoding.into())
}

/// Verifies that one of the roots has signed a certificate, and that it is valid `now`.
pub(super) fn verify(
    der: &[u8],
    roots: &RootCertStore,
    algorithms: WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Error> {
    let certificate = parse(der)?;
    let Some((not_before, not_after)) = certificate.validity() else {
        return Err(CertificateError::BadEncoding.into());
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > not_after {
        return Err(CertificateError::Expired.into());
    }
    let named = roots.roots.iter().filter(|root| {
        root.name_constraints.is_none() && root.subject.as_ref() == certificate.issuer
    });
    let keys = named.filter_map(|root| PublicKey::parse(&root.subject_public_key_info));
    let mut refusal = CertificateError::UnknownIssuer;
    for key in keys {
        let fitting = algorithms.all.iter().filter(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key.algorithm
                && algorithm.signature_alg_id().as_ref() == certificate.algorithm
        });
        let is_rsa = key.algorithm == alg_id::RSA_ENCRYPTION.as_ref();
        let is_short = is_rsa && key.bits.len() < SHORTEST_RSA_BYTES;
        refusal = if is_short {
            CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext {
                signature_algorithm_id: certificate.algorithm.to_vec(),
                public_key_algorithm_id: key.algorithm.to_vec(),
            }
        } else {
            let supported = algorithms.all.iter().map(|it| it.signature_alg_id());
            CertificateError::UnsupportedSignatureAlgorithmContext {
                signature_algorithm_id: certificate.algorithm.to_vec(),
                supported_algorithms: supported.collect(),
            }
        };
        for algorithm in fitting {
            if !is_short {
                refusal = CertificateError::BadSignature;
            }
            let (message, signature) = (certificate.signed, certificate.signature);
            if (algorithm.verify_signature(key.bits, message, signature)).is_ok() {
                return Ok(());
            }
        }
    }
    Err(refusal.into())
}

/// Verifies that the client has the certificate's key, over TLS 1.2.
pub(super) fn verify_tls12_signature(
    message: &[u8],
    der: &[u8],
    signature: &DigitallySignedStruct,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let certificate = parse(der)?;
    let key = certificate.public_key;
    let of_scheme = |(scheme, _): &&(_, _)| *scheme == signature.scheme;
    let Some((_, possible)) = algorithms.mapping.iter().find(of_scheme) else {
        return Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into());
    };
    let verified = possible
        .iter()
        .filter(|algorithm| algorithm.public_key_alg_id().as_ref() == key.algorithm)
        .any(|algorithm| {
            let verified = algorithm.verify_signature(key.bits, message, signature.signature());
            verified.is_ok()
        });
    if verified {
        Ok(HandshakeSignatureValid::assertion())
    } else {
        Err(CertificateError::BadSignature.into())
    }
}

/// The same over TLS 1.3.
pub(super) fn verify_tls13_signature(
    message: &[u8],
    der: &[u8],
    signature: &DigitallySignedStruct,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let certificate = parse(der)?;
    let key = SubjectPublicKeyInfoDer::from(certificate.public_key_info);
    verify_tls13_signature_with_raw_key(message, &key, signature, &algorithms)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_rustls::rustls::{
        crypto::ring,
        pki_types::{CertificateDer, Der},
    };

    use super::*;

    /// A client's certificate and its root, valid for a hundred years from November 2026, as made by `openssl x509 -req` and
    /// `openssl req -x509`.
    const LEAF: &[u8] = include_bytes!("../../../../fuzz/corpus/certificate/version-1.der");
    const ROOT: &[u8] = include_bytes!("../../../../fuzz/corpus/certificate/root.der");

    const IN_2030: u64 = 1_900_000_000;

    fn roots() -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(ROOT)).expect("a root");
        roots
    }

    fn verified(der: &[u8], roots: &RootCertStore, at: u64) -> Result<(), Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        let now = UnixTime::since_unix_epoch(Duration::from_secs(at));
        verify(der, roots, algorithms, now)
    }

    #[test]
    fn a_root_must_have_signed_it() {
        assert_eq!(verified(LEAF, &roots(), IN_2030), Ok(()));
        let strangers = RootCertStore::empty();
        let unknown = Err(CertificateError::UnknownIssuer.into());
        assert_eq!(verified(LEAF, &strangers, IN_2030), unknown);
        let mut constrained = roots();
        constrained.roots[0].name_constraints = Some(Der::from_slice(&[]));
        assert_eq!(verified(LEAF, &constrained, IN_2030), unknown);
        // The root's name, and another key: that of the client.
        let mut forged = roots();
        let leaf = Certificate::parse(LEAF).expect("a certificate");
        let info = leaf.public_key_info[2..].to_vec();
        forged.roots[0].subject_public_key_info = Der::from(info);
        let bad = Err(CertificateError::BadSignature.into());
        assert_eq!(verified(LEAF, &forged, IN_2030), bad);
    }

    #[test]
    fn an_unsupported_algorithm_differs_from_an_unknown_issuer() {
        // ECDSA with SHA-256, and an algorithm that does not exist.
        let (used, other) = (
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2],
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1, 0],
        );
        let mut leaf = LEAF.to_vec();
        let places: Vec<usize> = (0..leaf.len())
            .filter(|at| leaf[*at..].starts_with(&used))
            .collect();
        assert_eq!(places.len(), 2);
        for at in places {
            leaf[at..at + used.len()].copy_from_slice(&other);
        }
        let refusal = verified(&leaf, &roots(), IN_2030).expect_err("refused");
        assert!(
            matches!(
                refusal,
                Error::InvalidCertificate(
                    CertificateError::UnsupportedSignatureAlgorithmContext { .. }
                )
            ),
            "{refusal}"
        );
        let unknown = Err(CertificateError::UnknownIssuer.into());
        assert_eq!(verified(&leaf, &RootCertStore::empty(), IN_2030), unknown);
        // The root's name, and a key of RSA that is too short.
        let mut short = roots();
        let algorithm = alg_id::RSA_ENCRYPTION;
        let length = u8::try_from(algorithm.as_ref().len()).expect("short");
        let info = [&[0x30, length], algorithm.as_ref(), &[3, 3, 0, 1, 1]].concat();
        short.roots[0].subject_public_key_info = Der::from(info);
        let refusal = verified(LEAF, &short, IN_2030).expect_err("refused");
        assert!(
            matches!(
                refusal,
                Error::InvalidCertificate(
                    CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. }
                )
            ),
            "{refusal}"
        );
    }

    #[test]
    fn changing_any_byte_breaks_the_signature() {
        for at in 0..LEAF.len() {
            let mut changed = LEAF.to_vec();
            changed[at] ^= 1;
            assert!(verified(&changed, &roots(), IN_2030).is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_period_of_validity_is_checked() {
        let (early, late) = (1_700_000_000, 5_000_000_000);
        let of = |error: CertificateError| Err(error.into());
        assert_eq!(
            verified(LEAF, &roots(), early),
            of(CertificateError::NotValidYet)
        );
        assert_eq!(
            verified(LEAF, &roots(), late),
            of(CertificateError::Expired)
        );
    }

    #[test]
    fn other_versions_are_not_verified_here() {
        assert!(Certificate::parse(ROOT).is_some_and(|root| !root.is_version_1));
        let encoding = Err(CertificateError::BadEncoding.into());
        assert_eq!(verified(ROOT, &roots(), IN_2030), encoding);
    }
}
