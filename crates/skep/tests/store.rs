//! `skep store`: the daemon as a process, and what the commands print.

use std::{
    io::{BufRead, BufReader},
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use skep_store::{Description, Lease, LoadOrder, Store, Tenant, Wanted};
use skep_types::DataType;

/// A daemon, in a directory of its own.
struct Daemon {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Daemon {
    /// A daemon that lets no process fill tensors for so many seconds.
    fn start(directory: &Path, window: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_skep"))
            .args(["store", "serve", "--tenant", "a", "--tenant", "a"])
            .args(["--adoption-window", window, "--directory"])
            .arg(directory)
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        for tenant in [Tenant::GENERAL, Tenant::named("a").expect("a name")] {
            line.clear();
            output.read_line(&mut line).expect("a line");
            let socket = tenant.socket(directory);
            assert_eq!(
                line,
                format!("store of tenant `{tenant}` at {}\n", socket.display())
            );
        }
        Self { child, output }
    }

    /// The exit code after a signal.
    fn stop(&mut self, signal: Signal) -> Option<i32> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.expect("a process"), signal).expect("a signal");
        self.child.wait().expect("an end").code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("skep");
    (directory, path)
}

fn skep(arguments: &[&str], directory: &Path) -> (bool, String, String) {
    let outcome = Command::new(env!("CARGO_BIN_EXE_skep"))
        .arg("store")
        .args(arguments)
        .arg("--directory")
        .arg(directory)
        .output()
        .expect("a process");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (
        outcome.status.success(),
        text(outcome.stdout),
        text(outcome.stderr),
    )
}

fn document(arguments: &[&str], directory: &Path) -> Value {
    let (fine, output, errors) = skep(arguments, directory);
    assert!(fine, "{errors}");
    serde_json::from_str(&output).expect("JSON")
}

/// Two tensors of a model, as two instances of tenant `a` have them.
fn leases(directory: &Path) -> [Lease; 2] {
    let description = |dims: &[u64]| Description {
        datatype: DataType::Fp32,
        dims: dims.to_vec(),
        layout: "plain".into(),
    };
    let wanted = [
        Wanted::of(description(&[2, 3]), &[7; 24]),
        Wanted::of(description(&[1024]), &[7; 4096]),
    ];
    let tenant = Tenant::named("a").expect("a name");
    [(); 2].map(|()| {
        let store = Store::connect(directory).expect("a store");
        let lease = store.acquire(&tenant, &wanted, LoadOrder::Fixed, &mut |_, bytes| {
            bytes.fill(7);
            Ok(())
        });
        lease.expect("a lease")
    })
}

#[test]
fn figures_lists_and_garbage_by_tenant() {
    let (_directory, path) = place();
    let mut daemon = Daemon::start(&path, "0");
    let leases = leases(&path);
    let stat = document(&["stat", "--json"], &path);
    let of_a = json!({
        "segments": 1, "tensors": 2, "bytes_stored": 4120, "bytes_padding": 4072, "bytes_leased": 8240,
        "bytes_saved": 4120, "leases": 4, "holders": 3, "hits": 2, "misses": 2, "waits": 0, "wait_ns": 0,
        "reclaimed": 0,
    });
    assert_eq!(stat["tenants"]["a"], of_a);
    assert_eq!(stat["tenants"]["general"]["tensors"], 0);
    assert_eq!(stat["total"]["bytes_saved"], 4120);
    let (_, table, _) = skep(&["stat"], &path);
    let lines: Vec<&str> = table.lines().collect();
    assert!(
        lines[0].starts_with("tenant   tensors  segments  stored"),
        "{table}"
    );
    assert!(
        lines[2].starts_with("a        2        1         4.02 KiB"),
        "{table}"
    );
    assert!(lines[3].starts_with("total"), "{table}");

    let listed = document(&["ls", "--json", "--tenant", "a"], &path);
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), 2);
    let matrix = listed.iter().find(|tensor| tensor["bytes"] == 24);
    let matrix = matrix.expect("the matrix");
    assert_eq!(matrix["dims"], json!([2, 3]));
    assert_eq!(
        (&matrix["datatype"], &matrix["layout"]),
        (&json!("FP32"), &json!("plain"))
    );
    assert_eq!(
        (&matrix["leases"], &matrix["idle_seconds"]),
        (&json!(2), &Value::Null)
    );
    assert_eq!(
        document(&["ls", "--json", "--tenant", "general"], &path),
        json!([])
    );
    let (_, table, _) = skep(&["ls"], &path);
    assert!(table.contains("FP32[2,3] plain"), "{table}");

    // One socket is one tenant's.
    let socket = Tenant::named("a").expect("a name").socket(&path);
    let outcome = Command::new(env!("CARGO_BIN_EXE_skep"))
        .args(["store", "stat", "--json", "--socket"])
        .arg(&socket)
        .output()
        .expect("a process");
    let stat: Value = serde_json::from_slice(&outcome.stdout).expect("JSON");
    assert_eq!(stat["tenants"], json!({"a": of_a}));

    // What is leased stays.
    let none = json!({"tenants": {"a": {"bytes_freed": 0}}});
    assert_eq!(document(&["gc", "--json", "--tenant", "a"], &path), none);
    drop(leases);
    let freed = || document(&["gc", "--json", "--tenant", "a"], &path);
    while freed() == none {}
    assert_eq!(
        document(&["stat", "--json"], &path)["tenants"]["a"]["reclaimed"],
        2
    );
    assert_eq!(
        skep(&["gc"], &path).1,
        "tenant `general`: 0 B freed\ntenant `a`: 0 B freed\n"
    );

    assert_eq!(daemon.stop(Signal::TERM), Some(0));
    let mut last = String::new();
    daemon.output.read_line(&mut last).expect("a line");
    assert_eq!(last, "received SIGTERM, stopping\n");
    assert!(!socket.exists());
}

