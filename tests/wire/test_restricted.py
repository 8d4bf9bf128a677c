"""Restricted calls: which clients are let in, and the errors for the others, over both protocols."""

import os
import signal
import threading

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from http_client import get, infer, post, request, tensor
from repository import Repository, plus
from server import Server, serve_and_fail

# Each group has a key of its own, so that an answer tells which group a call is of.
GROUPS = {
    "health": "healthy",
    "metadata": "meta",
    "inference": "inf",
    "shared-memory": "shm",
    "model-config": "conf",
    "model-repository": "repo",
    "statistics": "stat",
    "trace": "tra",
    "logging": "logg",
}
ROUTES = [
    ("GET", "/v2", "metadata"),
    ("GET", "/v2/", "metadata"),
    ("GET", "/v2/health/live", "health"),
    ("GET", "/v2/health/ready", "health"),
    ("GET", "/v2/models/m", "metadata"),
    ("GET", "/v2/models/m/versions/1", "metadata"),
    ("GET", "/v2/models/m/ready", "health"),
    ("GET", "/v2/models/m/versions/1/ready", "health"),
    ("GET", "/v2/models/m/config", "model-config"),
    ("GET", "/v2/models/m/versions/1/config", "model-config"),
    ("GET", "/v2/models/stats", "statistics"),
    ("GET", "/v2/models/m/stats", "statistics"),
    ("GET", "/v2/models/m/versions/1/stats", "statistics"),
    ("POST", "/v2/models/m/infer", "inference"),
    ("POST", "/v2/models/m/versions/1/infer", "inference"),
    ("POST", "/v2/models/m/generate", "inference"),
    ("POST", "/v2/models/m/versions/1/generate_stream", "inference"),
    ("GET", "/v2/logging", "logging"),
    ("GET", "/v2/systemsharedmemory/status", "shared-memory"),
    ("POST", "/v2/cudasharedmemory/region/r/register", "shared-memory"),
    ("GET", "/v2/trace/setting", "trace"),
    ("POST", "/v2/models/m/trace/setting", "trace"),
    ("POST", "/v2/repository/index", "model-repository"),
    ("POST", "/v2/repository/models/m/load", "model-repository"),
    ("POST", "/v2/repository/models/m/unload", "model-repository"),
    ("POST", "/v2/repository/r/index", "model-repository"),
]
CALLS = {
    "ServerLive": "health",
    "ServerReady": "health",
    "ModelReady": "health",
    "ServerMetadata": "metadata",
    "ModelMetadata": "metadata",
    "ModelInfer": "inference",
    "ModelConfig": "model-config",
    "ModelStatistics": "statistics",
    "RepositoryIndex": "model-repository",
    "RepositoryModelLoad": "model-repository",
    "RepositoryModelUnload": "model-repository",
    "SystemSharedMemoryStatus": "shared-memory",
    "SystemSharedMemoryRegister": "shared-memory",
    "SystemSharedMemoryUnregister": "shared-memory",
    "CudaSharedMemoryStatus": "shared-memory",
    "CudaSharedMemoryRegister": "shared-memory",
    "CudaSharedMemoryUnregister": "shared-memory",
    "TraceSetting": "trace",
    "LogSettings": "logging",
}
PREFIX = "triton-grpc-protocol-"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("restricted") / "models")
    repository.onnx("m", plus(1))
    flags = [
        f"--{flag}={group}:{key}=secret-{key}"
        for flag in ("http-restricted-api", "grpc-restricted-protocol")
        for group, key in GROUPS.items()
    ]
    with Server(repository, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest.mark.parametrize(("method", "path", "group"), ROUTES)
def test_h30_every_route_asks_for_its_groups_header(server, method, path, group):
    key = GROUPS[group]
    refusal = f'{{"error":"This API is restricted, expecting header \'{key}\'"}}'.encode()
    wrong = [{}, {key: "wrong"}, {key: f"secret-{key}x"}, {key: ""}, {"other": f"secret-{key}"}]
    for headers in wrong:
        answer = request(server.http, method, path, headers=headers)
        assert (answer.status, answer.body) == (403, refusal)
        assert answer.headers["content-type"] == "text/plain"
    # A wrong method tells strangers nothing.
    assert request(server.http, "PATCH", path).status == 403
    allowed = {key.upper(): f"secret-{key}"}
    assert request(server.http, method, path, headers=allowed).status != 403
    assert request(server.http, "PATCH", path, headers=allowed).status == 405


def test_h30_pages_are_not_restricted(server):
    assert get(server, "/v2/nosuch").status == 404
    assert get(server, "/").status == 200
    assert request(server.metrics, "GET", "/metrics").status == 200


def refused(call, message, metadata=None):
    with pytest.raises(grpc.RpcError) as caught:
        answer = call(message, metadata=metadata)
        list(answer)
    return caught.value.code().name, caught.value.details()


def restricted(group):
    return ("UNAVAILABLE", f"This protocol is restricted, expecting header '{PREFIX}{GROUPS[group]}'")


@pytest.mark.parametrize(("name", "group"), CALLS.items())
def test_g14_every_call_asks_for_its_groups_header(stub, name, group):
    call, message = getattr(stub, name), getattr(pb, f"{name}Request")()
    key = GROUPS[group]
    for metadata in (None, [(key, f"secret-{key}")], [(PREFIX + key, "wrong")]):
        assert refused(call, message, metadata) == restricted(group)
    try:
        call(message, metadata=[(PREFIX + key, f"secret-{key}")])
    except grpc.RpcError as error:
        assert "restricted" not in error.details()


def test_g14_streams_too(stub):
    def messages():
        yield pb.ModelInferRequest(model_name="nosuch")

    assert refused(stub.ModelStreamInfer, messages()) == restricted("inference")
    (answer,) = stub.ModelStreamInfer(messages(), metadata=[(f"{PREFIX}inf", "secret-inf")])
    assert "unknown model" in answer.error_message


def test_g14_g8_the_health_service_is_in_group_health(server):
    with grpc.insecure_channel(server.grpc) as channel:
        same = {"request_serializer": bytes, "response_deserializer": bytes}
        check = channel.unary_unary("/grpc.health.v1.Health/Check", **same)
        assert refused(check, b"") == restricted("health")
        assert check(b"", metadata=[(f"{PREFIX}healthy", "secret-healthy")]) == b"\x08\x01"
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch", **same)
        assert refused(watch, b"") == restricted("health")


def test_h30_g14_all_calls_are_served(stub):
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert {method.name for method in service.methods} == {*CALLS, "ModelStreamInfer"}


def test_h30_g14_tritonclient_with_its_headers(server):
    with tritonclient.http.InferenceServerClient(server.http) as client:
        with pytest.raises(Exception, match="expecting header 'meta'"):
            client.get_server_metadata()
        assert client.get_server_metadata(headers={"meta": "secret-meta"})["name"] == "triton"
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        with pytest.raises(Exception, match=f"expecting header '{PREFIX}meta'"):
            client.get_server_metadata()
        assert client.get_server_metadata(headers={f"{PREFIX}meta": "secret-meta"}).name == "triton"


def test_h30_g14_groups_share_a_key_and_others_stay_open(repository):
    repository.onnx("m", plus(1))
    flags = ["--http-restricted-api=model-repository,logging:admin=a=b", "--grpc-restricted-protocol=logging:admin=x"]
    with Server(repository, *flags) as server:
        assert post(server, "/v2/repository/index").status == get(server, "/v2/logging").status == 403
        assert get(server, "/v2/logging").status == 403
        assert request(server.http, "GET", "/v2/logging", headers={"admin": "a=b"}).status == 200
        assert infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)]).status == 200
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            # The two protocols are restricted apart.
            assert client.get_model_repository_index().models[0].name == "m"
            with pytest.raises(Exception, match="restricted"):
                client.get_log_settings()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("health", "expected <names>:<key>=<value>"),
        ("health:key", "expected <names>:<key>=<value>"),
        ("health:=value", "expected <names>:<key>=<value>"),
        ("nosuch:key=value", "`nosuch` cannot be restricted"),
        ("health,health:key=value", "`health` is restricted twice"),
        ("health:a b=value", "`a b` cannot name a header"),
    ],
)
@pytest.mark.parametrize("flag", ["http-restricted-api", "grpc-restricted-protocol"])
def test_c25_a_malformed_restriction_ends_the_start(simple_repository, flag, setting, said):
    code, log = serve_and_fail(simple_repository, f"--{flag}={setting}")
    assert code == 1
    assert f"--{flag}" in log and said in log


