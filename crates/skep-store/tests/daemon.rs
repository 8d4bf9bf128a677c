//! A daemon and its clients, through the public API.

mod common;

use std::{
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{TestDaemon, fill, no_fill, tensors};
use skep_store::{Daemon, ErrorKind, FillError, LoadOrder, Store, StoreOptions, Tenant};

#[test]
fn a_look_at_a_daemon_leases_what_is_there() {
    let node = TestDaemon::start(StoreOptions::default());
    let store = Store::connect(node.path()).expect("connected");
    let (contents, list) = tensors(&[10, 4096, 5000]);
    let filled = store.acquire(
        &Tenant::GENERAL,
        &list[1..],
        LoadOrder::Fixed,
        &mut fill(&contents[1..]),
    );
    let present = store.look(&Tenant::GENERAL, &list).expect("an answer");
    assert_eq!(present.indices, [None, Some(0), Some(1)]);
    assert_eq!(present.lease.bytes(1), contents[2]);
    drop(filled);
    // The daemon hears of that a moment later.
    node.wait_for(&Tenant::GENERAL, |stat| stat.leases == 2);
    drop(present);
    while store.stat(&Tenant::GENERAL).expect("figures").leases != 0 {}
}

#[test]
fn what_one_client_fills_others_find() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = tensors(&[10, 0, 9 << 20, 5000]);
    let [first, second] = [(); 2].map(|()| Store::connect(node.path()).expect("a store"));
    let general = Tenant::GENERAL;
    let filled = first.acquire(&general, &list, LoadOrder::Fixed, &mut fill(&contents));
    let filled = filled.expect("a lease");
    let found = second.acquire(&general, &list, LoadOrder::Random(3), &mut no_fill());
    let found = found.expect("a lease");
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(filled.bytes(index), bytes);
        assert_eq!(found.bytes(index), bytes);
        // Two mappings of one memory file.
        let [one, other] = [&filled, &found].map(|lease| {
            let place = lease.file_range(index);
            let stat = rustix::fs::fstat(place.descriptor).expect("a file");
            (stat.st_ino, place.offset)
        });
        assert_eq!(one, other);
    }
    assert_eq!((filled.figures().filled, found.figures().hits), (4, 4));

    let stat = first.stat(&general).expect("figures");
    // The connection that asks is a holder as well.
    assert_eq!(
        (stat.segments, stat.tensors, stat.leases, stat.holders),
        (3, 4, 8, 3)
    );
    assert_eq!((stat.hits, stat.misses), (4, 4));
    let listed = second.ls(&general).expect("a list");
    assert_eq!(listed.len(), 4);
    for (index, wanted) in list.iter().enumerate() {
        let tensor = listed.iter().find(|tensor| tensor.digest == wanted.digest);
        let tensor = tensor.unwrap_or_else(|| panic!("no tensor {index}"));
        assert_eq!(
            (tensor.length, tensor.leases, tensor.idle),
            (wanted.length, 2, None)
        );
        assert_eq!(tensor.description, wanted.description);
    }
    assert_eq!(
        first.tenants().expect("sockets"),
        std::slice::from_ref(&general)
    );
    drop(filled);
    assert_eq!(first.gc(&general).expect("an answer"), 0);
    // The bytes alone keep the lease.
    let kept = found.bytes(2);
    drop((found, second));
    node.wait_for(&general, |stat| stat.holders == 2);
    assert_eq!(first.gc(&general).expect("an answer"), 0);
    drop(kept);
    node.wait_for(&general, |stat| stat.leases == 0);
    assert!(first.gc(&general).expect("an answer") > 9 << 20);
}

#[test]
fn many_clients_at_once_fill_each_tensor_once() {
    const CLIENTS: u64 = 6;
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = tensors(&[3 << 20; 12]);
    let filled: Vec<AtomicUsize> = list.iter().map(|_| AtomicUsize::new(0)).collect();
    let start = Barrier::new(CLIENTS as usize);
    thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (node, start, filled, contents, list) = (&node, &start, &filled, &contents, &list);
            scope.spawn(move || {
                let store = Store::connect(node.path()).expect("a store");
                start.wait();
                let order = LoadOrder::Random(seed);
                let mut write = fill(contents);
                let lease = store.acquire(&Tenant::GENERAL, list, order, &mut |index, bytes| {
                    filled[index].fetch_add(1, Ordering::Relaxed);
                    write(index, bytes)
                });
                let lease = lease.expect("a lease");
                for (index, bytes) in contents.iter().enumerate() {
                    assert_eq!(lease.bytes(index), bytes);
                }
            });
        }
    });
    assert!(
        filled
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 1)
    );
}