#[test]
fn a_killed_daemon_is_followed_by_the_next_but_a_living_one_is_not() {
    let (_directory, path) = place();
    let mut first = Daemon::start(&path, "0");
    let (fine, _, errors) = skep(&["serve"], &path);
    assert!(!fine);
    let socket = Tenant::GENERAL.socket(&path);
    assert_eq!(
        errors,
        format!(
            "error: cannot serve at `{}`: a daemon serves there already\n",
            socket.display()
        )
    );
    let leases = leases(&path);
    assert_eq!(first.stop(Signal::KILL), None);
    assert!(socket.exists());
    let (fine, _, errors) = skep(&["stat"], &path);
    assert!(!fine);
    assert!(
        errors.ends_with("is `skep store serve` running?\n"),
        "{errors}"
    );
    let mut second = Daemon::start(&path, "600");
    // The leases come back by themselves.
    while document(&["stat", "--json"], &path)["total"]["leases"] != 4 {}
    assert_eq!(document(&["stat", "--json"], &path)["total"]["segments"], 1);
    assert!(leases.iter().all(|lease| *lease.bytes(0) == [7; 24]));
    assert_eq!(second.stop(Signal::INT), Some(0));
}

#[test]
fn what_is_not_a_store_is_said() {
    let (_directory, path) = place();
    let (fine, _, errors) = skep(&["stat"], &path);
    assert!(!fine);
    assert!(
        errors.starts_with(&format!("error: no tensor store at `{}`", path.display())),
        "{errors}"
    );
    std::fs::create_dir(&path).expect("a directory");
    let (_, _, errors) = skep(&["ls"], &path);
    assert!(errors.contains("there is no socket in it"), "{errors}");
    drop(UnixListener::bind(Tenant::GENERAL.socket(&path)).expect("a socket"));
    let (_, _, errors) = skep(&["gc"], &path);
    assert!(errors.contains("Connection refused"), "{errors}");
    let (_, _, errors) = skep(&["stat", "--tenant", "a/b"], &path);
    assert!(errors.contains("invalid tenant `a/b`"), "{errors}");
}