def is_refused(server, path="/v2/logging", **headers):
    return request(server.http, "GET", path, headers=headers).status == 403


def is_refused_over_grpc(server, value):
    with grpc.insecure_channel(server.grpc) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.LogSettings(pb.LogSettingsRequest(), metadata=[(f"{PREFIX}key", value)])
        except grpc.RpcError as error:
            assert error.code() == grpc.StatusCode.UNAVAILABLE
            return True
        return False


def test_values_from_a_file_apply_to_both_protocols_and_change_at_a_signal(simple_repository, tmp_path):
    path = tmp_path / "restricted"
    path.write_text("# who may change things\n\nlogging,trace:key=old\n  model-repository:other=x  \n")
    path.chmod(0o600)
    with Server(simple_repository, f"--restricted-api-file={path}") as server:
        assert "can be read by every user" not in server.log
        assert "answers without restriction" not in server.log
        assert is_refused(server) and not is_refused(server, key="old")
        assert is_refused(server, "/v2/trace/setting") and not is_refused(server, "/v2/trace/setting", key="old")
        assert is_refused_over_grpc(server, "new") and not is_refused_over_grpc(server, "old")
        path.write_text("logging:key=new\ntrace:key=newer\nmodel-repository:other=x\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for(f"restricted calls now ask for the values in `{path}`")
        assert is_refused(server, key="old") and not is_refused(server, key="new")
        assert is_refused_over_grpc(server, "old") and not is_refused_over_grpc(server, "new")
        assert is_refused(server, "/v2/trace/setting", key="new")
        assert not is_refused(server, "/v2/trace/setting", key="newer")
        for text in ("logging:key=newest\n", "logging,trace:key2=x\nmodel-repository:other=x\n", "logging\n"):
            path.write_text(text)
            before = server.log.count("restricted calls keep their values")
            server.send_signal(signal.SIGHUP)
            server.wait_until(lambda: server.log.count("restricted calls keep their values") > before)
        assert not is_refused(server, key="new"), "what was read before holds"
        assert "newest" not in server.log


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("logging:s3cret\n", ":1: expected <names>:<key>=<value>"),
        ("health:k=v\nnosuch:k=s3cret\n", ":2: `nosuch` cannot be restricted, expected one or more of health,"),
        ("health:k=v\nhealth:k=s3cret\n", ":2: `health` is restricted twice"),
        ("trace:k=s3cret\n", "`trace` is restricted twice"),
        (None, "No such file"),
    ],
)
def test_an_unusable_file_ends_the_start_and_shows_no_secret(simple_repository, tmp_path, text, expected):
    path = tmp_path / "restricted"
    if text is not None:
        path.write_text(text)
    code, log = serve_and_fail(simple_repository, f"--restricted-api-file={path}", "--http-restricted-api=trace:a=b")
    assert code == 1
    assert "--restricted-api-file" in log and expected in log, log
    assert "s3cret" not in log


