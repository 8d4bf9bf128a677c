//! Clients that die, lie or send nonsense: how the daemon answers, and that no other client notices.

use std::{
    io::{Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use skep_types::DataType;

use crate::{
    Daemon, Description, Digest, ErrorKind, FillError, LoadOrder, Stat, Stopper, Store, StoreError,
    StoreOptions, Tenant, Wanted,
    acquire::Mode,
    availability::Availability,
    segment::SegmentDraft,
    wire::{Connection, StoreReply, StoreRequest, WireLocation},
};

const GENERAL: Tenant = Tenant::GENERAL;

struct TestDaemon {
    path: PathBuf,
    stopper: Stopper,
    running: Option<JoinHandle<Result<(), StoreError>>>,
    _directory: tempfile::TempDir,
}

impl TestDaemon {
    fn start(options: StoreOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run");
        let options = StoreOptions {
            adoption_window: Duration::ZERO,
            ..options
        };
        let daemon = Daemon::bind(&path, &[GENERAL], options).expect("sockets");
        Self {
            path,
            stopper: daemon.stopper(),
            running: Some(thread::spawn(move || daemon.run())),
            _directory: directory,
        }
    }

    fn store(&self) -> Store {
        Store::connect(&self.path).expect("a store")
    }

    fn wait_for(&self, so: impl Fn(&Stat) -> bool) {
        while !so(&self.store().stat(&GENERAL).expect("figures")) {
            thread::yield_now();
        }
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(running) = self.running.take() {
            running.join().expect("no panic").expect("a clean end");
        }
    }
}

/// A client that keeps to no rule.
struct Rogue(Connection);

impl Rogue {
    fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(GENERAL.socket(path)).expect("a socket");
        Self(Connection::new(stream))
    }

    fn welcomed(path: &Path) -> Self {
        let rogue = Self::connect(path);
        assert_eq!(
            rogue.ask(&StoreRequest::Hello, None),
            StoreReply::Welcome(GENERAL)
        );
        rogue
    }

    fn ask(&self, request: &StoreRequest, descriptor: Option<&OwnedFd>) -> StoreReply {
        self.say(&request.encode(), descriptor);
        self.hear()
    }

    fn say(&self, body: &[u8], descriptor: Option<&OwnedFd>) {
        use std::os::fd::AsFd;
        self.0
            .send(body, descriptor.map(AsFd::as_fd))
            .expect("sent");
    }

    /// The next answer, without its segments.
    fn hear(&self) -> StoreReply {
        loop {
            let received = self.0.receive(StoreReply::decode).expect("an answer");
            match received.expect("an answer").0 {
                StoreReply::Segment(_) => {}
                reply => return reply,
            }
        }
    }

    fn claim(&self, wanted: &[Wanted]) -> Vec<Availability<WireLocation>> {
        let wanted = wanted.to_vec();
        let mode = Mode::Claim;
        match self.ask(&StoreRequest::Take { mode, wanted }, None) {
            StoreReply::Answers(answers) => answers,
            other => panic!("{other:?}"),
        }
    }

    /// The daemon's last message before it ends the connection.
    fn last_words(&self) -> String {
        let StoreReply::Refused(ErrorKind::Protocol, text) = self.hear() else {
            panic!("not a refusal");
        };
        assert!(
            matches!(self.0.receive(StoreReply::decode), Ok(None)),
            "it goes on"
        );
        text
    }
}

fn tensor(number: u8, length: usize) -> (Vec<u8>, Wanted) {
    let bytes: Vec<u8> = (0..length).map(|at| (at as u8) ^ number).collect();
    let description = Description {
        datatype: DataType::Uint8,
        dims: vec![length as u64],
        layout: "plain".into(),
    };
    let wanted = Wanted::of(description, &bytes);
    (bytes, wanted)
}

fn two_tensors() -> (Vec<Vec<u8>>, Vec<Wanted>) {
    [tensor(1, 100), tensor(2, 5000)].into_iter().unzip()
}

/// A sealed segment of two tensors, a page and two pages long.
fn segment(contents: &[Vec<u8>]) -> OwnedFd {
    let mut draft = SegmentDraft::new(3 * 4096).expect("memory");
    for (bytes, offset) in contents.iter().zip([0, 4096]) {
        let part = draft.part(offset, bytes.len() as u64).expect("room");
        part.copy_from_slice(bytes);
    }
    let segment = draft.seal().expect("sealed");
    segment
        .descriptor()
        .try_clone_to_owned()
        .expect("a descriptor")
}

fn publication(wanted: &[Wanted]) -> StoreRequest {
    StoreRequest::Publish(wanted.iter().cloned().zip([0, 4096]).collect())
}

/// An honest client acquires tensors, and leaves nothing behind.
fn all_is_well(node: &TestDaemon) {
    let (contents, list) = two_tensors();
    let lease = node
        .store()
        .acquire(&GENERAL, &list, LoadOrder::Fixed, &mut |index, bytes| {
            bytes.copy_from_slice(&contents[index]);
            Ok(())
        });
    let lease = lease.expect("a lease");
    assert_eq!(lease.bytes(1), contents[1]);
    drop(lease);
    node.wait_for(|stat| stat.leases == 0 && stat.holders == 1);
}

/// The client dies after each step of a conversation; the last step is a complete one.
#[test]
fn a_client_that_dies_at_any_step_leaves_nothing_behind() {
    let (contents, list) = two_tensors();
    for step in 0..8 {
        let node = TestDaemon::start(StoreOptions::default());
        let hello = StoreRequest::Hello.encode();
        let take = StoreRequest::Take {
            mode: Mode::Claim,
            wanted: list.clone(),
        };
        match step {
            // Connected; half a length; half a hello.
            0 => drop(Rogue::connect(&node.path)),
            1 => {
                let rogue = Rogue::connect(&node.path);
                rogue.0.stream().write_all(&[1, 0]).expect("sent");
            }
            2 => {
                let rogue = Rogue::connect(&node.path);
                let length = u32::try_from(hello.len()).expect("short").to_le_bytes();
                let half = [&length[..], &hello[..5]].concat();
                rogue.0.stream().write_all(&half).expect("sent");
            }
            // Welcomed; a request whose answer is not read; tickets.
            3 => drop(Rogue::welcomed(&node.path)),
            4 => Rogue::welcomed(&node.path).say(&take.encode(), None),
            5 => {
                let answers = Rogue::welcomed(&node.path).claim(&list);
                assert_eq!(answers, [Availability::Fill; 2]);
            }
            // A publication whose answer is not read; leases.
            6 => {
                let rogue = Rogue::welcomed(&node.path);
                rogue.claim(&list);
                rogue.say(&publication(&list).encode(), Some(&segment(&contents)));
            }
            _ => {
                let rogue = Rogue::welcomed(&node.path);
                rogue.claim(&list);
                let published = rogue.ask(&publication(&list), Some(&segment(&contents)));
                assert!(matches!(published, StoreReply::Answers(_)));
                node.wait_for(|stat| stat.leases == 2);
            }
        }
        node.wait_for(|stat| stat.holders == 1 && stat.leases == 0);
        all_is_well(&node);
        let store = node.store();
        store.gc(&GENERAL).expect("an answer");
        let stat = store.stat(&GENERAL).expect("figures");
        assert_eq!((stat.segments, stat.bytes_stored), (0, 0), "step {step}");
    }
}

/// A filler dies while another holder waits, which then fills.
#[test]
fn a_waiting_holder_fills_when_the_filler_dies() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = two_tensors();
    let rogue = Rogue::welcomed(&node.path);
    assert_eq!(rogue.claim(&list), [Availability::Fill; 2]);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let fill = &mut |index: usize, bytes: &mut [u8]| -> Result<(), FillError> {
                bytes.copy_from_slice(&contents[index]);
                Ok(())
            };
            node.store()
                .acquire(&GENERAL, &list, LoadOrder::Fixed, fill)
        });
        node.wait_for(|stat| stat.waits == 2);
        drop(rogue);
        let lease = waiting.join().expect("no panic").expect("a lease");
        assert_eq!(lease.figures().filled, 2);
        assert_eq!(lease.bytes(0), contents[0]);
    });
}

