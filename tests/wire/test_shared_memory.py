"""Clients' shared memory: regions registered by tritonclient, inputs read from them, outputs written to them, and
objects that their client shortens, removes or never had."""

import contextlib
import json
import os
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import tritonclient.utils.shared_memory as shm
from onnx import TensorProto, helper
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from http_client import get, infer, post, tensor
from metrics import wait_pending
from process import workers
from repository import Repository, graph, plus, unbatched
from server import Server

ALLOW = "--allow-client-shm=true"
OFF = "shared memory of clients is not enabled, start the server with --allow-client-shm=true"
MODULES = {"http": tritonclient.http, "grpc": tritonclient.grpc}
PAGE = os.sysconf("SC_PAGESIZE")
OBJECTS = Path("/dev/shm")
MIB = 1 << 20


# `OUTPUT0` is `INPUT0`, whatever backends are there.
STRINGS = f"""backend: "mock" {unbatched("BYTES", [3])}
parameters {{ key: "mock.output" value {{ string_value: "echo" }} }}"""


def widen():
    """`y` is `x` twice as long: an output that is larger than its input."""
    node = helper.make_node("Concat", ["x", "x"], ["y"], axis=1)
    return graph([node], [("x", "FP32", ("batch", 4))], [("y", "FP32", ("batch", 8))])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("shm") / "models")
    repository.onnx("plus", plus(1))
    repository.onnx("wide", widen())
    repository.onnx("large", plus(1, shape=("batch", MIB)))
    (repository.path / "strings/1").mkdir(parents=True)
    repository.config("strings", STRINGS)
    repository.generate("addsub-int32", "addsub")
    repository.onnx("boxed", plus(1), config='parameters { key: "isolation" value { string_value: "process" } }')
    with Server(repository, ALLOW, "--cache-config=local,size=1048576") as server:
        yield server
        assert get(server, "/v2/health/ready").status == 200


class Objects:
    """Objects in /dev/shm, made and removed by tritonclient, and their regions."""

    def __init__(self, clients):
        self.clients = clients
        self.made = []

    def make(self, byte_size):
        """An object of tritonclient; its handle and its key."""
        key = f"/skep-test-{uuid.uuid4().hex}"
        handle = shm.create_shared_memory_region(key.strip("/"), key, byte_size)
        self.made.append(handle)
        return handle, key

    def region(self, name, byte_size, values=None):
        """A registered region, with values in it."""
        handle, key = self.make(byte_size)
        if values is not None:
            shm.set_shared_memory_region(handle, [values])
        self.clients["http"].register_system_shared_memory(name, key, byte_size)
        return handle, key

    def close(self):
        self.clients["http"].unregister_system_shared_memory()
        for handle in self.made:
            shm.destroy_shared_memory_region(handle)


@pytest.fixture
def clients(server):
    clients = {
        "http": tritonclient.http.InferenceServerClient(server.http),
        "grpc": tritonclient.grpc.InferenceServerClient(server.grpc),
    }
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def objects(clients):
    objects = Objects(clients)
    yield objects
    objects.close()


@pytest.fixture(params=MODULES)
def kind(request):
    return request.param


@pytest.fixture
def client(kind, clients):
    return clients[kind]


def status(client, name=""):
    """The status of regions, alike over both protocols."""
    if isinstance(client, tritonclient.http.InferenceServerClient):
        return client.get_system_shared_memory_status(name)
    regions = client.get_system_shared_memory_status(name, as_json=True).get("regions", {})
    return [{**region, **{n: int(region.get(n, 0)) for n in ("offset", "byte_size")}} for region in regions.values()]


def refused(call, *args, **kwargs):
    """The text of a call's failure."""
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **kwargs)
    return caught.value.message()


def shared_input(kind, name, shape, datatype, region, byte_size, offset=0):
    made = MODULES[kind].InferInput(name, shape, datatype)
    made.set_shared_memory(region, byte_size, offset)
    return made


