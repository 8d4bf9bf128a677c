"""The metrics text, read."""

import re
import time

from http_client import request
from server import DEADLINE_S

LINE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)$")


def metrics(server):
    """{(name, labels as a frozen set): value}"""
    answer = request(server.metrics, "GET", "/metrics")
    assert answer.status == 200
    values = {}
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, labels, value = LINE.match(line).groups("")
            values[name, frozenset(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels))] = float(value)
    return values


def metric(server, name, model="m", version="1", **labels):
    return metrics(server)[f"nv_inference_{name}", frozenset({"model": model, "version": version, **labels}.items())]


def wait_metric(server, name, wanted, **labels):
    """Waits until a metric's value is as wanted; each look is a request, so this is no busy loop."""
    deadline = time.monotonic() + DEADLINE_S
    while not wanted(value := metrics(server)[name, frozenset(labels.items())]):
        assert time.monotonic() < deadline, f"{name} is {value}"
    return value


def wait_pending(server, model, count):
    """Waits until so many requests wait for an instance."""
    name = "nv_inference_pending_request_count"
    wait_metric(server, name, lambda pending: pending == count, model=model, version="1")
