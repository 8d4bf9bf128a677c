"""tritonclient, unmodified: every call of its HTTP and gRPC clients that is served, plain and asyncio."""

import asyncio
import queue

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from http_client import get
from repository import Repository
from server import DEADLINE_S, Server

FIRST = np.arange(32, dtype=np.int32).reshape(2, 16)
SECOND = np.full((2, 16), 3, dtype=np.int32)
MODULES = {
    "http": (tritonclient.http, tritonclient.http),
    "grpc": (tritonclient.grpc, tritonclient.grpc),
    "http.aio": (tritonclient.http, tritonclient.http.aio),
    "grpc.aio": (tritonclient.grpc, tritonclient.grpc.aio),
}


class Client:
    """One of the four clients, called alike: asyncio's calls are waited for."""

    def __init__(self, kind, server):
        self.types, self.module = MODULES[kind]
        self.is_async = kind.endswith("aio")
        self.is_grpc = kind.startswith("grpc")
        self.loop = asyncio.new_event_loop() if self.is_async else None
        self.client = self._wait(self._make(server.grpc if self.is_grpc else server.http))

    async def _make_async(self, address):
        return self.module.InferenceServerClient(address)

    def _make(self, address):
        return self._make_async(address) if self.is_async else self.module.InferenceServerClient(address)

    def _wait(self, result):
        return self.loop.run_until_complete(result) if asyncio.iscoroutine(result) else result

    def __getattr__(self, method):
        """A call; a message of gRPC is taken as the dictionary that HTTP gives."""

        def call(*args, **kwargs):
            if self.is_grpc and method.startswith("get_"):
                kwargs["as_json"] = True
            return self._wait(getattr(self.client, method)(*args, **kwargs))

        return call

    def close(self):
        self._wait(self.client.close())
        if self.loop:
            self.loop.close()

    def inputs(self, binary=True):
        tensors = []
        for name, data in (("INPUT0", FIRST), ("INPUT1", SECOND)):
            tensor = self.types.InferInput(name, data.shape, "INT32")
            tensor.set_data_from_numpy(data) if self.is_grpc else tensor.set_data_from_numpy(data, binary_data=binary)
            tensors.append(tensor)
        return tensors

    def output(self, name, binary=True):
        requested = self.types.InferRequestedOutput
        return requested(name) if self.is_grpc else requested(name, binary_data=binary)


@pytest.fixture(params=MODULES)
def client(request, simple):
    client = Client(request.param, simple)
    yield client
    client.close()


@pytest.fixture(params=MODULES)
def controlled(request, tmp_path):
    """A client of a server in mode explicit, with `addsub` on disk and nothing loaded."""
    repository = Repository(tmp_path)
    repository.generate("addsub-int32", "addsub")
    repository.onnx("broken", b"no ONNX")
    with Server(repository, "--model-control-mode=explicit") as server:
        client = Client(request.param, server)
        client.server = server
        yield client
        client.close()


def test_h1_g1_health(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("addsub")
    assert client.is_model_ready("addsub", "1")
    assert not client.is_model_ready("addsub", "2")
    assert not client.is_model_ready("nosuch")


def test_h2_g1_metadata(client):
    assert "statistics" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("addsub")
    assert (metadata["name"], metadata["versions"]) == ("addsub", ["1"])
    assert [i["name"] for i in metadata["inputs"]] == ["INPUT0", "INPUT1"]
    assert [int(dim) for dim in metadata["outputs"][0]["shape"]] == [-1, 16]


def test_h4_g16_config(client):
    config = client.get_model_config("digits", "1")
    config = config.get("config", config)
    assert (config["name"], config["max_batch_size"]) == ("digits", 8)
    assert [int(dim) for dim in config["input"][0]["dims"]] == [1, 8, 8]
    assert config["output"][0]["label_filename"] == "labels.txt"


@pytest.mark.parametrize("binary", [True, False])
def test_h5_h10_g2_infer(client, binary):
    outputs = [client.output("OUTPUT1", binary), client.output("OUTPUT0", binary)]
    result = client.infer("addsub", client.inputs(binary), outputs=outputs, request_id="my id")
    assert np.array_equal(result.as_numpy("OUTPUT0"), FIRST + SECOND)
    assert np.array_equal(result.as_numpy("OUTPUT1"), FIRST - SECOND)
    answer = result.get_response(as_json=True) if client.is_grpc else result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("my id", "addsub", "1")
    assert [o["name"] for o in answer["outputs"]] == ["OUTPUT1", "OUTPUT0"]


def test_h5_infer_all_outputs_of_a_version(client):
    result = client.infer("addsub", client.inputs(), model_version="1")
    assert np.array_equal(result.as_numpy("OUTPUT0"), FIRST + SECOND)
    assert np.array_equal(result.as_numpy("OUTPUT1"), FIRST - SECOND)
    assert result.as_numpy("OUTPUT2") is None


def test_h12_g7_parameters_and_timeouts(client):
    parameters = {"mine": "text", "number": 3, "flag": True}
    result = client.infer("addsub", client.inputs(), parameters=parameters, priority=1, timeout=10_000_000)
    assert np.array_equal(result.as_numpy("OUTPUT0"), FIRST + SECOND)


def test_h15_t1_statistics(client):
    before = client.get_inference_statistics("addsub", "1")["model_stats"][0]
    client.infer("addsub", client.inputs())
    after = client.get_inference_statistics("addsub")["model_stats"][0]
    assert (after["name"], after["version"]) == ("addsub", "1")
    assert int(after["inference_count"]) - int(before.get("inference_count", 0)) == 2
    assert int(after["execution_count"]) - int(before.get("execution_count", 0)) == 1
    assert {s["name"] for s in client.get_inference_statistics()["model_stats"]} == {"addsub", "digits"}


def test_h16_r14_index(client):
    index = client.get_model_repository_index()
    index = index["models"] if client.is_grpc else index
    assert sorted((m["name"], m["version"], m["state"]) for m in index) == [
        ("addsub", "1", "READY"),
        ("digits", "1", "READY"),
    ]


def test_r5_load_and_unload_are_refused_in_mode_none(client):
    for call in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException) as caught:
            call("addsub")
        assert caught.value.message() == "explicit model load / unload is not allowed if polling is enabled"
        assert caught.value.status() == ("StatusCode.UNAVAILABLE" if client.is_grpc else "503")
    assert client.is_model_ready("addsub")


