"""Files of the cache that somebody changed, and processes that want more than is theirs."""

import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
from pathlib import Path

import models
from baking import LOAD_S, config, load, right, unload
from case import Case
from process import MIB
from server import BINARY, ROOT
from stage import HANG_S, Setup
from tools import answered, floats, infer, post, remove_tree, status

SIZE = MIB // 2
WIDTH = SIZE // 1024
A, B = 0.5, 0.25
FLAGS = ("--model-control-mode=explicit", "--load-model=neighbour", "--weight-cache={directory}/forms",
         "--session-keep-alive-secs=0", "--store-keep-alive-secs=0", "--exit-timeout-secs=2")
PEAK_MIB = 96


def two_models(process):
    def models_of(repository):
        for name, value in (("a", A), ("b", B)):
            repository.onnx(name, models.constant(value, SIZE), config=config("onnxruntime", process))

    return models_of


def bake(directory):
    command = [BINARY, "bake", f"--weight-cache={directory / 'forms'}", directory / "models" / "a", directory / "models" / "b"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return {}


def bake_without_store(directory):
    """The server cannot make memory files of more than 1 MiB, so that weights stay mapped from the cache's files."""
    bake(directory)
    return {"prefix": ["sh", "-c", "trap '' XFSZ; ulimit -c 0; ulimit -f 2048; exec \"$@\"", "sh"]}


def forms(stage):
    """The directories of the forms."""
    found = sorted(path.parent for path in (stage.directory / "forms").rglob("manifest"))
    assert len(found) == 2, found
    return found


def tensors(stage):
    """Files of tensors: large ones."""
    return [path for path in (stage.directory / "forms").rglob("*")
            if path.is_file() and not path.is_symlink() and path.stat().st_size >= MIB and "models" not in path.parts[-3:]]


def both_right(stage, wrong_is_told=False):
    """Loads both models and asks them: a right answer, or an error; then once more after a load, which is right."""
    told = []
    for name, value in (("a", A), ("b", B)):
        answer = post(stage.http, f"/v2/repository/models/{name}/load", hang_s=LOAD_S)
        told.append(f"load {answered(answer)}")
        for _ in range(3):
            got = infer(stage, name, [floats("x", (1, WIDTH))])
            stage.must_live()
            answered(got)
            if got is not None and got.status == 200 and got.json["outputs"][0]["data"] != [WIDTH * value]:
                assert wrong_is_told, f"model `{name}` answers {got.json['outputs'][0]['data']}, not {[WIDTH * value]}"
                told.append("a wrong answer")
            else:
                told.append(f"run {status(got)}")
        answered(post(stage.http, f"/v2/repository/models/{name}/unload"))
    if not wrong_is_told:
        for name, value in (("a", A), ("b", B)):
            load(stage, name)
            right(stage, name, SIZE, value)
            unload(stage, name)
    return "; ".join(told)


def changed(change, **more):
    def attack(stage):
        change(stage)
        return both_right(stage, **more)

    return attack


def swap(stage):
    """Each form lies under the other's key."""
    one, other = forms(stage)
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    # In place: the file stays the same one.
    with open(path, "r+b") as file:
        file.write(data)


def stamp(path):
    told = path.stat()
    times = (divmod(ns, 10**9) for ns in (told.st_mtime_ns, told.st_ctime_ns))
    return ":".join([f"{told.st_dev}:{told.st_ino}:{told.st_size}", *(f"{s}.{ns}" for s, ns in times)])


def forged_seen(stage):
    """Tensors that are changed, and notes beside both forms that say they were found whole as they are now."""
    notes = []
    for path in tensors(stage):
        times = path.stat()
        flip(path, path.stat().st_size // 2)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        notes.append(f"{path.name} {stamp(path)}\n")
    for form in forms(stage):
        (form / "seen").write_text("".join(notes))


def forged_stamps(stage):
    """What is remembered of the content of `a` becomes that of `b`."""
    found = [path for path in (stage.directory / "forms").rglob("*") if path.parent.name == "stamps" and path.is_file()]
    if len(found) == 2:
        one, other = (path.read_text().split() for path in found)
        found[0].write_text(found[0].read_text().replace(one[-1], other[-1]))
        found[1].write_text(found[1].read_text().replace(other[-1], one[-1]))


def garbage_notes(stage):
    """`seen` and stamps of random bytes, and of 1 GiB of nothing."""
    for path in (stage.directory / "forms").rglob("*"):
        if path.is_file() and path.parent.name == "stamps":
            path.write_bytes(os.urandom(4096))
    one, other = forms(stage)
    (one / "seen").write_bytes(os.urandom(4096))
    with open(other / "seen", "wb") as file:
        file.truncate(1 << 30)


def manifests_flipped(stage):
    """One bit of each manifest in turn, at twelve places; both models each time."""
    told = []
    for place in range(12):
        for form in forms(stage):
            path = form / "manifest"
            flip(path, place * path.stat().st_size // 12)
        told.append(both_right(stage))
        # Made again meanwhile, or left out of use.
        remove_tree(stage.directory / "forms")
        bake(stage.directory)
    return f"{len(told)} right"


def of_manifests(change):
    def attack(stage):
        for form in forms(stage):
            path = form / "manifest"
            path.unlink()
            change(path)

    return attack


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(8 << 30)


def other_graphs(stage):
    """The graph of each form answers something else, and is a valid model."""
    hostile = models.constant(666.0, 1024 * 4).SerializeToString()
    for form in forms(stage):
        for path in form.iterdir():
            if path.name == "graph":
                path.write_bytes(hostile)


def huge_graphs(stage):
    """Graphs that are nothing but depth, or 8 GiB long."""
    one, other = forms(stage)
    (one / "graph").write_bytes(b"\x3a\xff\xff\xff\x7f" * 100_000)
    sparse(other / "graph")


def linked(target):
    def change(stage):
        for path in tensors(stage):
            path.unlink()
            path.symlink_to(target)

    return change


def pipes(stage):
    for path in tensors(stage):
        path.unlink()
        os.mkfifo(path)


def one_tensor_for_the_other(stage):
    """The weights of `a` lie under the digest of `b`, with its size and times."""
    found = [path for path in tensors(stage) if path.stat().st_size >= 4 * SIZE]
    for path, other in zip(found, found[1:]):
        times = other.stat()
        data = path.read_bytes()
        with open(other, "r+b") as file:
            file.write(data)
        os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))


def junk(stage):
    """Names that are no keys, directories in files' places, 5,000 of them, a loop of links."""
    for inner in ("models", "tensors", "stamps", "making", "tmp"):
        for directory in (stage.directory / "forms").rglob(inner):
            if directory.is_dir():
                for number in range(1000):
                    (directory / f"junk{number}").mkdir(exist_ok=True)
                (directory / "loop").symlink_to(directory)
                (directory / ("x" * 200)).write_bytes(b"")


def mapped_files(stage, pid):
    """The cache's files that a process has mapped."""
    maps = {line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "/" in line}
    return {name for name in maps if name.startswith(str(stage.directory / "forms"))}


def truncated_in_store(stage):
    """Files of tensors are cut to nothing while models answer that have them from the store, and not from the files any more."""
    for name, value in (("a", A), ("b", B)):
        load(stage, name)
        right(stage, name, SIZE, value)
    moved = [f"models/{name}/1/model.onnx` are in the tensor store" for name in "ab"]
    stage.wait(lambda: all(any(text in line for line in stage.server.lines) for text in moved), "the store has the tensors")
    for path in tensors(stage):
        os.truncate(path, 0)
    told = []
    for name, value in (("a", A), ("b", B)):
        got = infer(stage, name, [floats("x", (1, WIDTH))])
        stage.must_live()
        told.append(answered(got))
        if got is not None and got.status == 200:
            assert got.json["outputs"][0]["data"] == [WIDTH * value], got.body[:300]
        answered(post(stage.http, f"/v2/repository/models/{name}/unload"))
    return told


def changed_while_mapped(stage):
    """The same, but other bytes in place of none."""
    for name, value in (("a", A), ("b", B)):
        load(stage, name)
        right(stage, name, SIZE, value)
    for path in tensors(stage):
        with open(path, "r+b") as file:
            file.write(b"\x7f" * path.stat().st_size)
    told = []
    for name in ("a", "b"):
        got = infer(stage, name, [floats("x", (1, WIDTH))])
        stage.must_live()
        answered(got)
        told.append(got.json["outputs"][0]["data"] if got is not None and got.status == 200 else status(got))
        answered(post(stage.http, f"/v2/repository/models/{name}/unload"))
    return told


def model_cut_short(stage):
    """The model's own file is cut to nothing while the model answers."""
    for name, value in (("a", A), ("b", B)):
        load(stage, name)
        right(stage, name, SIZE, value)
        os.truncate(stage.repository.path / name / "1" / "model.onnx", 0)
    told = []
    for name, value in (("a", A), ("b", B)):
        got = infer(stage, name, [floats("x", (1, WIDTH))])
        stage.must_live()
        told.append(answered(got))
        answered(post(stage.http, f"/v2/repository/models/{name}/unload"))
    return told


def what_workers_map(stage):
    """Workers of two models: neither has a file of the cache open, nor one of the other's mapped."""
    for name, value in (("a", A), ("b", B)):
        load(stage, name)
        right(stage, name, SIZE, value)
    cache = str(stage.directory / "forms")
    pids = stage.workers()
    assert len(pids) == 2, pids
    mapped = []
    for pid in pids:
        opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        assert not [name for name in opened if name.startswith(cache)], opened
        mapped.append(mapped_files(stage, pid))
    assert not mapped[0] & mapped[1], mapped
    for name in ("a", "b"):
        unload(stage, name)
    return f"{len(mapped[0])} and {len(mapped[1])} files of the cache are mapped"


def with_daemon(directory):
    """A node's tensor store, which the stage's server uses."""
    bake(directory)
    command = [BINARY, "store", "serve", "--directory", directory / "store"]
    daemon = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert daemon.stdout.readline().startswith("store of tenant `general` at ")
    return {"beside": daemon, "flags": ("--store={directory}/store",)}


def store_of(stage):
    return str(stage.directory / "store" / "store.sock")


def kind_of(path):
    """Whether the store speaks over a stream or in packets."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as probe:
        try:
            probe.connect(path)
            return socket.SOCK_SEQPACKET
        except OSError:
            return socket.SOCK_STREAM


def store_client(path, kind):
    client = socket.socket(socket.AF_UNIX, kind)
    client.settimeout(HANG_S)
    with contextlib.suppress(OSError):
        client.connect(path)
    return client


def store_garbage(stage):
    """Clients of the node's store that send what is no message, while models are loaded through it."""
    kind = kind_of(store_of(stage))
    for data in (os.urandom(4096), b"\0" * 65536, b"\xff" * 65536, struct.pack("<Q", 2**63) + b"x" * 100,
                 b"GET / HTTP/1.1\r\n\r\n"):
        with contextlib.closing(store_client(store_of(stage), kind)) as client:
            with contextlib.suppress(ConnectionError):
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
    told = both_right(stage)
    assert stage.beside.poll() is None, "the store's daemon has ended"
    return told


def store_crowd(stage):
    """More connections to the node's store than it takes, while models are loaded through it."""
    kind = kind_of(store_of(stage))
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(contextlib.closing(store_client(store_of(stage), kind)))
        told = both_right(stage)
        assert stage.beside.poll() is None, "the store's daemon has ended"
        return told


def store_stopped(stage):
    """A node's store that got SIGSTOP: loads do without it."""
    stage.beside.send_signal(signal.SIGSTOP)
    try:
        load(stage, "a")
        right(stage, "a", SIZE, A)
        for _ in range(20):
            stage.ask()
        answered(post(stage.http, "/v2/repository/models/a/unload", hang_s=LOAD_S))
    finally:
        stage.beside.send_signal(signal.SIGCONT)
    return "right"


def case(id, what, setup, attack, **more):
    return Case(id, "trust", what, setup, attack, **{"fresh": True, "peak_mib": PEAK_MIB, **more})


THREAD = Setup("trust-thread", two_models(False), FLAGS, prepare=bake)
WORKER = Setup("trust-worker", two_models(True), FLAGS, prepare=bake)
NO_STORE = Setup("trust-no-store", two_models(False), FLAGS, prepare=bake_without_store)
NODE_FLAGS = tuple(flag for flag in FLAGS if "store-keep" not in flag)
NODE = Setup("trust-node", two_models(False), NODE_FLAGS, prepare=with_daemon)

CASES = [
    case("form-under-another-key", "each of two forms copied over the other's key", THREAD, changed(swap)),
    case("form-under-another-key-worker", "the same, models in worker processes", WORKER, changed(swap)),
    case("seen-forged", "tensors that are changed, and notes that say they were found whole", THREAD,
         changed(forged_seen, wrong_is_told=True)),
    case("stamps-forged", "what is remembered of one model's content is the other's", THREAD,
         changed(forged_stamps, wrong_is_told=True)),
    case("notes-garbage", "notes of random bytes, and of 1 GiB", THREAD, changed(garbage_notes)),
    case("manifests-flipped", "manifests with one bit changed, at twelve places", THREAD, manifests_flipped,
         peak_mib=160),
    case("manifest-pipe", "manifests that are pipes without a writer", THREAD, changed(of_manifests(os.mkfifo))),
    case("manifest-pipe-worker", "the same, models in worker processes", WORKER, changed(of_manifests(os.mkfifo))),
    case("manifest-sparse", "manifests of 8 GiB of nothing", THREAD, changed(of_manifests(sparse))),
    case("manifest-zero", "manifests that lead to /dev/zero", THREAD,
         changed(of_manifests(lambda path: path.symlink_to("/dev/zero")))),
    case("manifest-directory", "manifests that are directories", THREAD, changed(of_manifests(lambda path: path.mkdir()))),
    case("graph-other", "graphs of forms that answer something else", THREAD, changed(other_graphs)),
    case("graph-other-worker", "the same, models in worker processes", WORKER, changed(other_graphs)),
    case("graph-huge", "graphs that are nothing but depth, or 8 GiB of nothing", THREAD, changed(huge_graphs)),
    case("tensor-zero", "tensors that lead to /dev/zero", THREAD, changed(linked("/dev/zero"))),
    case("tensor-passwd", "tensors that lead to /etc/passwd", THREAD, changed(linked("/etc/passwd"))),
    case("tensor-pipe", "tensors that are pipes without a writer", THREAD, changed(pipes)),
    case("tensor-other", "the weights of one model under the digest of the other's", THREAD, changed(one_tensor_for_the_other)),
    case("cache-junk", "thousands of files and directories in the cache that do not belong there", THREAD, changed(junk)),
    case("mapped-truncated-store", "files of a running model's weights are cut to nothing, where the store has them", THREAD,
         truncated_in_store),
    case("mapped-changed", "files of a running model's weights get other bytes", NO_STORE, changed_while_mapped),
    case("model-truncated", "the model's own file is cut to nothing while it answers", THREAD, model_cut_short),
    case("worker-maps", "what two models' workers have open and mapped", WORKER, what_workers_map),
    case("store-garbage", "clients of the node's store that send malformed messages", NODE, store_garbage),
    case("store-crowd", "1,100 connections to the node's store", NODE, store_crowd),
    case("store-stopped", "a node's store that got SIGSTOP", NODE, store_stopped),
]