def shared_output(kind, name, region, byte_size, offset=0):
    made = MODULES[kind].InferRequestedOutput(name)
    made.set_shared_memory(region, byte_size, offset)
    return made


def sent_input(kind, name, values, datatype="FP32"):
    made = MODULES[kind].InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values)
    return made


def path_of(key):
    return OBJECTS / key.strip("/")


FOUR = np.arange(4, dtype=np.float32).reshape(1, 4)


def test_h18_regions_are_registered_shown_and_unregistered(client, objects):
    _, key = objects.make(3 * PAGE)
    assert status(client) == []
    client.register_system_shared_memory("b", key, 2 * PAGE, offset=PAGE)
    client.register_system_shared_memory("a", key.strip("/"), 16)
    b = {"name": "b", "key": key, "offset": PAGE, "byte_size": 2 * PAGE}
    a = {"name": "a", "key": key.strip("/"), "offset": 0, "byte_size": 16}
    assert sorted(status(client), key=lambda region: region["name"]) == [a, b]
    assert status(client, "b") == [b]
    assert refused(client.register_system_shared_memory, "b", key, 16) == "shared memory region 'b' already in manager"
    client.unregister_system_shared_memory("b")
    client.unregister_system_shared_memory("never")
    assert status(client) == [a]
    assert refused(status, client, "b") == "Unable to find system shared memory region: 'b'"
    client.register_system_shared_memory("b", key, 16)
    client.unregister_system_shared_memory()
    assert status(client) == []
    assert path_of(key).exists()


@pytest.mark.parametrize(
    ("byte_size", "offset", "why"),
    [
        (2 * PAGE + 1, 0, "exceed the object"),
        (PAGE + 1, PAGE, "exceed the object"),
        (1, 2 * PAGE, "exceed the object"),
        (0, 0, "byte size is 0"),
        (PAGE, 1, "is not a multiple of the page size"),
        (2**64 - 1, PAGE, "exceed the object"),
        (PAGE, 2**64 - PAGE, "exceed the object"),
    ],
)
def test_h18_registrations_beyond_the_object_are_refused(client, objects, byte_size, offset, why):
    _, key = objects.make(2 * PAGE)
    text = refused(client.register_system_shared_memory, "r", key, byte_size, offset)
    assert text.startswith("failed to register shared memory region 'r': invalid args: ") and why in text, text
    assert status(client) == []


def objects_in_use(server):
    """The objects in /dev/shm that the server and its workers have open or mapped."""
    found = []
    for pid in (server.process.pid, *workers(server)):
        found += [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if f"{OBJECTS}/" in line]
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found += [name for name in [os.readlink(descriptor)] if name.startswith(f"{OBJECTS}/")]
    return found


def test_the_server_and_its_workers_keep_nothing_where_keys_point(server):
    assert objects_in_use(server) == []


def test_h18_keys_name_objects_of_clients_only(server, client, objects, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"s" * PAGE)
    handle, key = objects.make(PAGE)
    link = OBJECTS / f"skep-test-{uuid.uuid4().hex}"
    link.symlink_to(path_of(key))
    directory = OBJECTS / f"skep-test-{uuid.uuid4().hex}"
    directory.mkdir()
    pipe = OBJECTS / f"skep-test-{uuid.uuid4().hex}"
    os.mkfifo(pipe)
    (directory / "inside").write_bytes(b"i" * PAGE)
    keys = [
        "", "/", ".", "..", "/..", "nosuch", f"..{secret}", f"/../..{secret}", str(secret), f"{directory.name}/inside",
        directory.name, link.name, pipe.name, f"/{key}", f"../shm{key}", "a" * 256, "/proc/self/mem",
        "/memfd:skep-segment", "memfd:skep-segment", "skep-segment",
        *(f"/proc/{server.process.pid}/fd/{number}" for number in range(12)),
    ]
    try:
        for name in keys:
            text = refused(client.register_system_shared_memory, "r", name, 64)
            assert text.startswith(f"Unable to open shared memory region: '{name}': "), text
            reason = text.removeprefix(f"Unable to open shared memory region: '{name}': ")
            assert not any(part in reason for part in ("/dev", "/proc", "fd", "memfd", "0x", "skep")), reason
        assert status(client) == []
    finally:
        link.unlink()
        pipe.unlink()
        (directory / "inside").unlink()
        directory.rmdir()
    shm.set_shared_memory_region(handle, [np.zeros(4)])


