"""docs/protocol.md against the binary: every route and call that it names is there, and answered as it says."""

import re

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from http_client import request
from server import ROOT, Server

PAGE = (ROOT / "docs/protocol.md").read_text()
SERVED = PAGE.split("## Served")[1].split("\n## ")[0]
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in SERVED.splitlines() if line.startswith("| ")]


def routes(cell):
    """Methods and paths out of a cell; a path without a method is of the last one, and `...` the path before it."""
    methods, last = [], None
    for code in re.findall(r"`([^`]+)`", cell):
        method, _, path = code.rpartition(" ")
        if code.isupper() and "/" not in code:
            methods.append(code)
            continue
        methods = [*(methods if last is None else []), method] if method else methods
        path = path.replace("...", last.rsplit("/", 1)[0] if last else "")
        last = path
        for version in ("", "/versions/1"):
            whole = path.replace("[/versions/V]", version).replace("/M", "/addsub")
            yield from ((method, whole) for method in methods)


HTTP = sorted({route for row in ROWS for route in routes(row[1]) if route[1].startswith("/")})
CALLS = sorted({call for row in ROWS for call in re.findall(r"`([A-Z]\w+)`", row[2])})


@pytest.fixture(scope="module")
def server(simple_repository):
    """With what the page says that a flag enables."""
    with Server(simple_repository, "--allow-client-shm=true") as server:
        yield server


def test_the_table_is_read():
    assert len(HTTP) >= 20 and ("POST", "/v2/logging") in HTTP and ("GET", "/v2/logging") in HTTP, HTTP
    assert ("POST", "/v2/models/addsub/versions/1/generate_stream") in HTTP, HTTP
    assert len(CALLS) >= 12, CALLS


@pytest.mark.parametrize(("method", "path"), HTTP)
def test_each_route_of_the_table_is_there(server, method, path):
    # An empty body is wrong where there is a body to be read, which only a route that is there says.
    assert request(server.http, method, path, b"" if method == "POST" else None).status not in (404, 405, 501)


@pytest.mark.parametrize("call", CALLS)
def test_each_call_of_the_table_is_there(server, call):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        if call == "ModelStreamInfer":
            assert list(stub.ModelStreamInfer(iter([]))) == []
            return
        try:
            getattr(stub, call)(getattr(pb, f"{call}Request")())
        except grpc.RpcError as error:
            assert error.code() is not grpc.StatusCode.UNIMPLEMENTED
