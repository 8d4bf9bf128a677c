//! Tries what is out of a worker's reach, each time on a new thread, whose rules end with it. Without Landlock nothing is refused.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    net::{TcpListener, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            fs::symlink,
            net::{SocketAddr, UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::{
    process::{Pid, test_kill_process},
    thread::set_no_new_privs,
};
use tempfile::TempDir;

use super::*;
use crate::{
    message::{BakeTask, FormFiles, WeightLocations},
    worker::landlock::{restrict, version},
};

/// Whether this kernel has Landlock in at least this version.
fn since(first: u32) -> bool {
    version().is_some_and(|version| version >= first)
}

/// Runs `body` on a thread that can reach no more than this.
fn under<T: Send>(reach: &Reach, body: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            set_no_new_privs(true).expect("no new privileges");
            let _held = restrict(reach).expect("restricted");
            body()
        });
        thread.join().expect("a thread that ends by itself")
    })
}

fn refused<T>(outcome: io::Result<T>) -> bool {
    outcome.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
}

/// What the cache has of model `m`.
const OWN_FORM: [&str; 2] = ["cache/v1/models/m/graph", "cache/v1/tensors/00/m"];

/// A repository of two models, a cache with a form of each and one of a tenant, and other files.
struct Fixture {
    directory: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let node = Self {
            directory: tempfile::tempdir().expect("directory"),
        };
        let directories = "m/1/sub n/1 cache/v1/tmp/bake-m/tensors cache/v1/tmp/bake-n cache/v1/models/m \
            cache/v1/models/n cache/v1/tensors/00 cache/v1/stamps cache/v1/tenants/t/v1/models library aside";
        for directory in directories.split(' ') {
            fs::create_dir_all(node.path(directory)).expect("directory");
        }
        let files = "m/1/model.onnx m/1/sub/data n/1/model.onnx library/lib.so.1 library/libother.so library/notes \
            cache/v1/models/m/graph cache/v1/models/n/graph cache/v1/tensors/00/m cache/v1/tensors/00/n \
            cache/v1/tenants/t/v1/models/graph cache/v1/tmp/bake-n/graph cache/v1/secret aside/weights aside/secret mine";
        for file in files.split_whitespace() {
            fs::write(node.path(file), file).expect("file");
        }
        symlink(node.path("aside/weights"), node.path("m/1/weights")).expect("link");
        symlink(node.path("aside"), node.path("m/1/all")).expect("link");
        symlink(node.path("library/lib.so.1"), node.path("lib.so")).expect("link");
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the worker of model `m` can reach.
    fn reach(&self, bakes: bool) -> Reach {
        let bytes = |name| self.path(name).as_os_str().as_bytes().to_vec();
        of(&LoadTask {
            backend: "embedded".to_owned(),
            library: Some(bytes("lib.so")),
            allocator: None,
            model: "m".to_owned(),
            path: bytes("m/1/model.onnx"),
            weights: (!bakes).then(|| WeightLocations {
                directory: bytes("cache"),
                form: (!bakes).then(|| FormFiles {
                    key: [0; 32],
                    files: OWN_FORM.map(bytes).to_vec(),
                }),
                budget_bytes: 0,
                random_order: false,
            }),
            bake: bakes.then(|| BakeTask {
                directory: bytes("cache/v1/tmp/bake-m"),
                budget_bytes: 0,
                behind: None,
            }),
            ask: false,
            threads: 1,
            intra_op_threads: None,
            inter_op_threads: None,
            config: Vec::new(),
        })
    }
}

/// Another process of the same user, until this is dropped.
struct Other(Child);

impl Other {
    fn start() -> Self {
        let mut command = Command::new("cat");
        let command = command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().expect("another process"))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().expect("its input has ended");
    }
}