def test_h13_tensors_are_read_from_and_written_to_regions(kind, client, objects):
    objects.region("in", 64, FOUR)
    out, _ = objects.region("out", 64)
    answer = client.infer(
        "plus",
        [shared_input(kind, "x", [1, 4], "FP32", "in", 16)],
        outputs=[shared_output(kind, "y", "out", 40, offset=24)],
    )
    assert (shm.get_contents_as_numpy(out, np.float32, [1, 4], offset=24) == FOUR + 1).all()
    assert (shm.get_contents_as_numpy(out, np.float32, [6]) == 0).all()
    output = answer.get_output("y")
    if kind == "http":
        # perf_analyzer's client takes no parameters here without `binary_data_size`.
        assert output == {"name": "y", "datatype": "FP32", "shape": [1, 4]}
    else:
        assert (output.datatype, list(output.shape)) == ("FP32", [1, 4])
        parameters = output.parameters
        assert parameters["shared_memory_region"].string_param == "out"
        assert parameters["shared_memory_offset"].int64_param == 24
        assert parameters["shared_memory_byte_size"].int64_param == 16
        assert list(answer.get_response().raw_output_contents) == [b""]


@pytest.mark.parametrize("shared", ["INPUT0", "INPUT1"])
def test_h13_regions_are_mixed_with_tensors_in_the_request(kind, client, objects, shared):
    first = np.arange(16, dtype=np.int32).reshape(1, 16)
    second = np.full((1, 16), 3, dtype=np.int32)
    values = {"INPUT0": first, "INPUT1": second}
    objects.region("in", 256, values[shared])
    out, _ = objects.region("out", 64)
    inputs = [
        shared_input(kind, name, [1, 16], "INT32", "in", 64) if name == shared else sent_input(kind, name, data, "INT32")
        for name, data in values.items()
    ]
    outputs = [shared_output(kind, "OUTPUT0", "out", 64), MODULES[kind].InferRequestedOutput("OUTPUT1")]
    answer = client.infer("addsub", inputs, outputs=outputs)
    assert (shm.get_contents_as_numpy(out, np.int32, [1, 16]) == first + second).all()
    assert (answer.as_numpy("OUTPUT1") == first - second).all()
    # Another output as JSON over HTTP, as classes over both.
    requested = MODULES[kind].InferRequestedOutput
    classes = requested("OUTPUT1", class_count=1)
    answer = client.infer("addsub", inputs, outputs=[outputs[0], classes])
    assert answer.as_numpy("OUTPUT1").tolist() == [[b"12:15"]]
    if kind == "http":
        answer = client.infer("addsub", inputs, outputs=[outputs[0], requested("OUTPUT1", binary_data=False)])
        assert (answer.as_numpy("OUTPUT1") == first - second).all()