def test_h25_g4_errors_of_inference(client):
    short = client.types.InferInput("INPUT0", [1, 4], "INT32")
    short.set_data_from_numpy(FIRST[:1, :4])
    inputs = client.inputs()
    for model, given, status, code, text in (
        ("nosuch", inputs, "404", "NOT_FOUND", "Request for unknown model: 'nosuch' is not found"),
        ("addsub", inputs[:1], "400", "INVALID_ARGUMENT", "expected 2 inputs but got 1 inputs for model 'addsub'"),
        ("addsub", [short, inputs[1]], "400", "INVALID_ARGUMENT", "[request id: <id_unknown>]"),
    ):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, given)
        assert text in caught.value.message()
        assert caught.value.status() == (f"StatusCode.{code}" if client.is_grpc else status)
    assert client.infer("addsub", inputs).as_numpy("OUTPUT0") is not None


def test_r6_r12_r14_load_index_unload(controlled):
    def states():
        index = controlled.get_model_repository_index()
        index = index.get("models", []) if controlled.is_grpc else index
        return {m["name"]: (m.get("version"), m.get("state"), m.get("reason")) for m in index}

    assert controlled.is_server_ready()
    assert states() == {"addsub": (None, None, None), "broken": (None, None, None)}
    controlled.load_model("addsub")
    assert states()["addsub"] == ("1", "READY", None)
    assert controlled.infer("addsub", controlled.inputs()).as_numpy("OUTPUT0") is not None
    controlled.unload_model("addsub")
    assert not controlled.is_model_ready("addsub")
    while get(controlled.server, "/v2/health/live").status == 200:
        if states()["addsub"][1] != "UNLOADING":
            break
    assert states()["addsub"] == ("1", "UNAVAILABLE", "unloaded")
    with pytest.raises(InferenceServerException) as caught:
        controlled.infer("addsub", controlled.inputs())
    assert "Request for unknown model: 'addsub' has no available versions" in caught.value.message()
    controlled.load_model("addsub")
    assert controlled.is_model_ready("addsub")


def test_r6_load_errors(controlled):
    for name, text in (("broken", "not an ONNX file"), ("nosuch", "failed to load 'nosuch'")):
        with pytest.raises(InferenceServerException) as caught:
            controlled.load_model(name)
        assert name in caught.value.message() and text in caught.value.message()
    assert controlled.is_server_live()


def test_http_async_infer(simple):
    with tritonclient.http.InferenceServerClient(simple.http, concurrency=4) as client:
        inputs = Client("http", simple).inputs()
        pending = [client.async_infer("addsub", inputs) for _ in range(16)]
        for request in pending:
            assert np.array_equal(request.get_result().as_numpy("OUTPUT0"), FIRST + SECOND)


def test_grpc_async_infer(simple):
    with tritonclient.grpc.InferenceServerClient(simple.grpc) as client:
        inputs = Client("grpc", simple).inputs()
        answers = queue.Queue()
        for _ in range(16):
            client.async_infer("addsub", inputs, callback=lambda result, error: answers.put((result, error)))
        for _ in range(16):
            result, error = answers.get(timeout=DEADLINE_S)
            assert error is None
            assert np.array_equal(result.as_numpy("OUTPUT1"), FIRST - SECOND)