#[test]
fn other_processes_cannot_be_seen() {
    let (node, other) = (Fixture::new(), Other::start());
    for bakes in [false, true] {
        let reach = node.reach(bakes);
        for name in ["environ", "maps", "status", "cmdline"] {
            let others = format!("/proc/{}/{name}", other.0.id());
            assert!(File::open(&others).is_ok(), "{others}");
            let opened = under(&reach, || refused(File::open(&others)));
            assert_eq!(opened, since(2), "{others}");
            let own = format!("/proc/self/{name}");
            under(&reach, || File::open(&own)).expect("its own");
        }
        assert_eq!(under(&reach, || refused(fs::read_dir("/proc"))), since(2));
    }
}

#[test]
fn a_worker_reads_its_model_and_no_other_file_of_the_user() {
    let node = Fixture::new();
    for bakes in [false, true] {
        let reach = node.reach(bakes);
        let read = |name: &str| {
            let path = node.path(name);
            under(&reach, || fs::read(&path).map(|bytes| bytes.len()))
        };
        for name in [
            "m/1/model.onnx",
            "m/1/sub/data",
            "m/1/weights",
            "library/lib.so.1",
            "library/libother.so",
        ] {
            assert!(read(name).is_ok(), "{name}");
        }
        // A process that bakes sees no form, not even an earlier one of its model.
        for name in OWN_FORM {
            assert_eq!(refused(read(name)), bakes && since(2), "{name}");
        }
        for name in [
            "cache/v1/models/n/graph",
            "cache/v1/tmp/bake-n/graph",
            "n/1/model.onnx",
            "aside/secret",
            "m/1/all/secret",
            "library/notes",
            "mine",
        ] {
            assert_eq!(refused(read(name)), since(2), "{name}");
        }
        for name in ["", "m", "n/1", "aside"] {
            let path = node.path(name);
            let listed = under(&reach, || refused(fs::read_dir(&path)));
            assert_eq!(listed, since(2), "{name}");
        }
    }
}

#[test]
fn libraries_find_what_they_look_up() {
    let reach = Fixture::new().reach(false);
    for path in [
        "/proc/cpuinfo",
        "/proc/meminfo",
        "/proc/self/maps",
        "/proc/self/exe",
        "/etc/ld.so.cache",
    ] {
        let path = Path::new(path);
        let opened = under(&reach, || File::open(path).is_ok());
        assert_eq!(opened, path.exists(), "{}", path.display());
    }
    // The C library, wherever this system has it.
    let maps = fs::read_to_string("/proc/self/maps").expect("maps");
    let library = maps
        .split_whitespace()
        .find(|word| word.contains("/libc.so"));
    let library = library.expect("a C library");
    under(&reach, || File::open(library)).expect("readable");
}

#[test]
fn a_process_that_bakes_writes_into_its_directory_alone() {
    let node = Fixture::new();
    let reach = node.reach(true);
    let (made, place) = (
        node.path("cache/v1/tmp/bake-m/made"),
        node.path("cache/v1/tmp/bake-m/tensors/made"),
    );
    let inside = || -> io::Result<()> {
        fs::create_dir(&made)?;
        fs::write(made.join("graph"), "new")?;
        fs::write(made.join("graph"), "newer")?;
        fs::rename(&made, &place)?;
        fs::remove_file(place.join("graph"))?;
        fs::remove_dir(&place)
    };
    under(&reach, inside).expect("in its directory");

    let (secret, fresh) = (node.path("aside/secret"), node.path("aside/fresh"));
    let (kept, model) = (node.path(OWN_FORM[0]), node.path("m/1/model.onnx"));
    let tried = under(&reach, || {
        [
            refused(File::create(&fresh)),
            refused(fs::create_dir(&fresh)),
            refused(File::options().append(true).open(&secret)),
            refused(File::options().write(true).truncate(true).open(&model)),
            refused(fs::rename(&kept, &fresh)),
            refused(File::create(node.path("cache/v1/models/fresh"))),
            refused(File::options().append(true).open(&kept)),
            fs::hard_link(&secret, &made).is_err(),
            refused(symlink(&secret, &made)),
            refused(fs::remove_file(&secret)),
        ]
    });
    // Without Landlock some of these affect each other.
    if since(2) {
        assert_eq!(tried, [true; 10]);
        assert_eq!(fs::read(&secret).expect("there"), b"aside/secret");
    }
}