def test_h13_batches_and_strings(kind, client, objects):
    batch = np.arange(12, dtype=np.float32).reshape(3, 4)
    texts = np.array([b"a", b"", "größer".encode()], dtype=np.object_)
    encoded = serialize_byte_tensor(texts)
    size = len(encoded.item())
    objects.region("in", 48, batch)
    strings, key = objects.make(PAGE)
    shm.set_shared_memory_region(strings, [encoded])
    client.register_system_shared_memory("strings", key, PAGE)
    out, _ = objects.region("out", PAGE)
    client.infer(
        "plus",
        [shared_input(kind, "x", [3, 4], "FP32", "in", 48)],
        outputs=[shared_output(kind, "y", "out", 48)],
    )
    assert (shm.get_contents_as_numpy(out, np.float32, [3, 4]) == batch + 1).all()
    answer = client.infer(
        "strings",
        [shared_input(kind, "INPUT0", [3], "BYTES", "strings", size)],
        outputs=[shared_output(kind, "OUTPUT0", "out", PAGE - 64, offset=64)],
    )
    assert shm.get_contents_as_numpy(out, np.object_, [3], offset=64).tolist() == texts.tolist()
    if kind == "grpc":
        assert answer.get_output("OUTPUT0").parameters["shared_memory_byte_size"].int64_param == size
    # Bytes behind the last element, and a cut one.
    for wrong, part in ((size + 1, "string elements"), (size - 1, "string elements")):
        text = refused(
            client.infer, "strings", [shared_input(kind, "INPUT0", [3], "BYTES", "strings", wrong)]
        )
        assert part in text, text


def test_a_large_tensor_is_copied_off_the_reactor(kind, client, objects):
    values = np.arange(MIB, dtype=np.float32).reshape(1, MIB)
    objects.region("in", 4 * MIB, values)
    out, _ = objects.region("out", 4 * MIB)
    client.infer(
        "large",
        [shared_input(kind, "x", [1, MIB], "FP32", "in", 4 * MIB)],
        outputs=[shared_output(kind, "y", "out", 4 * MIB)],
    )
    assert (shm.get_contents_as_numpy(out, np.float32, [1, MIB]) == values + 1).all()


def test_a_worker_process_gets_and_gives_tensors_of_regions(kind, client, objects):
    objects.region("in", 16, FOUR)
    out, _ = objects.region("out", 16)
    client.infer(
        "boxed", [shared_input(kind, "x", [1, 4], "FP32", "in", 16)], outputs=[shared_output(kind, "y", "out", 16)]
    )
    assert (shm.get_contents_as_numpy(out, np.float32, [1, 4]) == FOUR + 1).all()


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        (("nosuch", 16, 0), "Unable to find shared memory region: 'nosuch'"),
        (("in", 16, 65), "Invalid offset for shared memory region: 'in'"),
        (("in", 16, 2**32), "Invalid offset for shared memory region: 'in'"),
        (("in", 16, 2**63 - 1), "Invalid offset for shared memory region: 'in'"),
        (("in", 16, 49), "Invalid offset + byte size for shared memory region: 'in'"),
        (("in", 65, 0), "Invalid offset + byte size for shared memory region: 'in'"),
        (("in", 2**63 - 1, 64), "Invalid offset + byte size for shared memory region: 'in'"),
    ],
)
def test_spans_outside_of_their_region_are_refused_in_tritons_words(kind, client, objects, span, expected):
    objects.region("in", 64, FOUR)
    name, byte_size, offset = span
    text = refused(client.infer, "plus", [shared_input(kind, "x", [1, 4], "FP32", name, byte_size, offset)])
    assert text.startswith(expected), text
    output = shared_output(kind, "y", name, byte_size, offset)
    text = refused(client.infer, "plus", [sent_input(kind, "x", FOUR)], outputs=[output])
    assert text.startswith(expected), text


def test_sizes_that_do_not_fit_the_tensor_are_refused_in_tritons_words(kind, client, objects):
    objects.region("in", 64, FOUR)
    text = refused(client.infer, "plus", [shared_input(kind, "x", [1, 4], "FP32", "in", 32)])
    assert "input byte size mismatch for input 'x' for model 'plus'. Expected 16, got 32" in text
    out, _ = objects.region("out", 64, np.full(16, 7, dtype=np.float32))
    text = refused(
        client.infer,
        "wide",
        [shared_input(kind, "x", [1, 4], "FP32", "in", 16)],
        outputs=[shared_output(kind, "y", "out", 16)],
    )
    assert text == (
        "shared memory size specified with the request for output 'y' (16 bytes) should be at least 32 bytes to hold"
        " the results"
    )
    assert (shm.get_contents_as_numpy(out, np.float32, [16]) == 7).all()


