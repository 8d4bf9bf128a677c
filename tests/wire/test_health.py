"""Health and readiness, on HTTP and gRPC, before, while and after models load."""

import grpc
import pytest
import tritonclient.grpc

from http_client import get, request
from repository import FOREVER_US, WARMUP, identity
from server import Server

# grpc.health.v1.HealthCheckResponse { status } on the wire: field 1, a varint.
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def check_health(address, service=b""):
    with grpc.insecure_channel(address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        return check(b"\x0a" + bytes([len(service)]) + service if service else b"")


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/v2/models/addsub/ready", "/v2/models/addsub/versions/1/ready"],
)
def test_h1_health_is_200_with_an_empty_body(simple, path):
    answer = get(simple, path)
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"", "text/plain")


@pytest.mark.parametrize("path", ["/v2/models/nosuch/ready", "/v2/models/addsub/versions/9/ready"])
def test_h1_missing_models_are_not_ready(simple, path):
    answer = get(simple, path)
    assert (answer.status, answer.error) == (400, "Model version not ready")


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/v2/models/addsub/ready", "/v2"])
def test_h1_h32_other_methods_are_405(simple, path):
    answer = request(simple.http, "POST", path, b"")
    assert (answer.status, answer.error) == (405, "Method Not Allowed")
    assert answer.headers["allow"] == "GET,HEAD"


@pytest.mark.parametrize(
    "path",
    ["/v2/health/live", "/v2/health/ready", "/v2/models/addsub/ready", "/v2", "/v2/models/addsub/config", "/v2/logging", "/"],
)
def test_head_is_get_without_a_body(simple, path):
    """Load balancers probe so."""
    get_answer, head_answer = get(simple, path), request(simple.http, "HEAD", path)
    assert (head_answer.status, head_answer.body) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head_answer.headers[name] == get_answer.headers[name]
    assert request(simple.http, "HEAD", "/v2/models/nosuch/ready").status == 400


def test_h32_get_on_infer_is_405_and_unknown_paths_are_404(simple):
    answer = get(simple, "/v2/models/addsub/infer")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    answer = request(simple.http, "HEAD", "/v2/models/addsub/infer")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    answer = request(simple.http, "DELETE", "/v2/logging")
    assert (answer.status, answer.headers["allow"]) == (405, "GET,HEAD,POST")
    for path in ("/v1/models", "/v2/nosuch", "/v2/models/addsub/nosuch"):
        answer = get(simple, path)
        assert (answer.status, answer.error, answer.headers["content-type"]) == (404, "Not Found", "text/plain")


@pytest.mark.parametrize("service", [b"", b"inference.GRPCInferenceService", b"anything"])
def test_g8_health_service_is_serving_whatever_is_asked_for(simple, service):
    assert check_health(simple.grpc, service) == SERVING


def test_c38_an_empty_repository_is_ready(repository):
    with Server(repository) as server:
        assert get(server, "/v2/health/ready").status == 200
        assert check_health(server.grpc) == SERVING


def test_c32_endpoints_answer_while_models_load(repository):
    repository.mock(config=WARMUP, latency_us=FOREVER_US)
    with Server(repository, until="Started Metrics Service") as server:
        assert get(server, "/v2/health/live").status == 200
        assert get(server, "/v2/health/ready").status == 400
        assert get(server, "/v2/models/mock/ready").status == 400
        assert check_health(server.grpc) == NOT_SERVING
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            assert client.is_server_live()
            assert not client.is_server_ready()
            assert not client.is_model_ready("mock")


@pytest.mark.parametrize(("strict", "status"), [("true", 400), ("false", 200)])
def test_c4_strict_readiness_needs_every_model(repository, strict, status):
    repository.onnx("good", identity())
    repository.onnx("bad", b"no ONNX")
    with Server(repository, "--exit-on-error=false", f"--strict-readiness={strict}") as server:
        assert get(server, "/v2/health/ready").status == status
        assert check_health(server.grpc) == (SERVING if status == 200 else NOT_SERVING)
        assert get(server, "/v2/models/good/ready").status == 200
        assert get(server, "/v2/models/bad/ready").status == 400


@pytest.mark.parametrize("flags", [(), ("--model-control-mode=explicit", "--load-model=mock")])
def test_a_model_still_to_be_loaded_at_the_start_is_503_and_not_unknown(repository, flags):
    repository.mock(config=WARMUP, latency_us=FOREVER_US)
    with Server(repository, *flags, until="Started Metrics Service") as server:
        text = "model 'mock' is not loaded yet: the server is starting"
        for path in ("/v2/models/mock", "/v2/models/mock/config", "/v2/models/mock/versions/1"):
            answer = get(server, path)
            assert (answer.status, answer.error, answer.headers["retry-after"]) == (503, text, "1")
        answer = request(server.http, "POST", "/v2/models/mock/infer", {"inputs": []})
        assert (answer.status, answer.error) == (503, text)
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
                client.get_model_metadata("mock")
            assert (caught.value.status(), caught.value.message()) == ("StatusCode.UNAVAILABLE", text)
        server.wait_for("loading model `mock`")
        answer = get(server, "/v2/models/nosuch")
        assert (answer.status, answer.error) == (404, "Request for unknown model: 'nosuch' is not found")