/// A process that has only a connection: leases from several threads, each of which ends separately.
#[test]
fn an_inherited_connection_serves_every_request() {
    let in_process = Store::in_process(StoreOptions::default());
    let node = TestDaemon::start(StoreOptions::default());
    let connected = Store::connect(node.path()).expect("a store");
    let tenant = Tenant::GENERAL;
    for outer in [in_process, connected] {
        let inner = Store::over(outer.stream(&tenant).expect("a stream")).expect("a store");
        assert_eq!(inner.tenant(), Some(&tenant));
        let (contents, list) = tensors(&[10, 20, 9 << 20]);
        let leases: Vec<_> = thread::scope(|scope| {
            let threads = [(); 3].map(|()| {
                scope
                    .spawn(|| inner.acquire(&tenant, &list, LoadOrder::Fixed, &mut fill(&contents)))
            });
            threads
                .map(|one| one.join().expect("no panic").expect("a lease"))
                .into()
        });
        let misses = outer.stat(&tenant).expect("figures").misses;
        assert_eq!(misses, 3);
        let mut left = 9;
        for lease in leases {
            assert_eq!(lease.bytes(1), contents[1]);
            assert_eq!(inner.stat(&tenant).expect("figures").leases, left);
            left -= 3;
            drop(lease);
            assert_eq!(inner.stat(&tenant).expect("figures").leases, left);
        }
        let error = inner.acquire(
            &Tenant::named("other").expect("a name"),
            &list,
            LoadOrder::Fixed,
            &mut no_fill(),
        );
        let error = error.expect_err("another tenant");
        assert_eq!(error.kind(), ErrorKind::Tenant);
        assert_eq!(
            error.to_string(),
            "the connection is tenant `general`'s, expected `other`'s"
        );
        assert_eq!(
            inner.stream(&tenant).expect_err("one only").kind(),
            ErrorKind::Tenant
        );
        // A filler that fails leaves nothing behind on a connection that lives on.
        let (_, other) = tensors(&[1, 2, 3]);
        let failed = inner.acquire(&tenant, &other, LoadOrder::Fixed, &mut |_, _| {
            Err(FillError::new("no file"))
        });
        assert_eq!(failed.expect_err("a failure").kind(), ErrorKind::Fill);
        assert_eq!(inner.stat(&tenant).expect("figures").leases, 0);
        let (contents, _) = tensors(&[1, 2, 3]);
        let lease = inner.acquire(&tenant, &other, LoadOrder::Fixed, &mut fill(&contents));
        assert_eq!(lease.expect("a lease").figures().filled, 3);
    }
}

#[test]
fn leases_outlive_the_other_end_of_an_inherited_connection() {
    let node = TestDaemon::start(StoreOptions::default());
    let outer = Store::connect(node.path()).expect("a store");
    let tenant = Tenant::GENERAL;
    let inner = Store::over(outer.stream(&tenant).expect("a stream")).expect("a store");
    let (contents, list) = tensors(&[10, 20]);
    let lease = inner.acquire(&tenant, &list, LoadOrder::Fixed, &mut fill(&contents));
    let lease = lease.expect("a lease");
    drop(node);
    let error = inner.acquire(&tenant, &list, LoadOrder::Fixed, &mut no_fill());
    assert_eq!(error.expect_err("nobody").kind(), ErrorKind::Unreachable);
    assert_eq!(lease.bytes(1), contents[1]);
}