@pytest.mark.parametrize(
    ("flags", "warning"),
    [
        (["http-restricted-api=inference,logging:k=v"], "--http-restricted-api restricts inference,logging, which gRPC answers"),
        (["grpc-restricted-protocol=inference:k=v"], "--grpc-restricted-protocol restricts inference, which HTTP answers"),
        (["http-restricted-api=inference:k=v", "grpc-restricted-protocol=inference:k=v"], None),
        (["http-restricted-api=inference:k=v", "allow-grpc=false"], None),
    ],
)
def test_a_group_that_one_protocol_leaves_open_is_a_warning(simple_repository, tmp_path, flags, warning):
    with Server(simple_repository, *[f"--{flag}" for flag in flags]) as server:
        assert server.log.count("answers without restriction") == (1 if warning else 0)
        assert warning is None or warning in server.log


def test_a_file_that_all_can_read_is_a_warning(simple_repository, tmp_path):
    path = tmp_path / "restricted"
    path.write_text("logging:k=v\n")
    path.chmod(0o644)
    with Server(simple_repository, f"--restricted-api-file={path}") as server:
        assert f"`{path}`, whose values are secrets, can be read by every user of this machine" in server.log


def test_a_pipe_is_read_once_at_the_start(simple_repository, tmp_path):
    pipe = tmp_path / "restricted"
    os.mkfifo(pipe, 0o600)
    writer = threading.Thread(target=pipe.write_text, args=("logging:key=old\n",))
    writer.start()
    with Server(simple_repository, f"--restricted-api-file={pipe}") as server:
        writer.join()
        assert is_refused(server) and not is_refused(server, key="old")
        server.send_signal(signal.SIGHUP)
        server.wait_for(f"`{pipe}` is not a regular file, and the server reads a pipe only at its start")
        assert not is_refused(server, key="old")
        # No thread waits for the pipe: the next signal is heard.
        pipe.unlink()
        pipe.write_text("logging:key=new\n")
        server.send_signal(signal.SIGHUP)
        server.wait_for(f"restricted calls now ask for the values in `{pipe}`")
        assert is_refused(server, key="old") and not is_refused(server, key="new")