def test_h9_h13_parameters_are_checked_over_http(server, objects):
    objects.region("in", 64, FOUR)

    def error(data=None, **parameters):
        answer = infer(server, "plus", [tensor("x", "FP32", [1, 4], data, **parameters)])
        return (answer.status, answer.error)

    whole = {"shared_memory_region": "in", "shared_memory_byte_size": 16}
    assert infer(server, "plus", [tensor("x", "FP32", [1, 4], **whole)]).json["outputs"][0]["data"] == [1, 2, 3, 4]
    assert "But set 'data' 'shared_memory_region'" in error([0] * 4, **whole)[1]
    assert "But set 'binary_data_size' 'shared_memory_region'" in error(binary_data_size=16, **whole)[1]
    missing = "must specify both 'shared_memory_region' and 'shared_memory_byte_size' for tensor 'x', "
    assert error(shared_memory_region="in") == (400, missing + "'shared_memory_byte_size' is missing")
    assert error(shared_memory_byte_size=16) == (400, missing + "'shared_memory_region' is missing")
    assert error(**{**whole, "shared_memory_region": 5}) == (
        400,
        "Unable to parse 'shared_memory_region': attempt to access JSON non-string as string",
    )
    for name, value in (("offset", -1), ("offset", "0"), ("byte_size", 1.5), ("byte_size", 2**64)):
        assert error(**{**whole, f"shared_memory_{name}": value}) == (
            400,
            f"Unable to parse 'shared_memory_{name}': attempt to access JSON non-unsigned-integer as unsigned-integer",
        )
    assert error(**{**whole, "shared_memory_offset": 2**64 - 1})[1].startswith("Invalid offset for shared memory region")
    both = [{"name": "y", "parameters": {**whole, "classification": 1}}]
    answer = infer(server, "plus", [tensor("x", "FP32", [1, 4], [0] * 4)], outputs=both)
    assert (answer.status, answer.error) == (400, "output can't set both 'shared_memory_region' and 'classification'")


def test_h18_bodies_of_register_are_checked(server, objects):
    _, key = objects.make(64)

    def register(body):
        answer = post(server, "/v2/systemsharedmemory/region/r/register", body)
        return (answer.status, answer.error)

    absent = "attempt to access non-existing object member"
    assert register({"byte_size": 1}) == (400, f"{absent} 'key'")
    assert register({"key": key}) == (400, f"{absent} 'byte_size'")
    assert register({"key": 1, "byte_size": 1}) == (400, "attempt to access JSON non-string as string")
    number = "attempt to access JSON non-unsigned-integer as unsigned-integer"
    assert register({"key": key, "byte_size": -1}) == (400, number)
    assert register({"key": key, "byte_size": 1, "offset": 0.5}) == (400, number)
    assert register([])[0] == 400
    assert register(b"{")[0] == 400
    answer = post(server, "/v2/systemsharedmemory/region/r/register", {"key": key, "byte_size": 64})
    assert (answer.status, answer.body) == (200, b"")