/// What a hostile model would try, if it knows everything about the cache.
#[test]
fn a_worker_reads_only_its_own_form_of_the_cache() {
    let node = Fixture::new();
    let reach = node.reach(false);
    let at = |name: &str| node.path(name);
    let tried = under(&reach, || {
        let read = |name: &str| refused(fs::read(at(name)));
        let listed = |name: &str| refused(fs::read_dir(at(name)));
        let own = at(OWN_FORM[0]);
        let mut tried = vec![
            read("cache/v1/models/n/graph"),
            read("cache/v1/tensors/00/n"),
            read("cache/v1/tenants/t/v1/models/graph"),
            // Through a directory that it may read.
            read("m/1/../../cache/v1/tensors/00/n"),
            refused(File::options().append(true).open(&own)),
            refused(File::options().write(true).truncate(true).open(&own)),
            refused(fs::remove_file(&own)),
            refused(fs::rename(&own, at("cache/v1/models/n/graph"))),
            fs::hard_link(at("cache/v1/tensors/00/n"), at("m/1/mine")).is_err(),
            refused(symlink(at("cache/v1/tensors/00/n"), at("m/1/mine"))),
            refused(fs::create_dir(at("cache/v1/models/fresh"))),
            // Records that others trust: of verified tensors, and of a model file's digest.
            refused(fs::write(at("cache/v1/models/m/seen"), "forged")),
            refused(fs::write(at("cache/v1/stamps/0"), "forged")),
            refused(fs::write(at("cache/v1/secret"), "forged")),
            read("cache/v1/secret"),
        ];
        let directories = "cache cache/v1 cache/v1/models cache/v1/models/m cache/v1/models/n cache/v1/tensors \
            cache/v1/tensors/00 cache/v1/tmp cache/v1/tenants cache/v1/tenants/t";
        tried.extend(directories.split_whitespace().map(listed));
        let own = OWN_FORM.map(|name| fs::read(at(name)).is_ok());
        (tried, own)
    });
    // Without Landlock some of these affect each other.
    if since(2) {
        assert_eq!(tried, (vec![true; 25], [true; 2]));
    }
}

#[test]
fn a_process_that_loads_writes_nowhere() {
    let node = Fixture::new();
    let reach = node.reach(false);
    for name in [
        "cache/v1/models/m/graph",
        "cache/v1/fresh",
        "m/1/fresh",
        "aside/fresh",
    ] {
        let path = node.path(name);
        assert_eq!(
            under(&reach, || refused(File::create(&path))),
            since(2),
            "{name}"
        );
    }
}

#[test]
fn other_processes_cannot_be_signalled() {
    let (reach, other) = (Fixture::new().reach(false), Other::start());
    let pid = Pid::from_child(&other.0);
    assert!(test_kill_process(pid).is_ok());
    let signal = under(&reach, || {
        refused(test_kill_process(pid).map_err(Into::into))
    });
    assert_eq!(signal, since(6));

    let name = format!("skep-reach-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("address");
    let _listener = UnixListener::bind_addr(&address).expect("listener");
    assert!(UnixStream::connect_addr(&address).is_ok());
    let socket = under(&reach, || refused(UnixStream::connect_addr(&address)));
    assert_eq!(socket, since(6));

    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address");
    assert!(TcpStream::connect(address).is_ok());
    let network = under(&reach, || {
        [
            refused(TcpStream::connect(address)),
            refused(TcpListener::bind("127.0.0.1:0")),
        ]
    });
    assert_eq!(network, [since(4); 2]);
}