/// A malformed message ends its connection with an error, and no other connection.
#[test]
fn a_malformed_message_ends_only_its_connection() {
    let node = TestDaemon::start(StoreOptions::default());
    let witness = Rogue::welcomed(&node.path);
    let cases: [(&[u8], &str); 4] = [
        (
            b"GET / HTTP/1.1\r\n\r\n",
            "it has 542393671 bytes, expected at most 2097152",
        ),
        (
            &[0xff; 64],
            "it has 4294967295 bytes, expected at most 2097152",
        ),
        (&[0; 4], "it ends early: expected 1 more bytes, got 0"),
        (&[1, 0, 0, 0, 6], "expected a hello first"),
    ];
    for (bytes, text) in cases {
        let mut stream = UnixStream::connect(GENERAL.socket(&node.path)).expect("a socket");
        stream.write_all(bytes).expect("sent");
        let rogue = Rogue(Connection::new(stream));
        let StoreReply::Refused(ErrorKind::Protocol, said) = rogue.hear() else {
            panic!("not a refusal");
        };
        assert_eq!(said, format!("malformed message: {text}"));
        // The system drops the unread rest, with or without an error.
        let mut rest = Vec::new();
        let _ = rogue.0.stream().read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    let rogue = Rogue::welcomed(&node.path);
    rogue.say(&StoreRequest::Hello.encode(), None);
    assert_eq!(rogue.last_words(), "malformed message: a second hello");
    let rogue = Rogue::welcomed(&node.path);
    rogue.say(&[2, 0, 1, 0, 7], None);
    assert_eq!(
        rogue.last_words(),
        "malformed message: it ends early: expected 32 more bytes, got 1"
    );
    assert!(matches!(
        witness.ask(&StoreRequest::Stat, None),
        StoreReply::Stat(_)
    ));
    all_is_well_beside(&node, 1);
}

/// As [`all_is_well`], beside other connections.
fn all_is_well_beside(node: &TestDaemon, others: u64) {
    let (contents, list) = two_tensors();
    let lease = node
        .store()
        .acquire(&GENERAL, &list, LoadOrder::Fixed, &mut |index, bytes| {
            bytes.copy_from_slice(&contents[index]);
            Ok(())
        });
    assert_eq!(lease.expect("a lease").bytes(1), contents[1]);
    node.wait_for(|stat| stat.holders == 1 + others);
}

/// Everything that a client could send instead of a sealed segment.
#[test]
fn other_descriptors_are_refused() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = two_tensors();
    let refused = |descriptor: Option<&OwnedFd>, request: &StoreRequest| {
        let rogue = Rogue::welcomed(&node.path);
        rogue.say(&request.encode(), descriptor);
        let text = rogue.last_words();
        assert_eq!(node.store().stat(&GENERAL).expect("figures").tensors, 0);
        text
    };
    let request = publication(&list);
    let mut whole = vec![0; 3 * 4096];
    whole[..100].copy_from_slice(&contents[0]);
    whole[4096..9096].copy_from_slice(&contents[1]);

    let mut plain = tempfile::tempfile().expect("a file");
    plain.write_all(&whole).expect("written");
    assert_eq!(
        refused(Some(&plain.into()), &request),
        "not a segment: expected a sealed memory file, got another file"
    );
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let unsealed = memfd_create("unsealed", flags).expect("memory");
    fallocate(&unsealed, FallocateFlags::empty(), 0, 3 * 4096).expect("memory");
    rustix::io::pwrite(&unsealed, &whole, 0).expect("written");
    assert!(refused(Some(&unsealed), &request).starts_with("not a segment: expected seals"));
    let most = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW;
    fcntl_add_seals(&unsealed, most).expect("seals");
    assert!(refused(Some(&unsealed), &request).starts_with("not a segment: expected seals"));

    // As many blocks as bytes, but behind the end.
    let holes = memfd_create("holes", flags).expect("memory");
    rustix::io::pwrite(&holes, &whole[..4096], 0).expect("written");
    rustix::fs::ftruncate(&holes, 3 * 4096).expect("room");
    fallocate(&holes, FallocateFlags::KEEP_SIZE, 3 * 4096, 1 << 20).expect("memory");
    fcntl_add_seals(&holes, most | SealFlags::SEAL).expect("seals");
    assert_eq!(
        refused(Some(&holes), &request),
        "not a segment: expected a file whose pages are all there, got a hole at 4096 of its 12288 bytes"
    );

    let one_descriptor =
        "malformed message: expected one descriptor with a publication, and none otherwise";
    assert_eq!(refused(None, &request), one_descriptor);
    assert_eq!(
        refused(Some(&segment(&contents)), &StoreRequest::Stat),
        one_descriptor
    );

    let at = |offsets: [u64; 2]| StoreRequest::Publish(list.iter().cloned().zip(offsets).collect());
    let file = segment(&contents);
    for (offsets, text) in [
        (
            [0, 1 << 40],
            "not a segment: 5000 bytes from 1099511627776 on are not in its 12288 bytes",
        ),
        (
            [0, 8192],
            "not a segment: 5000 bytes from 8192 on are not in its 12288 bytes",
        ),
        (
            [0, 0],
            "not a segment: a tensor lies at 0, expected a page's start from 4096 on",
        ),
        (
            [100, 4096],
            "not a segment: a tensor lies at 100, expected a page's start from 0 on",
        ),
    ] {
        assert_eq!(refused(Some(&file), &at(offsets)), text);
    }
    all_is_well(&node);
}

