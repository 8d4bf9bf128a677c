//! The daemon dies while clients hold leases and acquire; the next one takes over what they hold.

mod common;

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use common::{TestDaemon, fill, no_fill, tensors};
use skep_store::{Daemon, Lease, LoadOrder, Store, StoreOptions, Tenant};

const GENERAL: Tenant = Tenant::GENERAL;

/// Longer than any test: a tensor that is not handed back is never filled.
fn patient() -> StoreOptions {
    StoreOptions {
        adoption_window: Duration::from_secs(600),
        ..StoreOptions::default()
    }
}

fn inodes(lease: &Lease) -> Vec<u64> {
    let inode = |index| {
        let file = lease.file_range(index).descriptor;
        rustix::fs::fstat(file).expect("a file").st_ino
    };
    (0..lease.len()).map(inode).collect()
}

/// Two clients have the same segments, one of them only a part; the next daemon has each of them once, and a third
/// client finds everything there.
#[test]
fn what_clients_hold_is_handed_back_to_the_next_daemon_once() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = tensors(&[10, 20, 9 << 20, 5000]);
    let [first, second, third] = [(); 3].map(|()| Store::connect(node.path()).expect("a store"));
    let all = first.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut fill(&contents));
    let all = all.expect("a lease");
    let part = second.acquire(&GENERAL, &list[1..3], LoadOrder::Fixed, &mut no_fill());
    let part = part.expect("a lease");

    let directory = node.stop();
    assert_eq!(all.bytes(2), contents[2]);
    let node = TestDaemon::start_in(directory, &[GENERAL], patient());
    let again = third.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut no_fill());
    let again = again.expect("a lease");
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(again.bytes(index), bytes);
    }
    assert_eq!(inodes(&again), inodes(&all));
    assert_eq!(inodes(&part), inodes(&all)[1..3]);
    // 4 of the first, 2 of the second, 4 of the third, and none of the one that asks.
    let stat = node.wait_for(&GENERAL, |stat| stat.leases == 10);
    assert_eq!((stat.segments, stat.tensors, stat.misses), (3, 4, 0));
    assert_eq!(
        stat.bytes_stored,
        list.iter().map(|tensor| tensor.length).sum::<u64>()
    );

    drop((all, again));
    let stat = node.wait_for(&GENERAL, |stat| stat.leases == 2);
    assert_eq!(stat.segments, 3);
    drop(part);
    node.wait_for(&GENERAL, |stat| stat.leases == 0);
}

/// An acquire is in the middle of a fill when the daemon dies: it hands back what it has, and goes on.
#[test]
fn an_acquire_outlives_the_daemon() {
    let node = TestDaemon::start(StoreOptions::default());
    let (contents, list) = tensors(&[9 << 20, 8 << 20, 10]);
    let store = Store::connect(node.path()).expect("a store");
    let (filling, replaced) = (Barrier::new(2), Barrier::new(2));
    let fills = AtomicUsize::new(0);
    thread::scope(|scope| {
        let acquiring = scope.spawn(|| {
            let mut write = fill(&contents);
            store.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut |index, bytes| {
                fills.fetch_add(1, Ordering::Relaxed);
                if index == 1 {
                    filling.wait();
                    replaced.wait();
                }
                write(index, bytes)
            })
        });
        filling.wait();
        let directory = node.stop();
        // The window is long, but the client began its fill before.
        let options = StoreOptions {
            adoption_window: Duration::ZERO,
            ..StoreOptions::default()
        };
        let node = TestDaemon::start_in(directory, &[GENERAL], options);
        replaced.wait();
        let lease = acquiring.join().expect("no panic").expect("a lease");
        for (index, bytes) in contents.iter().enumerate() {
            assert_eq!(lease.bytes(index), bytes);
        }
        assert_eq!(fills.load(Ordering::Relaxed), 3);
        let stat = node.wait_for(&GENERAL, |stat| stat.leases == 3);
        assert_eq!((stat.segments, stat.tensors), (3, 3));
    });
}

/// Names the directory to the child that is a daemon.
const CHILD: &str = "SKEP_STORE_TEST_DAEMON";

/// The daemon of the test below, which runs this in another process. As a test it does nothing.
#[test]
fn child_daemon() {
    let Some(directory) = env::var_os(CHILD) else {
        return;
    };
    let daemon = Daemon::bind(Path::new(&directory), &[GENERAL], patient_if_second());
    let daemon = daemon.expect("sockets");
    println!("ready");
    daemon.run().expect("a clean end");
}

/// The first daemon fills at once, the second one only takes what is handed back.
fn patient_if_second() -> StoreOptions {
    match env::var_os("SKEP_STORE_TEST_SECOND") {
        Some(_) => patient(),
        None => StoreOptions {
            adoption_window: Duration::ZERO,
            ..StoreOptions::default()
        },
    }
}

/// Killed at the end of the test, even if that panics.
struct DaemonProcess(Child);

impl DaemonProcess {
    fn kill(&mut self) {
        self.0.kill().expect("a signal");
        self.0.wait().expect("an end");
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(directory: &Path, second: bool) -> DaemonProcess {
    let mut command = Command::new(env::current_exe().expect("a path"));
    command.args(["--exact", "child_daemon", "--nocapture"]);
    command.env(CHILD, directory).stdout(Stdio::piped());
    if second {
        command.env("SKEP_STORE_TEST_SECOND", "1");
    }
    let mut child = command.spawn().expect("a process");
    let output = BufReader::new(child.stdout.take().expect("a pipe"));
    let ready = output
        .lines()
        .any(|line| line.expect("text").contains("ready"));
    assert!(ready, "no daemon");
    DaemonProcess(child)
}

#[test]
fn the_next_daemon_takes_over_from_a_killed_one() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("run");
    let (contents, list) = tensors(&[10, 20, 9 << 20]);
    let mut daemon = spawn(&path, false);
    let store = Store::connect(&path).expect("a store");
    let lease = store.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut fill(&contents));
    let lease = lease.expect("a lease");
    daemon.kill();
    assert!(GENERAL.socket(&path).exists());
    let _daemon = spawn(&path, true);
    let again = store.acquire(&GENERAL, &list, LoadOrder::Fixed, &mut no_fill());
    let again = again.expect("a lease");
    assert_eq!(inodes(&again), inodes(&lease));
    for (index, bytes) in contents.iter().enumerate() {
        assert_eq!(again.bytes(index), bytes);
    }
    assert_eq!(store.stat(&GENERAL).expect("figures").segments, 2);
}
