//! Connections for processes that are not trusted: each reaches its own model's tensors and nothing else, of a store in
//! this process and of a daemon.

mod common;

use common::{TestDaemon, fill, no_fill, tensors};
use skep_store::{Digest, ErrorKind, LoadOrder, Store, StoreError, StoreOptions, Tenant, Wanted};

const GENERAL: Tenant = Tenant::GENERAL;

fn digests(wanted: &[Wanted]) -> Vec<Digest> {
    wanted.iter().map(|tensor| tensor.digest).collect()
}

/// Runs a test with a store in this process, and with a daemon.
fn with_both(body: impl Fn(&Store)) {
    body(&Store::in_process(StoreOptions::default()));
    let node = TestDaemon::start(StoreOptions::default());
    body(&Store::connect(node.path()).expect("a store"));
}

fn restricted(store: &Store, tensors: &[Wanted]) -> Store {
    let stream = store.stream_for(&GENERAL, &digests(tensors));
    Store::over(stream.expect("a stream")).expect("a store")
}

fn refusal<T>(outcome: Result<T, StoreError>) -> String {
    let error = outcome.err().expect("refused");
    assert_eq!(error.kind(), ErrorKind::Tenant, "{error}");
    error.to_string()
}

/// Something that a process tries.
type Try<'a> = (&'a str, &'a dyn Fn(&Store) -> String);

#[test]
fn a_model_gets_its_own_tensors_through_a_restricted_connection() {
    with_both(|store| {
        let (contents, list) = tensors(&[10, 5000, 9 << 20]);
        let inner = restricted(store, &list);
        let filled = inner.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut fill(&contents));
        let filled = filled.expect("a lease");
        assert_eq!(filled.bytes(2), contents[2]);
        // An unrestricted holder finds the same tensors.
        let found = store.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut no_fill());
        assert_eq!(found.expect("a lease").bytes(1), contents[1]);
        drop(filled);
        // The connection goes on: its leases ended by its own word.
        let again = inner.look(&GENERAL, &list[..1]).expect("an answer");
        assert_eq!(again.indices, [Some(0)]);
    });
}

#[test]
fn more_tensors_than_one_message_names_are_allowed_one_by_one() {
    with_both(|store| {
        let (contents, list) = tensors(&[1; 200]);
        let mut named = digests(&list);
        // Behind the others, in the second message.
        named.splice(
            0..0,
            (0..3000_u32).map(|number| {
                let mut digest = [0xff; 32];
                digest[..4].copy_from_slice(&number.to_le_bytes());
                Digest(digest)
            }),
        );
        let stream = store.stream_for(&GENERAL, &named).expect("a stream");
        let inner = Store::over(stream).expect("a store");
        let lease = inner.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut fill(&contents));
        assert_eq!(lease.expect("a lease").len(), 200);
        let many = vec![Digest([0; 32]); (1 << 16) + 1];
        let error = store.stream_for(&GENERAL, &many).expect_err("too many");
        assert_eq!(error.kind(), ErrorKind::Bound);
    });
}

#[test]
fn everything_else_is_refused_and_ends_that_connection_alone() {
    with_both(|store| {
        let (contents, list) = tensors(&[100, 5000, 70]);
        let (own, foreign) = list.split_at(2);
        let there = store.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut fill(&contents));
        let there = there.expect("a lease");
        let neighbour = restricted(store, own);
        let foreign_name = foreign[0].digest.to_string();
        let tries: [Try<'_>; 5] = [
            ("a list of tensors", &|inner| refusal(inner.ls(&GENERAL))),
            ("dropping idle tensors", &|inner| {
                refusal(inner.gc(&GENERAL))
            }),
            ("figures", &|inner| refusal(inner.stat(&GENERAL))),
            // There or not, it hears the same.
            (&foreign_name, &|inner| {
                refusal(inner.look(&GENERAL, foreign))
            }),
            (&foreign_name, &|inner| {
                let both = [own[0].clone(), foreign[0].clone()];
                refusal(inner.acquire(&GENERAL, &both, LoadOrder::Fixed, &mut no_fill()))
            }),
        ];
        for (what, attempt) in tries {
            let inner = restricted(store, own);
            let text = attempt(&inner);
            assert!(text.contains("this connection may not ask for"), "{text}");
            assert!(text.contains(what), "{text}");
            let error = inner.look(&GENERAL, own).expect_err("it has ended");
            assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        }
        let present = neighbour.look(&GENERAL, own).expect("untouched");
        assert_eq!(present.indices, [Some(0), Some(1)]);
        assert_eq!(there.bytes(2), contents[2]);
        assert_eq!(store.ls(&GENERAL).expect("a list").len(), 3);
    });
}