/// A valid segment whose bytes do not have their digests: no holder ever gets them.
#[test]
fn bytes_without_their_digest_are_never_published() {
    let node = TestDaemon::start(StoreOptions::default());
    let (mut contents, list) = two_tensors();
    contents[1][4999] ^= 1;
    let rogue = Rogue::welcomed(&node.path);
    assert_eq!(rogue.claim(&list), [Availability::Fill; 2]);
    let StoreReply::Refused(kind, text) = rogue.ask(&publication(&list), Some(&segment(&contents)))
    else {
        panic!("not a refusal");
    };
    assert_eq!(kind, ErrorKind::Content);
    let got = Digest::of(&list[1].description, &contents[1]);
    let wanted = list[1].digest;
    assert_eq!(
        text,
        format!("tensor `{wanted}` was filled with bytes whose digest is `{got}`")
    );
    let stat = node.store().stat(&GENERAL).expect("figures");
    assert_eq!((stat.tensors, stat.segments, stat.leases), (0, 0, 0));
    // It may try again, and still has the tickets.
    assert_eq!(rogue.claim(&list), [Availability::Fill; 2]);
    contents[1][4999] ^= 1;
    let published = rogue.ask(&publication(&list), Some(&segment(&contents)));
    assert!(matches!(published, StoreReply::Answers(_)));
    all_is_well_beside(&node, 1);
}

