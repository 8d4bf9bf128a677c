"""Log settings: what is shown, what a change does, what is refused, over both protocols."""

import re

import grpc
import pytest
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from http_client import get, infer, post, request, tensor
from repository import plus
from server import Server

PATH = "/v2/logging"
DEFAULTS = {
    "log_file": "",
    "log_info": True,
    "log_warning": True,
    "log_error": True,
    "log_verbose_level": 0,
    "log_format": "default",
}


@pytest.fixture
def server(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--model-control-mode=explicit") as server:
        yield server


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def change(server, **settings):
    answer = post(server, PATH, settings)
    assert answer.status == 200, answer.body
    return answer.json


def shown(server):
    answer = get(server, PATH)
    assert answer.status == 200 and answer.headers["content-type"] == "application/json"
    return answer.json


def load(server):
    assert post(server, "/v2/repository/models/m/load").status == 200


def test_h22_settings_are_shown_in_tritons_order(server):
    assert list(shown(server).items()) == list(DEFAULTS.items())
    assert request(server.http, "PUT", PATH).status == 405


def test_h3_h22_logging_is_an_extension(server, stub):
    assert get(server, "/v2").json["extensions"][-1] == "logging"
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).extensions[-1] == "logging"


def test_h22_c9_flags_are_the_first_settings(repository):
    repository.onnx("m", plus(1))
    with Server(repository, "--log-warning=false", "--log-verbose=2", "--log-format=ISO8601") as server:
        assert shown(server) == {
            **DEFAULTS, "log_warning": False, "log_verbose_level": 2, "log_format": "ISO8601",
        }  # fmt: skip


def test_h22_a_change_answers_with_all_settings(server):
    got = change(server, log_warning=False, log_verbose_level=3)
    assert got == {**DEFAULTS, "log_warning": False, "log_verbose_level": 3} == shown(server)
    assert change(server) == got
    assert change(server, log_warning=None, nosuch=1) == got


def test_h22_c9_each_request_is_a_line_while_verbose(server):
    load(server)
    assert "HTTP request" not in server.log
    change(server, log_verbose_level=1)
    assert infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)], id="ab\nc").status == 200
    server.wait_for('"HTTP request: POST /v2/models/m/infer"')
    server.wait_for(r'"[request id: ab\nc] inference of model `m` version 1"')
    assert all(re.match(r"I\d{4} ", line) for line in server.lines if "HTTP request" in line)
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.is_server_live()
        x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        x.set_data_from_numpy(np.zeros([1, 4], np.float32))
        client.infer("m", [x])
    server.wait_for('"gRPC request: /inference.GRPCInferenceService/ServerLive"')
    server.wait_for('"gRPC request: /inference.GRPCInferenceService/ModelInfer"')
    change(server, log_verbose_level=0)
    before = server.log.count("HTTP request")
    assert get(server, "/v2/health/live").status == 200
    # Information is still logged, and its line comes after any of the request above.
    load(server)
    server.wait_for("loaded model `m`")
    assert server.log.count("HTTP request") == before


def test_h22_information_can_be_switched_off_and_on(server):
    change(server, log_info=False)
    load(server)
    change(server, log_info=True, log_verbose_level=1)
    get(server, "/v2/health/live")
    server.wait_for("HTTP request: GET /v2/health/live")
    assert "loaded model `m`" not in server.log
    load(server)
    server.wait_for("loaded model `m`")


def test_h22_errors_can_be_switched_off(server):
    change(server, log_error=False, log_verbose_level=1)
    assert post(server, "/v2/repository/models/nosuch/load").status >= 400
    get(server, "/v2/health/live")
    server.wait_for("HTTP request: GET /v2/health/live")
    assert not any(line.startswith("E") for line in server.lines)
    change(server, log_error=True)
    assert post(server, "/v2/repository/models/nosuch/load").status >= 400
    get(server, "/v2/health/ready")
    server.wait_for("HTTP request: GET /v2/health/ready")
    assert any(line.startswith("E") for line in server.lines)