def test_g2_g4_raw_contents_are_those_of_inputs_outside_of_regions(server, objects):
    objects.region("in", 64, np.arange(16, dtype=np.int32))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        def request(*raw):
            made = pb.ModelInferRequest(model_name="addsub", raw_input_contents=list(raw))
            for name in ("INPUT0", "INPUT1"):
                made.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            parameters = made.inputs[0].parameters
            parameters["shared_memory_region"].string_param = "in"
            parameters["shared_memory_byte_size"].int64_param = 64
            return made

        def failure(made):
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(made)
            return caught.value.code(), caught.value.details()

        answer = stub.ModelInfer(request(b"\0" * 64))
        assert np.frombuffer(answer.raw_output_contents[0], np.int32).tolist() == list(range(16))
        code, text = failure(request(b"\0" * 64, b"\0" * 64))
        assert (code, "expected 1 raw_input_contents" in text) == (grpc.StatusCode.INVALID_ARGUMENT, True), text
        both = request(b"\0" * 64)
        both.inputs[0].contents.int_contents.extend(range(16))
        assert failure(both)[1] == (
            "unexpected 'content' provided when using shared memory for input tensor 'INPUT0' for model 'addsub'"
        )
        for key, value, expected in (
            ("shared_memory_region", {"int64_param": 1}, "for tensor 'INPUT0', expected string_param."),
            ("shared_memory_offset", {"string_param": "0"}, "for tensor 'INPUT0', expected int64_param."),
            ("shared_memory_offset", {"int64_param": -1}, "for tensor 'INPUT0', expected value >= 0."),
            ("shared_memory_byte_size", {"bool_param": True}, "for tensor 'INPUT0', expected int64_param."),
        ):
            made = request(b"\0" * 64)
            made.inputs[0].parameters[key].CopyFrom(pb.InferParameter(**value))
            code, text = failure(made)
            assert (code, expected in text) == (grpc.StatusCode.INVALID_ARGUMENT, True), text
        register = pb.SystemSharedMemoryRegisterRequest(name="in", key="any", byte_size=1)
        with pytest.raises(grpc.RpcError) as caught:
            stub.SystemSharedMemoryRegister(register)
        assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
        with pytest.raises(grpc.RpcError) as caught:
            stub.SystemSharedMemoryStatus(pb.SystemSharedMemoryStatusRequest(name="nosuch"))
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_stream_takes_and_gives_tensors_of_regions(server, objects):
    objects.region("in", 16, FOUR)
    out, _ = objects.region("out", 16)
    request = pb.ModelInferRequest(model_name="plus")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    request.outputs.add(name="y")
    for made, region in ((request.inputs[0], "in"), (request.outputs[0], "out")):
        made.parameters["shared_memory_region"].string_param = region
        made.parameters["shared_memory_byte_size"].int64_param = 16
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        answers = list(stub.ModelStreamInfer(iter([request])))
    assert [answer.error_message for answer in answers] == [""]
    assert (shm.get_contents_as_numpy(out, np.float32, [1, 4]) == FOUR + 1).all()


@pytest.mark.parametrize("length", [0, 8, 15])
def test_an_object_that_was_shortened_is_an_error_and_grows_back(server, kind, client, objects, length):
    _, source = objects.region("in", 16, FOUR)
    out, target = objects.region("out", 16)
    inputs = [shared_input(kind, "x", [1, 4], "FP32", "in", 16)]
    outputs = [shared_output(kind, "y", "out", 16)]
    os.truncate(path_of(source), length)
    text = refused(client.infer, "plus", inputs)
    shortened = f"its object was shortened after it was registered, it has {length} bytes and the tensor ends at byte 16"
    assert text == f"Invalid offset + byte size for shared memory region: 'in': {shortened}"
    os.truncate(path_of(source), 16)
    shm.set_shared_memory_region(objects.made[0], [FOUR])
    os.truncate(path_of(target), length)
    text = refused(client.infer, "plus", inputs, outputs=outputs)
    assert text == f"Invalid offset + byte size for shared memory region: 'out': {shortened}"
    assert path_of(target).stat().st_size == length
    os.truncate(path_of(target), 16)
    client.infer("plus", inputs, outputs=outputs)
    assert (shm.get_contents_as_numpy(out, np.float32, [1, 4]) == FOUR + 1).all()


BATCHED = "dynamic_batching { max_queue_delay_microseconds: 3600000000 preferred_batch_size: [ 2 ] }"


@pytest.fixture(scope="module")
def waiting(tmp_path_factory):
    """Two requests of `m` run together once both are there: until then the first one is under way."""
    repository = Repository(tmp_path_factory.mktemp("waiting") / "models")
    repository.mock("m", BATCHED, max_batch_size=2, output="echo")
    with Server(repository, ALLOW) as server:
        yield server


