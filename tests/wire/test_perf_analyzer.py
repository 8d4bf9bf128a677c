"""perf_analyzer, unmodified, out of tritonclient's wheel."""

import csv
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from http_client import get
from sequence_models import DIRECT, accumulator, config, oldest
from server import DEADLINE_S, Server

PROGRAM = Path(sys.executable).parent / "perf_analyzer"
REQUESTS = 50


def environment():
    """With the CUDA runtime of its wheel, which the program is linked to."""
    (cuda,) = Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cuda_runtime/lib")
    return {**os.environ, "LD_LIBRARY_PATH": str(cuda)}


@pytest.fixture(scope="module", autouse=True)
def libb64():
    try:
        ctypes.CDLL("libb64.so.0d")
    except OSError:
        pytest.skip("perf_analyzer needs libb64.so.0d, which `cargo xtask setup --all` installs")


def analyze(address, protocol, model, *args, expected=0):
    command = [PROGRAM, "-m", model, "-u", address, "-i", protocol, *args]
    outcome = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=2 * DEADLINE_S)
    assert outcome.returncode == expected, outcome.stdout + outcome.stderr
    return outcome.stdout + outcome.stderr


# One stable window is enough here: what is tested is the protocol, not the speed.
WINDOW = ["--measurement-mode=count_windows", f"--measurement-request-count={REQUESTS}", "-s", "999"]


@pytest.mark.parametrize("strategy", [DIRECT, oldest(8)], ids=["direct", "oldest"])
def test_a_run_of_sequences(repository, strategy):
    repository.onnx("sum", accumulator(), config=config(strategy, batch=8))
    with Server(repository) as server:
        shape = ["--sequence-length=5", "--concurrency-range=4", "--streaming", "--async"]
        report = analyze(server.grpc, "grpc", "sum", *WINDOW, *shape)
        assert "Sequence count:" in report, report
        statistics = get(server, "/v2/models/sum/stats").json["model_stats"][0]
        assert statistics["inference_count"] >= REQUESTS
        assert statistics["inference_stats"]["fail"]["count"] == 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("args", [["-b", "2"], ["-a", "--concurrency-range=2"]], ids=["batch 2", "async"])
def test_p1_p4_p6_p8_a_run_with_its_report(simple, tmp_path, protocol, args):
    table = tmp_path / "report.csv"
    before = get(simple, "/v2/models/addsub/stats").json["model_stats"][0]
    report = analyze(getattr(simple, protocol), protocol, "addsub", *WINDOW, *args, "-f", table)
    after = get(simple, "/v2/models/addsub/stats").json["model_stats"][0]
    for line in (
        "Request count:",
        "Throughput:",
        "p99 latency:",
        "Inference count:",
        "Execution count:",
        "compute infer",
    ):
        assert line in report, report
    assert "Successful request count:" in report
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] >= REQUESTS
    assert after["inference_stats"]["fail"]["count"] == 0
    (row,) = csv.DictReader(table.open())
    assert float(row["Inferences/Second"]) > 0
    assert float(row["Server Compute Infer"]) > 0


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_unknown_model_is_reported(simple, protocol):
    report = analyze(getattr(simple, protocol), protocol, "nosuch", *WINDOW, expected=99)
    assert "nosuch" in report


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_p11_tensors_in_shared_memory(simple_repository, protocol):
    with Server(simple_repository, "--allow-client-shm=true") as server:
        shared = ["--shared-memory=system", "--output-shared-memory-size=64"]
        report = analyze(getattr(server, protocol), protocol, "addsub", *WINDOW, *shared)
        assert "Throughput:" in report, report
        # It unregisters its regions at the end.
        assert get(server, "/v2/systemsharedmemory/status").json == []
