"""First loads beside others, and bakings that are held up, killed, or find no room."""

import contextlib
import fcntl
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import models
from case import Case
from http_client import get
from process import MIB
from stage import HANG_S, IS_BASELINE, ONE, PROCESS, Setup
from tools import answered, floats, infer, post, remove_tree, status

# A load may bake first.
LOAD_S = 3 * HANG_S
# The model's weights; their first load has a peak of its own.
FLOATS = 12 * MIB
WEIGHTS_MIB = 4 * FLOATS // MIB
# A plain load at its peak (file, weights, packed ones), and beside it a child with weights, largest tensor and 64 MiB.
PEAK_MIB = 3 * WEIGHTS_MIB + 2 * WEIGHTS_MIB + 64 + 32
VALUE = 0.5
BACKGROUND = () if IS_BASELINE else ("--weight-bake=background",)
FLAGS = ("--model-control-mode=explicit", "--load-model=neighbour", "--weight-cache={directory}/forms", "--exit-timeout-secs=2",
         "--session-keep-alive-secs=0", "--store-keep-alive-secs=0", *BACKGROUND)


def config(backend, process):
    return f'backend: "{backend}" {ONE} max_batch_size: 4 {PROCESS if process else ""}'


def one_model(backend, process, size=FLOATS):
    def models_of(repository):
        repository.onnx("m", models.constant(VALUE, size), config=config(backend, process))

    return models_of


def right(stage, model="m", size=FLOATS, value=VALUE):
    """Asks the model: whether its answer is right."""
    width = size // 1024
    answer = infer(stage, model, [floats("x", (1, width))])
    assert answer is not None and answer.status == 200, (status(answer), answer and answer.body[:300])
    assert answer.json["outputs"][0]["data"] == [width * value], answer.body[:300]
    return 200


def load(stage, model="m"):
    answer = post(stage.http, f"/v2/repository/models/{model}/load", hang_s=LOAD_S)
    assert answer is not None and answer.status == 200, (status(answer), answer and answer.body[:300])


def unload(stage, model="m"):
    answered(post(stage.http, f"/v2/repository/models/{model}/unload"))
    stage.wait(lambda: get(stage.server, f"/v2/models/{model}/ready").status != 200, "the model is unloaded")


def manifests(stage):
    """Of the forms in the cache. Directories may go while they are looked at, which `rglob` does not bear."""
    return [directory for directory, _, files in os.walk(stage.directory / "forms") if "manifest" in files]


def baked(stage, count=1):
    stage.wait(lambda: len(manifests(stage)) >= count, "it is baked", LOAD_S)


def first_load(stage):
    load(stage)
    right(stage)
    baked(stage)
    right(stage)
    unload(stage)
    load(stage)
    right(stage)
    unload(stage)
    return "loaded, baked, loaded from its form"


def many_first_loads(stage):
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda number: load(stage, f"m{number}"), range(6)))
    for number in range(6):
        right(stage, f"m{number}", MIB, number + 1)
    baked(stage, 6)
    for number in range(6):
        right(stage, f"m{number}", MIB, number + 1)
        unload(stage, f"m{number}")
    return "all right"


def six_models(repository):
    for number in range(6):
        repository.onnx(f"m{number}", models.constant(number + 1, MIB), config=config("onnxruntime", number % 2))


@contextlib.contextmanager
def held_up(stage):
    """Whoever wants to make a form waits: another process holds the cache's lock."""
    directory = stage.directory / "forms" / "v1"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    (stage.directory / "forms").chmod(0o700)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load_beside_held_up(stage):
    """Baking cannot go on; the model answers all the same."""
    with held_up(stage):
        answer = post(stage.http, "/v2/repository/models/m/load")
        assert answer is not None and answer.status == 200, status(answer)
        right(stage)
    baked(stage)
    right(stage)
    unload(stage)
    return "answered before it was baked"


def unload_while_held_up(stage):
    with held_up(stage), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(post, stage.http, "/v2/repository/models/m/load", hang_s=LOAD_S)
        told = [answered(post(stage.http, "/v2/repository/models/m/unload"))]
        stage.ask()
    told.append(answered(loading.result()))
    answered(post(stage.http, "/v2/repository/models/m/unload"))
    return told


def stop_while_held_up(stage):
    with held_up(stage), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(answered_or_gone, stage)
        stage.wait(lambda: waits_or_loaded(stage), "the load has begun")
        stage.ask()
        stage.server.send_signal(signal.SIGTERM)
        code = stage.server.wait(12)
        assert code in (0, 1), code
        loading.result()
        return f"ended with {code}"