@pytest.fixture
def under_way(waiting):
    """Regions `in` and `out`, and a request with both that is under way; `finish` lets it run."""
    client = tritonclient.http.InferenceServerClient(waiting.http, concurrency=2)
    objects = Objects({"http": client})
    _, objects.source = objects.region("in", 16, FOUR)
    objects.out, objects.target = objects.region("out", 16)
    inputs = [shared_input("http", "x", [1, 4], "FP32", "in", 16)]
    outputs = [shared_output("http", "y", "out", 16)]
    with ThreadPoolExecutor(1) as pool:
        request = pool.submit(
            tritonclient.http.InferenceServerClient(waiting.http).infer, "m", inputs, outputs=outputs
        )
        wait_pending(waiting, "m", 1)

        def finish():
            other = client.infer("m", [sent_input("http", "x", FOUR + 10)])
            assert (other.as_numpy("y") == FOUR + 10).all()
            return request.result

        objects.finish = finish
        yield objects
    objects.close()
    client.close()


def test_a_request_under_way_survives_objects_that_are_shortened(under_way):
    for key in (under_way.source, under_way.target):
        os.truncate(path_of(key), 0)
    text = refused(under_way.finish())
    assert text.startswith("Invalid offset + byte size for shared memory region: 'out': its object was shortened")
    assert path_of(under_way.target).stat().st_size == 0


def test_a_request_under_way_has_its_inputs_as_they_were_when_it_came(under_way):
    os.truncate(path_of(under_way.source), 0)
    under_way.finish()()
    assert (shm.get_contents_as_numpy(under_way.out, np.float32, [1, 4]) == FOUR).all()


def test_a_request_under_way_keeps_its_regions(under_way, waiting):
    under_way.clients["http"].unregister_system_shared_memory()
    path_of(under_way.source).unlink()
    under_way.finish()()
    assert (shm.get_contents_as_numpy(under_way.out, np.float32, [1, 4]) == FOUR).all()
    assert get(waiting, "/v2/systemsharedmemory/status").json == []
    # tritonclient removes both.
    path_of(under_way.source).touch()


def test_kept_responses_are_copies(tmp_path):
    repository = Repository(tmp_path / "models")
    repository.onnx("plus", plus(1), config="response_cache { enable: true }")
    with Server(repository, ALLOW, "--cache-config=local,size=1048576") as server:
        client = tritonclient.http.InferenceServerClient(server.http)
        objects = Objects({"http": client})
        source, _ = objects.region("in", 16, FOUR)
        out, _ = objects.region("out", 16)
        inputs = [shared_input("http", "x", [1, 4], "FP32", "in", 16)]
        outputs = [shared_output("http", "y", "out", 16)]
        for values in (FOUR, FOUR, FOUR + 5, FOUR):
            shm.set_shared_memory_region(source, [values])
            shm.set_shared_memory_region(out, [np.zeros(4, dtype=np.float32)])
            client.infer("plus", inputs, outputs=outputs)
            assert (shm.get_contents_as_numpy(out, np.float32, [1, 4]) == values + 1).all()
            # Nothing that the client writes to its region gets into the next response.
            shm.set_shared_memory_region(out, [np.full(4, 99, dtype=np.float32)])
        statistics = client.get_inference_statistics("plus")["model_stats"][0]
        assert statistics["inference_stats"]["cache_hit"]["count"] == 2
        objects.close()
        client.close()


def test_nothing_is_left_behind_or_open(server, client, objects):
    before = set(os.listdir(OBJECTS))
    for number in range(20):
        _, key = objects.make(PAGE)
        client.register_system_shared_memory(f"r{number}", key, PAGE)
    assert len(objects_in_use(server)) == 20
    client.unregister_system_shared_memory()
    assert objects_in_use(server) == []
    for handle in objects.made:
        shm.destroy_shared_memory_region(handle)
    objects.made.clear()
    assert set(os.listdir(OBJECTS)) == before