/// A client that has a lease has the descriptor, and can only read through it.
#[test]
fn a_client_cannot_write_what_it_has_leased() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = two_tensors();
    let lease = node
        .store()
        .acquire(&GENERAL, &list, LoadOrder::Fixed, &mut |index, bytes| {
            bytes.copy_from_slice(&contents[index]);
            Ok(())
        });
    let lease = lease.expect("a lease");
    let file = lease.file_range(1).descriptor;
    assert!(rustix::io::pwrite(file, b"x", 4096).is_err());
    assert!(rustix::fs::ftruncate(file, 0).is_err());
    assert!(fcntl_add_seals(file, SealFlags::FUTURE_WRITE).is_err());
    assert_eq!(lease.bytes(1), contents[1]);
}

/// Bounds hold against clients that keep to the protocol alone.
#[test]
fn bounds_hold_against_clients_that_ignore_them() {
    let node = TestDaemon::start(StoreOptions {
        max_tenant_bytes: 2 * 4096,
        max_holder_leases: 3,
        max_holder_tickets: 1,
        ..StoreOptions::default()
    });
    let (contents, list) = two_tensors();
    // More than it may fill: it gets nothing, and the connection goes on.
    let rogue = Rogue::welcomed(&node.path);
    let take = StoreRequest::Take {
        mode: Mode::Claim,
        wanted: list.clone(),
    };
    let StoreReply::Refused(ErrorKind::Bound, text) = rogue.ask(&take, None) else {
        panic!("not a refusal");
    };
    assert_eq!(
        text,
        "tensors that one holder is to fill of tenant `general` would be 2, expected at most 1"
    );
    let other = Rogue::welcomed(&node.path);
    assert_eq!(other.claim(&list[1..]), [Availability::Fill]);
    drop(other);
    node.wait_for(|stat| stat.holders == 2);
    // Without tickets, three pages at once.
    let StoreReply::Refused(kind, text) = rogue.ask(&publication(&list), Some(&segment(&contents)))
    else {
        panic!("not a refusal");
    };
    assert_eq!(kind, ErrorKind::Bound);
    assert_eq!(
        text,
        "bytes of tenant `general` would be 12288, expected at most 8192"
    );
    // One lease over and over.
    let small = [list[0].clone()];
    let mut draft = SegmentDraft::new(4096).expect("memory");
    draft
        .part(0, 100)
        .expect("room")
        .copy_from_slice(&contents[0]);
    let file = draft
        .seal()
        .expect("sealed")
        .descriptor()
        .try_clone_to_owned();
    let file = file.expect("a descriptor");
    assert!(matches!(
        rogue.ask(&publication(&small), Some(&file)),
        StoreReply::Answers(_)
    ));
    for _ in 0..2 {
        assert!(matches!(rogue.claim(&small)[..], [Availability::Here(..)]));
    }
    let take = StoreRequest::Take {
        mode: Mode::Look,
        wanted: small.to_vec(),
    };
    let StoreReply::Refused(ErrorKind::Bound, text) = rogue.ask(&take, None) else {
        panic!("not a refusal");
    };
    assert_eq!(
        text,
        "leases of one holder of tenant `general` would be 4, expected at most 3"
    );
    // Releasing leases that it does not have changes nothing for others.
    let other = Rogue::welcomed(&node.path);
    assert_eq!(
        other.ask(&StoreRequest::Release(vec![small[0].digest]), None),
        StoreReply::Done(0)
    );
    assert_eq!(node.store().stat(&GENERAL).expect("figures").leases, 3);
    let all = StoreRequest::Release(vec![small[0].digest; 9]);
    assert_eq!(rogue.ask(&all, None), StoreReply::Done(0));
    assert_eq!(node.store().stat(&GENERAL).expect("figures").leases, 0);
}