def answered_or_gone(stage):
    with contextlib.suppress(OSError):
        return status(post(stage.http, "/v2/repository/models/m/load", hang_s=LOAD_S))
    return "gone"


def waits_or_loaded(stage):
    """Whether a process of the server's waits for the lock, or the model is loaded without."""
    with open("/proc/locks") as locks:
        if any(" -> " in line for line in locks):
            return True
    return any("loaded model `m`" in line for line in stage.server.lines)


def kill_children(stage):
    """Each process that comes while the model is loaded and baked is killed, three of them; then it is loaded again."""
    killed = set()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(post, stage.http, "/v2/repository/models/m/load", hang_s=LOAD_S)
        deadline = time.monotonic() + HANG_S
        while len(killed) < 3 and not manifests(stage) and time.monotonic() < deadline:
            for pid in set(stage.workers()) - killed:
                killed.add(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if loading.done() and IS_BASELINE:
                break
        told = answered(loading.result())
    load(stage)
    stage.wait(lambda: answered(infer(stage, "m", [floats("x", (1, FLOATS // 1024))])) == 200, "it answers")
    right(stage)
    unload(stage)
    return f"{len(killed)} killed, the load was answered with {told}"


def cache_gone(stage):
    """The cache's directory is removed under a model, and replaced by a file."""
    load(stage)
    baked(stage)
    right(stage)
    remove_tree(stage.directory / "forms")
    right(stage)
    unload(stage)
    load(stage)
    right(stage)
    unload(stage)
    remove_tree(stage.directory / "forms")
    (stage.directory / "forms").write_text("no directory")
    load(stage)
    right(stage)
    unload(stage)
    return "right"


def no_room(directory):
    """Files of more than 1 MiB cannot be written."""
    return {"prefix": ["sh", "-c", "trap '' XFSZ; ulimit -c 0; ulimit -f 2048; exec \"$@\"", "sh"]}


def full_disk(stage):
    """Neither forms nor memory files of more than 1 MiB can be written."""
    for _ in range(3):
        load(stage)
        right(stage)
        unload(stage)
    return "right"


def no_process(stage):
    """Child processes end at once, as under a limit of their number: all that come are killed, whatever they are for."""
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(post, stage.http, "/v2/repository/models/m/load", hang_s=LOAD_S)
        while not loading.done():
            for pid in stage.workers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        told = answered(loading.result())
    stage.ask()
    return told


def case(id, what, setup, attack, **more):
    return Case(id, "baking", what, setup, attack, **{"fresh": True, "peak_mib": PEAK_MIB, **more})


def setup(name, models_of, **more):
    return Setup(f"baking-{name}", models_of, FLAGS, **more)


THREAD = setup("thread", one_model("onnxruntime", False))
WORKER = setup("worker", one_model("onnxruntime", True))
EMBEDDED = setup("embedded", one_model("embedded", False))

CASES = [
    case("first-load", f"a first load of {WEIGHTS_MIB} MiB of weights", THREAD, first_load),
    case("first-load-worker", "the same in a worker process", WORKER, first_load),
    case("first-load-embedded", "the same on the embedded engine", EMBEDDED, first_load),
    case("first-loads", "six first loads at once", setup("six", six_models), many_first_loads),
    case("bake-held-up", "a first load while another process holds the cache's lock", THREAD, load_beside_held_up),
    case("bake-held-up-worker", "the same in a worker process", WORKER, load_beside_held_up),
    case("bake-unload", "an unload while baking is held up", THREAD, unload_while_held_up),
    case("bake-stop", "SIGTERM while baking is held up", THREAD, stop_while_held_up, ends=True),
    case("bake-stop-worker", "the same in a worker process", WORKER, stop_while_held_up, ends=True),
    case("bake-killed", "processes that bake or load get SIGKILL", THREAD, kill_children),
    case("bake-killed-worker", "the same in a worker process", WORKER, kill_children),
    case("bake-killed-all", "each process that comes during a load gets SIGKILL", WORKER, no_process, comes_back=False),
    case("cache-gone", "the cache is removed under a model, and replaced by a file", THREAD, cache_gone),
    case("bake-no-room", "no room for forms", setup("no-room", one_model("onnxruntime", False), prepare=no_room), full_disk),
]
