"""Devices: instances of KIND_AUTO groups are packed onto sets of CPUs, and run there."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from http_client import get, infer, post, tensor
from metrics import metrics
from process import of_threads, wait_until, workers
from repository import graph, plus
from server import Server, run

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]
MIB = 1 << 20
CPUS = sorted(os.sched_getaffinity(0))
needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="two devices need two CPUs")
GROUP = "instance_group {{ count: {count} kind: {kind} }}"
SCALES = """parameters { key: "max_instances" value { string_value: "3" } }
    instance_group { count: 1 }"""


def device(name, cpus, memory="1G"):
    return f"--device=name={name},cpus={cpus},memory={memory}"


def two():
    return device("a", CPUS[0]), device("b", CPUS[1])


def threads(pid, name):
    """The CPUs of each thread whose name ends so."""

    def at(thread):
        return (thread / "comm").read_text().strip(), sorted(os.sched_getaffinity(int(thread.name)))

    return sorted(cpus for comm, cpus in of_threads(pid, at) if comm.endswith(name))


def residency(server):
    return get(server, "/v2/skep/residency").json


def model(server, name):
    return next(row for row in residency(server)["models"] if row["name"] == name)


def taken(server):
    return {row["name"]: (row["instances"], row["cores_used"]) for row in residency(server)["devices"]}


def threaded(count, threads, kind="KIND_AUTO"):
    return f"""{GROUP.format(count=count, kind=kind)}
        parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}"""


@needs_two
def test_instances_run_on_the_cpus_of_their_device(repository):
    repository.onnx("auto", plus(1), config=threaded(2, 1))
    repository.onnx("free", plus(2), config=threaded(1, 1, "KIND_CPU"))
    with Server(repository, *two()) as server:
        assert model(server, "auto")["devices"] == {"a": 1, "b": 1}
        assert "devices" not in model(server, "free")
        assert taken(server) == {"a": (1, 1.0), "b": (1, 1.0)}
        pid = server.process.pid
        assert threads(pid, "auto_0_0") + threads(pid, "auto_0_1") == [[CPUS[0]], [CPUS[1]]]
        assert threads(pid, "free_0_0") == [CPUS]
        for _ in range(4):
            assert infer(server, "auto", ZEROS).json["outputs"][0]["data"] == [1] * 4
        rows = {row["name"]: row for row in residency(server)["devices"]}
        assert rows["a"]["cpus"] == str(CPUS[0]) and rows["a"]["cores"] == 1
        assert 0 < rows["a"]["memory_used"] < rows["a"]["memory"] == 1024 * MIB
        found = {(name, *sorted(dict(labels).items())): value for (name, labels), value in metrics(server).items()}
        assert found[("skep_device_instances", ("device", "a"))] == 1
        assert found[("skep_device_cores", ("device", "b"), ("kind", "total"))] == 1
        text = run("status", "--url", f"http://{server.http}").stdout
        assert f"device  a: CPUs {CPUS[0]}, " in text and "of 1.00 GiB in use, 1 of 1 cores, 1 instance\n" in text
        assert "2: 1 on a, 1 on b" in text


@needs_two
def test_the_threads_of_a_session_run_there_too(repository):
    repository.onnx("m", plus(1), config=threaded(1, 2))
    both = f"{CPUS[0]},{CPUS[1]}"
    with Server(repository, device("pair", both), "--weight-cache=off") as server:
        assert infer(server, "m", ZEROS).status == 200
        pool = threads(server.process.pid, "ort-pool")
        assert pool and all(cpus == CPUS[:2] for cpus in pool)
        assert taken(server) == {"pair": (1, 2.0)}
    # With a device for each CPU, each has a session, and its threads run there alone.
    repository.onnx("m", plus(1), config=threaded(2, 2))
    with Server(repository, *two(), "--weight-cache=off") as server:
        assert threads(server.process.pid, "ort-pool") == [[CPUS[0]], [CPUS[1]]]
        assert taken(server) == {"a": (1, 2.0), "b": (1, 2.0)}


@needs_two
def test_worker_processes_run_there_too(repository):
    repository.onnx("m", plus(1), config=threaded(2, 1) + ' parameters { key: "isolation" value { string_value: "process" } }')
    with Server(repository, *two()) as server:
        assert infer(server, "m", ZEROS).status == 200
        bound = sorted(sorted(os.sched_getaffinity(pid)) for pid in workers(server))
        assert bound == [[CPUS[0]], [CPUS[1]]]


def test_without_devices_nothing_is_bound(repository):
    repository.onnx("m", plus(1), config=threaded(1, 1))
    with Server(repository) as server:
        assert threads(server.process.pid, "m_0_0") == [CPUS]
        assert "devices" not in residency(server)
        assert not any(name == "skep_device_instances" for name, _ in metrics(server))


def test_a_place_is_free_once_the_model_is_gone(repository):
    repository.onnx("m", plus(1))
    with Server(repository, device("a", CPUS[0]), "--model-control-mode=explicit") as server:
        assert taken(server) == {"a": (0, 0.0)}
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert taken(server) == {"a": (2, 2.0)}
        assert post(server, "/v2/repository/models/m/unload").status == 200
        wait_until(lambda: taken(server) == {"a": (0, 0.0)}, "the place is free")


def test_new_instances_are_placed_as_well(repository):
    # More than one instance is busy: 20 ms at a time.
    repository.mock("m", SCALES, latency_us=20_000)
    with Server(repository, device("a", CPUS[0])) as server:
        assert taken(server) == {"a": (1, 0.0)}

        def grown():
            for _ in range(4):
                infer(server, "m", ZEROS)
            return taken(server)["a"][0] > 1

        wait_until(grown, "a second instance")
        row = model(server, "m")
        assert row["devices"] == {"a": row["instances"]}


def large(mebibytes):
    """`y` is `x`, beside a table of so many MiB."""
    values = np.zeros(mebibytes * MIB // 4, np.float32)
    table = helper.make_tensor("table", TensorProto.FLOAT, values.shape, values.tobytes(), raw=True)
    nodes = [
        helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "at"], ["found"]),
        helper.make_node("Add", ["x", "found"], ["y"]),
    ]
    return graph(nodes, [("x", "FP32", ("batch", 4))], [("y", "FP32", ("batch", 4))], [table])


def test_a_model_too_large_for_every_device_says_what_each_lacks(repository):
    repository.onnx("large", large(40))
    repository.onnx("small", plus(1))
    with Server(repository, device("a", CPUS[0], "32M"), "--exit-on-error=false") as server:
        assert infer(server, "small", ZEROS).status == 200
        index = post(server, "/v2/repository/index").json
        reason = next(row["reason"] for row in index if row["name"] == "large")
        first, second, hint = reason.splitlines()
        assert first.endswith("model 'large' is not placed: no device has room for it")
        assert second.startswith("  device `a` has ") and " of 32 MiB free and it needs 51 MiB: " in second
        assert second.endswith(" MiB too little") and "`--device`" in hint
        # What is not counted is served.
        config = GROUP.format(count=1, kind="KIND_CPU")
    repository.config("large", config)
    with Server(repository, device("a", CPUS[0], "32M")) as server:
        assert infer(server, "large", ZEROS).status == 200


OTHER = next(cpu for cpu in range(1024) if cpu not in CPUS)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([f"name=a,cpus={CPUS[0]},memory=1G,colour=red"], "`colour=red`: expected name=NAME,cpus=0-3,memory=8G"),
        ([f"name=a,cpus={CPUS[0]}"], "`memory` is missing"),
        ([f"name=a,cpus={CPUS[0]},memory=0"], "memory=0: expected bytes above 0"),
        ([f"name=a,cpus={CPUS[0]},memory=3G"], "the devices have 3.00 GiB of memory together, and models may hold 2.00 GiB"),
        ([f"name=a,cpus={OTHER},memory=1G"], f"this process may not use CPU {OTHER}, but "),
        ([f"name=a,cpus={CPUS[0]},memory=1G"] * 2, "two devices are named `a`"),
        ([f"name={name},cpus={CPUS[0]},memory=1G" for name in "ab"], f"`a` and `b` both have CPU {CPUS[0]}"),
    ],
)
def test_devices_that_cannot_be_are_refused(repository, flags, expected):
    repository.onnx("m", plus(1))
    devices = [part for flag in flags for part in ("--device", flag)]
    outcome = run("serve", repository, f"--memory-budget={2048 * MIB}", *devices)
    assert outcome.returncode != 0
    assert expected in outcome.stderr


def test_the_status_is_one_document(repository):
    repository.onnx("m", plus(1))
    with Server(repository, device("a", CPUS[0])) as server:
        shown = json.loads(run("status", "--url", f"http://{server.http}", "--json").stdout)
        assert shown["devices"][0]["name"] == "a"
        assert shown["models"][0]["devices"] == {"a": 2}