#[test]
fn each_tenant_has_its_own_store_and_sees_nothing_of_others() {
    let named = Tenant::named("a").expect("a name");
    let node = TestDaemon::start_for(&[Tenant::GENERAL, named.clone()], StoreOptions::default());
    let store = Store::connect(node.path()).expect("a store");
    assert_eq!(
        store.tenants().expect("sockets"),
        [Tenant::GENERAL, named.clone()]
    );
    let (contents, list) = tensors(&[10, 20]);
    let general = store.acquire(
        &Tenant::GENERAL,
        &list,
        LoadOrder::Fixed,
        &mut fill(&contents),
    );
    let general = general.expect("a lease");
    // The digest of a tensor that another tenant has gives nothing away: it is this tenant's to fill.
    let dedicated = store.acquire(&named, &list, LoadOrder::Fixed, &mut fill(&contents));
    let dedicated = dedicated.expect("a lease");
    assert_eq!(
        (dedicated.figures().hits, dedicated.figures().filled),
        (0, 2)
    );
    let inode = |lease: &skep_store::Lease| {
        let stat = rustix::fs::fstat(lease.file_range(0).descriptor).expect("a file");
        stat.st_ino
    };
    assert_ne!(inode(&general), inode(&dedicated));
    let stat = store.stat(&named).expect("figures");
    assert_eq!(
        (stat.hits, stat.misses, stat.waits, stat.leases),
        (0, 2, 0, 2)
    );
    // A socket belongs to one tenant, whichever is asked for.
    let socket = Store::connect(&named.socket(node.path())).expect("a store");
    assert_eq!(socket.tenant(), Some(&named));
    let refused = socket.acquire(&Tenant::GENERAL, &list, LoadOrder::Fixed, &mut no_fill());
    assert_eq!(
        refused.expect_err("another tenant").kind(),
        ErrorKind::Tenant
    );
    let nobody = Tenant::named("nobody").expect("a name");
    let error = store.acquire(&nobody, &list, LoadOrder::Fixed, &mut no_fill());
    let error = error.expect_err("no socket").to_string();
    assert!(error.contains("tenant-nobody.sock"), "{error}");
    assert!(error.ends_with("is `skep store serve` running?"), "{error}");
}

#[test]
fn only_the_user_can_use_the_sockets_and_their_directory() {
    use std::os::unix::fs::PermissionsExt;
    let node = TestDaemon::start(StoreOptions::default());
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path).expect("there").permissions().mode() & 0o777
    };
    assert_eq!(mode(node.path()), 0o700);
    assert_eq!(mode(&Tenant::GENERAL.socket(node.path())), 0o600);

    let open = tempfile::tempdir().expect("a directory");
    std::fs::set_permissions(open.path(), PermissionsExt::from_mode(0o755)).expect("a mode");
    let error = Daemon::bind(open.path(), &[Tenant::GENERAL], StoreOptions::default());
    let error = error.expect_err("open to others").to_string();
    assert!(error.contains("it has mode 0755, expected 0700"), "{error}");
}

#[test]
fn a_second_daemon_is_refused_and_a_dead_ones_socket_is_replaced() {
    let node = TestDaemon::start(StoreOptions::default());
    let second = Daemon::bind(node.path(), &[Tenant::GENERAL], StoreOptions::default());
    let error = second.expect_err("two daemons").to_string();
    assert!(error.ends_with("a daemon serves there already"), "{error}");
    // The first one is as it was.
    let store = Store::connect(node.path()).expect("a store");
    store.stat(&Tenant::GENERAL).expect("an answer");

    let socket = Tenant::GENERAL.socket(node.path());
    let directory = node.stop();
    assert!(!socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&socket).expect("a socket"));
    assert!(socket.exists());
    let node = TestDaemon::start_in(directory, &[Tenant::GENERAL], StoreOptions::default());
    store.stat(&Tenant::GENERAL).expect("an answer");
    drop(node);
}

#[test]
fn idle_tensors_are_dropped_after_the_window() {
    let node = TestDaemon::start(StoreOptions {
        keep_alive: Duration::from_millis(1),
        ..StoreOptions::default()
    });
    let store = Store::connect(node.path()).expect("a store");
    let (contents, list) = tensors(&[10]);
    let lease = store.acquire(
        &Tenant::GENERAL,
        &list,
        LoadOrder::Fixed,
        &mut fill(&contents),
    );
    drop(lease.expect("a lease"));
    node.wait_for(&Tenant::GENERAL, |stat| {
        stat.reclaimed == 1 && stat.segments == 0
    });
}

#[test]
fn a_full_daemon_refuses_clients_until_one_leaves() {
    let node = TestDaemon::start(StoreOptions {
        max_holders: 2,
        ..StoreOptions::default()
    });
    let store = Store::connect(node.path()).expect("a store");
    let (contents, list) = tensors(&[10]);
    let tenant = Tenant::GENERAL;
    let get = || store.acquire(&tenant, &list, LoadOrder::Fixed, &mut fill(&contents));
    let first = get().expect("a lease");
    let second = get().expect("a lease");
    let error = get().expect_err("full");
    assert_eq!(error.kind(), ErrorKind::Bound);
    assert_eq!(
        error.to_string(),
        "connections of tenant `general` would be 3, expected at most 2"
    );
    drop(first);
    let third = loop {
        // The daemon notices the end of a connection when its thread gets to it.
        match get() {
            Ok(lease) => break lease,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Bound),
        }
    };
    assert_eq!(third.bytes(0), second.bytes(0));
}
