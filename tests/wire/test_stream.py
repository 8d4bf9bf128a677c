"""`ModelStreamInfer`: many requests and models on one call, answers in order, errors that do not end it."""

import queue
import threading

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from metrics import wait_pending
from repository import FOREVER_US, Repository, identity, unbatched
from server import DEADLINE_S, Server

SLOW_US = 100_000
# What a stream has under way at most.
IN_FLIGHT = 128


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("stream"))
    repository.onnx("echo", identity("FP32", ["n"]), config=unbatched("FP32", [-1]))
    repository.onnx("other", identity("FP32", ["n"]), config=unbatched("FP32", [-1]))
    repository.mock("slow", latency_us=SLOW_US, output="echo")
    repository.mock("failing", fail_every=1)
    repository.mock("stuck", latency_us=FOREVER_US)
    with Server(repository) as running:
        yield running


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(model, id, value=0.0, **parameters):
    request = pb.ModelInferRequest(model_name=model, id=id)
    shape = [1] if model in ("echo", "other") else [1, 4]
    name = "INPUT0" if model in ("echo", "other") else "x"
    request.inputs.add(name=name, datatype="FP32", shape=shape)
    request.raw_input_contents.append(np.full(shape, value, np.float32).tobytes())
    for key, value in parameters.items():
        request.parameters[key].bool_param = value
    return request


def broken(id):
    request = message("echo", id)
    request.raw_input_contents[0] = b"123"
    return request


def stream(stub, requests, **metadata):
    return stub.ModelStreamInfer(iter(requests), metadata=list(metadata.items()), timeout=DEADLINE_S)


def ids(answers):
    return [answer.infer_response.id for answer in answers]


def test_g5_answers_come_in_order_whatever_their_models_take(stub):
    requests = [message(model, str(n), n) for n, model in enumerate(["slow", "echo", "other", "slow", "echo"])]
    answers = list(stream(stub, requests))
    assert ids(answers) == ["0", "1", "2", "3", "4"]
    assert [answer.infer_response.model_name for answer in answers] == ["slow", "echo", "other", "slow", "echo"]
    for n, answer in enumerate(answers):
        assert answer.error_message == ""
        assert np.frombuffer(answer.infer_response.raw_output_contents[0], np.float32)[0] == n


def test_g5_many_more_requests_than_run_at_once(stub):
    answers = stream(stub, (message("echo", str(n), n) for n in range(1000)))
    assert ids(answers) == [str(n) for n in range(1000)]


def test_g5_an_error_is_an_answer_and_the_stream_goes_on(stub):
    unknown_version = message("echo", "v")
    unknown_version.model_version = "9"
    misshapen = message("echo", "s")
    misshapen.inputs[0].shape[:] = [1, 1]
    requests = [
        message("nope", "u"),
        unknown_version,
        broken("b"),
        message("failing", "f"),
        message("echo", "p", triton_x=True),
        misshapen,
        message("echo", "good"),
    ]
    answers = list(stream(stub, requests))
    assert ids(answers) == ["u", "v", "b", "f", "p", "s", "good"]
    expected = [
        "Request for unknown model: 'nope' is not found",
        "Request for unknown model: 'echo' version 9 is not found",
        "[request id: b] input byte size mismatch for input 'INPUT0' for model 'echo'. Expected 4, got 3",
        "fails, as `mock.fail_every` says",
        "reserved for Triton usage",
        "[request id: s] unexpected shape for input 'INPUT0' for model 'echo'.",
        "",
    ]
    for answer, text in zip(answers, expected, strict=True):
        assert text in answer.error_message
        assert bool(answer.error_message) == bool(text)
    assert [a.infer_response.model_name for a in answers] == ["", "", "", "failing", "", "", "echo"]


def test_g5_errors_as_the_status_of_the_stream(stub):
    call = stream(stub, [message("echo", "1"), broken("2"), message("echo", "3")], triton_grpc_error="true")
    assert next(call).infer_response.id == "1"
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Expected 4, got 3" in caught.value.details()
    for value in ("false", "1", "TRUE"):
        assert ids(stream(stub, [broken("2"), message("echo", "3")], triton_grpc_error=value)) == ["2", "3"]


@pytest.mark.parametrize("wanted", [None, True, False])
def test_g6_the_only_answer_is_the_final_one(stub, wanted):
    parameters = {} if wanted is None else {"triton_enable_empty_final_response": wanted}
    answers = list(stream(stub, [message("echo", "1", **parameters), message("failing", "2")]))
    assert ids(answers) == ["1", "2"]
    for answer in answers:
        assert answer.infer_response.parameters["triton_final_response"].bool_param
    unary = stub.ModelInfer(message("echo", "1", **parameters))
    assert "triton_final_response" not in unary.parameters


def test_g5_an_empty_stream(stub):
    call = stream(stub, [])
    assert (list(call), call.code()) == ([], grpc.StatusCode.OK)


def test_g5_g9_requests_run_at_the_same_time_and_go_with_their_stream(repository):
    repository.mock("stuck", latency_us=FOREVER_US)
    with Server(repository) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stream(stub, (message("stuck", str(n)) for n in range(5)))
        # None of them is ever answered, yet all were taken: one runs.
        wait_pending(server, "stuck", 4)
        call.cancel()
        wait_pending(server, "stuck", 0)


def test_g5_what_one_stream_has_under_way_is_bounded(repository):
    repository.mock("stuck", latency_us=FOREVER_US)
    with Server(repository) as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stream(stub, (message("stuck", str(n)) for n in range(IN_FLIGHT + 1)))
        wait_pending(server, "stuck", IN_FLIGHT - 1)
        other = stub.ModelInfer.future(message("stuck", "other"))
        wait_pending(server, "stuck", IN_FLIGHT)
        other.cancel()
        call.cancel()


def test_c42_an_idle_stream_does_not_delay_a_stop(repository):
    repository.onnx("echo", identity("FP32", ["n"]), config=unbatched("FP32", [-1]))
    with Server(repository, "--exit-timeout-secs=600") as server, grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        more = queue.Queue()
        call = stub.ModelStreamInfer(iter(more.get, None))
        more.put(message("echo", "1"))
        assert next(call).infer_response.id == "1"
        server.send_signal()
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
        more.put(None)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert server.wait() == 0


def test_g5_through_the_grpc_client(server):
    answers = queue.Queue()
    with grpcclient.InferenceServerClient(server.grpc) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for n in range(10):
            data = grpcclient.InferInput("INPUT0", [1], "FP32")
            data.set_data_from_numpy(np.array([n], np.float32))
            client.async_stream_infer("echo" if n != 5 else "nope", [data], request_id=str(n))
        for n in range(10):
            result, error = answers.get(timeout=DEADLINE_S)
            if n == 5:
                assert isinstance(error, InferenceServerException) and "'nope' is not found" in str(error)
            else:
                assert (error, result.as_numpy("OUTPUT0").tolist()) == (None, [n])
                assert result.get_response().parameters["triton_final_response"].bool_param
        client.stop_stream()


def test_g5_streams_side_by_side(server):
    def run(number, failures):
        with grpc.insecure_channel(server.grpc) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            given = ids(stream(stub, [message("echo", f"{number}-{n}") for n in range(100)]))
            if given != [f"{number}-{n}" for n in range(100)]:
                failures.append(given)

    failures = []
    threads = [threading.Thread(target=run, args=(number, failures)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert failures == []