def test_memory_for_copies_is_charged(tmp_path):
    repository = Repository(tmp_path / "models")
    repository.onnx("m", plus(1, shape=("batch", "wide")))
    with Server(repository, ALLOW, f"--max-request-memory={8 * MIB}") as server:
        client = tritonclient.http.InferenceServerClient(server.http)
        objects = Objects({"http": client})
        # Without any page of its own.
        objects.region("in", 64 * MIB)
        wide = {"shared_memory_region": "in", "shared_memory_byte_size": 64 * MIB}
        answer = infer(server, "m", [tensor("x", "FP32", [1, 16 * MIB], **wide)])
        assert answer.status == 503, answer.error
        narrow = {"shared_memory_region": "in", "shared_memory_byte_size": 16}
        assert infer(server, "m", [tensor("x", "FP32", [1, 4], **narrow)]).status == 200
        objects.close()
        client.close()


def test_h19_cuda_regions_are_refused_as_on_a_triton_without_gpu(server, kind, client):
    text = refused(client.register_cuda_shared_memory, "c", b"aGFuZGxl", 0, 64)
    assert text == "failed to register CUDA shared memory region: 'c', GPUs not supported"
    assert client.get_cuda_shared_memory_status() == ([] if kind == "http" else pb.CudaSharedMemoryStatusResponse())
    assert refused(client.get_cuda_shared_memory_status, "c") == "Unable to find cuda shared memory region: 'c'"
    client.unregister_cuda_shared_memory("c")
    client.unregister_cuda_shared_memory()


def test_h3_the_extension_is_listed_when_it_is_served(server, simple):
    for of, listed in ((server, True), (simple, False)):
        extensions = get(of, "/v2").json["extensions"]
        assert ("system_shared_memory" in extensions) == listed
        assert "cuda_shared_memory" not in extensions


@pytest.mark.parametrize("kind", MODULES)
def test_h20_without_the_flag_nothing_is_served(simple, kind):
    client = MODULES[kind].InferenceServerClient(simple.grpc if kind == "grpc" else simple.http)
    inputs = [sent_input(kind, name, np.zeros((1, 16), dtype=np.int32), "INT32") for name in ("INPUT0", "INPUT1")]
    region = shared_input(kind, "INPUT0", [1, 16], "INT32", "r", 64)
    for call, *args in (
        (client.register_system_shared_memory, "r", "k", 64),
        (client.get_system_shared_memory_status,),
        (client.get_system_shared_memory_status, "r"),
        (client.unregister_system_shared_memory, "r"),
        (client.unregister_system_shared_memory,),
        (client.register_cuda_shared_memory, "r", b"aGFuZGxl", 0, 64),
        (client.get_cuda_shared_memory_status,),
        (client.unregister_cuda_shared_memory,),
        (client.infer, "addsub", [region, inputs[1]]),
    ):
        with pytest.raises(InferenceServerException) as caught:
            call(*args)
        assert caught.value.message() == OFF
        assert caught.value.status() == ("501" if kind == "http" else "StatusCode.UNIMPLEMENTED")
    text = refused(client.infer, "addsub", inputs, outputs=[shared_output(kind, "OUTPUT0", "r", 64)])
    assert text == OFF
    client.close()


def test_h30_restrictions_guard_regions(tmp_path):
    repository = Repository(tmp_path / "models")
    flags = ["--http-restricted-api=shared-memory:key=s", "--grpc-restricted-protocol=shared-memory:key=s"]
    with Server(repository, ALLOW, *flags) as server:
        assert get(server, "/v2/systemsharedmemory/status").status == 403
        body = json.dumps({"key": "k", "byte_size": 1}).encode()
        path = "/v2/systemsharedmemory/region/r/register"
        assert post(server, path, body).status == 403
        assert post(server, path, body, {"key": "s"}).status == 400
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(InferenceServerException) as caught:
                client.get_system_shared_memory_status()
            assert caught.value.status() == "StatusCode.UNAVAILABLE"
            headers = {"triton-grpc-protocol-key": "s"}
            assert not client.get_system_shared_memory_status(headers=headers).regions