def test_h22_the_format_changes_between_lines(server):
    change(server, log_format="ISO8601")
    load(server)
    server.wait_for("loaded model `m`")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ I \d+ ", server.lines[-1])
    change(server, log_format="default")
    post(server, "/v2/repository/models/m/unload")
    server.wait_for("unloading model `m`")
    assert any(re.match(r"I\d{4} .*unloading model", line) for line in server.lines)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({"log_info": 1}, 400, "attempt to access JSON non-boolean as boolean"),
        ({"log_warning": "true"}, 400, "attempt to access JSON non-boolean as boolean"),
        ({"log_verbose_level": True}, 400, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"log_verbose_level": -1}, 400, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"log_format": 1}, 400, "attempt to access JSON non-string as string"),
        ({"log_format": "x"}, 400, "invalid argument for --log_format, got: x"),
        ({"log_file": "/tmp/x"}, 501, "log file location can not be updated through network protocol"),
        ({"log_info": False, "log_format": "x"}, 400, "invalid argument for --log_format, got: x"),
        (b"", 400, "failed to parse the request JSON buffer: "),
        (b'{"log_info":true', 400, "failed to parse the request JSON buffer: "),
        (b"[]", 400, "must be a JSON object"),
    ],
)
def test_h22_a_wrong_setting_is_refused_and_changes_nothing(server, body, status, error):
    answer = post(server, PATH, body)
    assert (answer.status, error in answer.error) == (status, True), answer.body
    assert shown(server) == DEFAULTS


def grpc_settings(stub, **settings):
    message = pb.LogSettingsRequest()
    for name, (field, value) in settings.items():
        setattr(message.settings[name], field, value)
    answer = stub.LogSettings(message).settings
    return {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in answer.items()}


def test_h22_g1_grpc_shows_and_changes_the_same(server, stub):
    assert grpc_settings(stub) == DEFAULTS
    got = grpc_settings(
        stub,
        log_info=("bool_param", False),
        log_verbose_level=("uint32_param", 2),
        log_format=("string_param", "ISO8601"),
        nosuch=("bool_param", True),
    )
    assert got == {**DEFAULTS, "log_info": False, "log_verbose_level": 2, "log_format": "ISO8601"} == shown(server)


@pytest.mark.parametrize(
    ("name", "value", "code", "details"),
    [
        ("log_info", ("uint32_param", 1), "INVALID_ARGUMENT", "expect boolean for 'log_info'"),
        ("log_verbose_level", ("bool_param", True), "INVALID_ARGUMENT", "expect int32 for 'log_verbose_level'"),
        ("log_format", ("bool_param", True), "INVALID_ARGUMENT", "expect string for 'log_format'"),
        ("log_format", ("string_param", "x"), "INVALID_ARGUMENT", "invalid argument for log_format, got: x"),
        (
            "log_file",
            ("string_param", "/tmp/x"),
            "UNIMPLEMENTED",
            "log file location can not be updated through network protocol",
        ),
    ],
)
def test_h22_g1_grpc_refuses_in_tritons_words(server, stub, name, value, code, details):
    with pytest.raises(grpc.RpcError) as caught:
        grpc_settings(stub, **{name: value})
    assert (caught.value.code().name, caught.value.details()) == (code, details)
    assert shown(server) == DEFAULTS


def test_h22_tritonclient_on_both_protocols(server):
    with tritonclient.http.InferenceServerClient(server.http) as client:
        assert client.get_log_settings() == DEFAULTS
        assert client.update_log_settings({"log_verbose_level": 1})["log_verbose_level"] == 1
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.get_log_settings(as_json=True)["settings"]["log_verbose_level"] == {"uint32_param": 1}
        client.update_log_settings({"log_verbose_level": 0, "log_info": False})
    assert shown(server) == {**DEFAULTS, "log_info": False}
