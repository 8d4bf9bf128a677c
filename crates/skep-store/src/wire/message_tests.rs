//! Messages decode to what was encoded; anything else is refused.

use proptest::prelude::*;
use skep_types::DataType;

use super::*;
use crate::{Description, StoreError};

fn wanted() -> impl Strategy<Value = Wanted> {
    let datatype = (0..DataType::ALL.len()).prop_map(|number| DataType::ALL[number]);
    let dims = proptest::collection::vec(any::<u64>(), 0..=64);
    (
        any::<[u8; 32]>(),
        datatype,
        dims,
        "[a-zä]{0,100}",
        any::<u64>(),
    )
        .prop_map(|(digest, datatype, dims, layout, length)| Wanted {
            digest: Digest(digest),
            description: Description {
                datatype,
                dims,
                layout: layout.into(),
            },
            length,
        })
}

fn request() -> impl Strategy<Value = StoreRequest> {
    let mode = (0..MODES.len()).prop_map(|number| MODES[number]);
    let digests = || proptest::collection::vec(any::<[u8; 32]>().prop_map(Digest), 0..5);
    let tensors = proptest::collection::vec(wanted(), 0..5);
    let offered = proptest::collection::vec((wanted(), any::<u64>()), 0..5);
    prop_oneof![
        Just(StoreRequest::Hello),
        (mode, tensors).prop_map(|(mode, wanted)| StoreRequest::Take { mode, wanted }),
        offered.prop_map(StoreRequest::Publish),
        digests().prop_map(StoreRequest::GiveBack),
        digests().prop_map(StoreRequest::Release),
        Just(StoreRequest::Stat),
        any::<Option<[u8; 32]>>().prop_map(|after| StoreRequest::List(after.map(Digest))),
        Just(StoreRequest::Gc),
        (digests(), any::<bool>())
            .prop_map(|(tensors, more)| StoreRequest::Restrict { tensors, more }),
    ]
}

fn reply() -> impl Strategy<Value = StoreReply> {
    let answer = prop_oneof![
        any::<WireLocation>().prop_map(Availability::Here),
        Just(Availability::Fill),
        Just(Availability::Wait),
        Just(Availability::Absent),
    ];
    let listed =
        (wanted(), any::<u64>(), any::<Option<u64>>()).prop_map(|(wanted, leases, idle)| {
            StoredTensor {
                digest: wanted.digest,
                description: wanted.description,
                length: wanted.length,
                leases,
                idle: idle.map(Duration::from_nanos),
            }
        });
    let kind = (0..KINDS.len()).prop_map(|number| KINDS[number]);
    let tenant = proptest::option::of("[a-zA-Z0-9._-]{1,64}").prop_map(|name| {
        name.map_or(Tenant::GENERAL, |name| {
            Tenant::named(&name).expect("a name")
        })
    });
    prop_oneof![
        tenant.prop_map(StoreReply::Welcome),
        any::<u64>().prop_map(StoreReply::Segment),
        proptest::collection::vec(answer, 0..9).prop_map(StoreReply::Answers),
        any::<u64>().prop_map(StoreReply::Done),
        any::<[u64; FIGURES]>().prop_map(|all| StoreReply::Stat(of_figures(all))),
        proptest::collection::vec(listed, 0..5).prop_map(StoreReply::Page),
        (kind, "\\PC{0,50}").prop_map(|(kind, text)| StoreReply::Refused(kind, text)),
    ]
}

proptest! {
    #[test]
    fn requests_decode_to_what_was_encoded(request in request()) {
        let bytes = request.encode();
        prop_assert_eq!(StoreRequest::decode(&bytes), Ok(request));
        for end in 0..bytes.len() {
            prop_assert!(StoreRequest::decode(&bytes[..end]).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        prop_assert!(StoreRequest::decode(&longer).is_err());
    }

    #[test]
    fn replies_decode_to_what_was_encoded(reply in reply()) {
        let bytes = reply.encode();
        prop_assert_eq!(StoreReply::decode(&bytes), Ok(reply));
        for end in 0..bytes.len() {
            prop_assert!(StoreReply::decode(&bytes[..end]).is_err());
        }
    }
}

proptest! {
    /// A message with changed bytes is refused, or is another message with exactly these bytes.
    #[test]
    fn each_message_has_one_encoding(
        request in request(),
        reply in reply(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
    ) {
        for mut bytes in [request.encode(), reply.encode()] {
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            crate::fuzzing::store_messages(&bytes);
        }
    }
}

#[test]
fn malformed_messages_are_named() {
    let mut hello = StoreRequest::Hello.encode();
    hello[9] = 1;
    let one_more = u16::try_from(MAX_TENSORS + 1)
        .expect("a count")
        .to_le_bytes();
    let mut wanted = [2, 0, 1, 0].to_vec();
    wanted.extend([0; 32]);
    let with = |rest: &[u8]| [&wanted[..], rest].concat();
    let cases = [
        (vec![], "it ends early: expected 1 more bytes, got 0"),
        (vec![10], "unknown request kind 10"),
        (
            b"\x01GET / HT".to_vec(),
            "it is not from a client of a tensor store",
        ),
        (hello, "version 1 of the protocol, expected 2"),
        (vec![6, 0], "1 bytes follow its end"),
        (vec![7, 2], "expected 0 or 1, got 2"),
        (vec![2, 3], "mode 3 is unknown"),
        (
            [&[2, 0], &one_more[..]].concat(),
            "2049 tensors, expected at most 2048",
        ),
        (with(&[14]), "datatype 14 is unknown"),
        (with(&[0, 65, 0]), "65 dims, expected at most 64"),
        (
            with(&[0, 0, 0, 0, 1]),
            "256 bytes of a text, expected at most 255",
        ),
        (with(&[0, 0, 0, 1, 0, 0xff]), "a text that is not UTF-8"),
    ];
    for (bytes, text) in cases {
        let error = StoreError::from(StoreRequest::decode(&bytes).expect_err(text));
        assert_eq!(error.to_string(), format!("malformed message: {text}"));
    }
}

#[test]
fn a_long_refusal_is_cut_to_what_its_reader_accepts() {
    let long = "ä".repeat(MAX_TEXT_BYTES);
    let bytes = StoreReply::Refused(ErrorKind::Bound, long).encode();
    let Ok(StoreReply::Refused(ErrorKind::Bound, text)) = StoreReply::decode(&bytes) else {
        panic!("not a refusal");
    };
    assert_eq!(text, "ä".repeat(MAX_TEXT_BYTES / 2));
}