/// A process cannot widen a restriction that was made before it got the connection.
#[test]
fn a_restriction_is_final() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = two_tensors();
    let restrict = |tensors: &[Wanted], more| StoreRequest::Restrict {
        tensors: tensors.iter().map(|tensor| tensor.digest).collect(),
        more,
    };
    let restricted = || {
        let rogue = Rogue::connect(&node.path);
        for (tensor, more) in [(0, true), (1, false)] {
            let part = restrict(&list[tensor..=tensor], more);
            assert_eq!(rogue.ask(&part, None), StoreReply::Done(0));
        }
        rogue
    };
    let rogue = restricted();
    rogue.say(&restrict(&[], true).encode(), None);
    assert!(rogue.last_words().contains("restricted already"));

    let rogue = restricted();
    assert_eq!(
        rogue.ask(&StoreRequest::Hello, None),
        StoreReply::Welcome(GENERAL)
    );
    assert_eq!(rogue.claim(&list), [Availability::Fill; 2]);
    // A file with much more memory than its tensors take.
    let mut draft = SegmentDraft::new(4 << 20).expect("memory");
    draft
        .part(0, 100)
        .expect("room")
        .copy_from_slice(&contents[0]);
    let large = draft.seal().expect("sealed");
    let large = large
        .descriptor()
        .try_clone_to_owned()
        .expect("a descriptor");
    let publish = StoreRequest::Publish(vec![(list[0].clone(), 0)]);
    let StoreReply::Refused(ErrorKind::Tenant, text) = rogue.ask(&publish, Some(&large)) else {
        panic!("not a refusal");
    };
    assert!(text.contains("for tensors of 4096"), "{text}");
    assert!(
        matches!(rogue.0.receive(StoreReply::decode), Ok(None)),
        "it goes on"
    );

    // After the welcome it can no longer be restricted.
    let rogue = Rogue::welcomed(&node.path);
    rogue.say(&restrict(&[], false).encode(), None);
    assert!(rogue.last_words().contains("after the hello"));
    all_is_well(&node);
}
