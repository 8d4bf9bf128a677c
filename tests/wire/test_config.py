"""config.pbtxt: spellings, fields that are honoured, refused or without effect, and errors with their place."""

import queue

import numpy as np
import pytest
import tritonclient.grpc

from http_client import get, infer, tensor
from repository import identity, plus
from server import DEADLINE_S, Server, serve_and_fail

SPELLINGS = {
    "no colons": 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }',
    "lists of blocks without a colon": """
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
        output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]""",
    "lists with a colon": """
        input: [ { name: "x", data_type: TYPE_FP32, dims: [4] } ],
        output: [ { name: "y"; data_type: TYPE_FP32; dims: [4]; } ];""",
    "blocks with a colon": """
        input: { name: 'x' data_type: TYPE_FP32 dims: [ 4, ] }
        output: < name: 'y' data_type: 11 dims: 0x4 >""".replace("[ 4, ]", "[ 4 ]"),
    "comments and joined strings": """# first line
        input { # a comment with " and {
          name: "" 'x' # joined
          data_type: TYPE_FP32 dims: 4 }
        output { name: "\\x79" data_type: TYPE_FP32 dims: 4 } # no line feed at the end""",
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_f25_spellings(repository, text):
    repository.onnx("m", plus(1), config="max_batch_size: 8\n" + text)
    with Server(repository) as server:
        config = get(server, "/v2/models/m/config").json
        assert [(i["name"], i["data_type"], i["dims"]) for i in config["input"]] == [("x", "TYPE_FP32", [4])]
        assert [(o["name"], o["data_type"], o["dims"]) for o in config["output"]] == [("y", "TYPE_FP32", [4])]


@pytest.mark.parametrize(
    ("text", "enabled"),
    [("true", True), ("True", True), ("1", True), ("t", True), ("false", False), ("False", False), ("0", False)],
)
def test_f25_booleans(repository, text, enabled):
    repository.onnx("m", plus(1), config=f"optimization {{ input_pinned_memory {{ enable: {text} }} }}")
    with Server(repository) as server:
        config = get(server, "/v2/models/m/config").json
        assert config["optimization"]["input_pinned_memory"]["enable"] is enabled


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        (
            'name: "m"\nmax_batchsize: 8\n',
            "2:1",
            ["unknown field `max_batchsize` in `ModelConfig`", "did you mean `max_batch_size`?"],
        ),
        (
            'input [\n  {\n    name: "x"\n    datatype: TYPE_FP32\n  }\n]',
            "4:5",
            ["unknown field `datatype` in `ModelInput`", "data_type"],
        ),
        ("input [ { dims: [ four ] } ]", "1:19", ["dims", "four"]),
        ('\n\nmax_batch_size: "8"', "3:17", ["max_batch_size", "integer"]),
        ("instance_group { kind: KIND_TPU }", "1:24", ["kind", "KIND_TPU"]),
        ("max_batch_size: 99999999999", "1:17", ["max_batch_size", "99999999999"]),
        ("input { name: 'x'", "1:", ["}"]),
        ("name: 'm", "1:7", ["name"]),
        ("max_batch_size: 1\nmax_batch_size: 2", "2:", ["max_batch_size"]),
    ],
)
def test_f25_errors_name_file_line_and_field(repository, text, place, what):
    repository.onnx("m", plus(1), config=text)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert f"m/config.pbtxt:{place}" in log
    for part in what:
        assert part in log


@pytest.mark.parametrize(
    "data", [b"\xff\xfe\x00\x01", b"\0" * 100, b"{" * 100_000, b'name: "\xff"'], ids=["BOM", "zeros", "braces", "UTF-8"]
)
def test_f25_broken_files_are_errors(repository, data):
    repository.onnx("m", plus(1), config="")
    (repository.path / "m/config.pbtxt").write_bytes(data)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "m/config.pbtxt" in log


@pytest.mark.parametrize(
    ("text", "errors"),
    [
        ('platform: "onnxruntime_onnx" backend: "embedded"', ["unexpected 'platform' and 'backend' pair"]),
        ('platform: "tensorflow_savedmodel"', ["unexpected platform type 'tensorflow_savedmodel'"]),
        ('backend: "onnxruntim"', ["onnxruntim", "onnxruntime"]),
        ('platform: "ensemble"', ["ensemble scheduling must be set for ensemble 'm'"]),
        ("max_batch_size: -1", ["max_batch_size"]),
    ],
)
def test_f1_f2_refused(repository, text, errors):
    repository.onnx("m", plus(1), config=text)
    code, log = serve_and_fail(repository)
    assert code == 1
    for error in errors:
        assert error in log


@pytest.mark.parametrize(
    "text",
    ['platform: "onnxruntime_onnx"', 'backend: "onnxruntime"', 'platform: "onnxruntime_onnx" backend: "onnxruntime"'],
)
def test_f1_platform_and_backend_are_the_same(repository, text):
    repository.onnx("m", plus(1), config=text)
    with Server(repository) as server:
        config = get(server, "/v2/models/m/config").json
        assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")


def test_f2_without_batches_the_shape_is_the_dims(repository):
    repository.onnx("m", identity("FP32", [2, 3]))
    with Server(repository) as server:
        assert get(server, "/v2/models/m").json["inputs"][0]["shape"] == [2, 3]
        assert infer(server, "m", [tensor("INPUT0", "FP32", [2, 3], [0] * 6)]).json["outputs"][0]["shape"] == [2, 3]
        assert infer(server, "m", [tensor("INPUT0", "FP32", [1, 2, 3], [0] * 6)]).status == 400


def test_f2_f3_batches_up_to_the_maximum(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 3")
    with Server(repository) as server:
        for batch, status in ((1, 200), (3, 200), (4, 400)):
            assert infer(server, "m", [tensor("x", "FP32", [batch, 4], [0] * batch * 4)]).status == status


def test_f3_variable_dims_take_any_size(repository):
    repository.onnx("m", identity("FP32", ["n", "rows", 2]))
    with Server(repository) as server:
        for rows in (1, 5):
            answer = infer(server, "m", [tensor("INPUT0", "FP32", [2, rows, 2], list(range(4 * rows)))])
            assert (answer.json["outputs"][0]["shape"], answer.json["outputs"][0]["data"]) == (
                [2, rows, 2],
                list(range(4 * rows)),
            )
        assert infer(server, "m", [tensor("INPUT0", "FP32", [2, 5, 3], [0] * 30)]).status == 400


def test_f4_reshape(repository):
    io = "{{ name: '{}' data_type: TYPE_FP32 dims: [ 2, 2 ] reshape {{ shape: [ 4 ] }} }}"
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 input [ {io.format('x')} ] output [ {io.format('y')} ]")
    repository.onnx("scalars", identity("FP32", ["n"]))
    with Server(repository) as server:
        answer = infer(server, "m", [tensor("x", "FP32", [1, 2, 2], [1, 2, 3, 4])])
        assert (answer.json["outputs"][0]["shape"], answer.json["outputs"][0]["data"]) == ([1, 2, 2], [2, 3, 4, 5])
        answer = infer(server, "scalars", [tensor("INPUT0", "FP32", [3, 1], [1, 2, 3])])
        assert (answer.json["outputs"][0]["shape"], answer.json["outputs"][0]["data"]) == ([3, 1], [1, 2, 3])


def test_f4_a_reshape_of_another_size_is_refused(repository):
    io = "{{ name: '{}' data_type: TYPE_FP32 dims: [ 2, 3 ] reshape {{ shape: [ 4 ] }} }}"
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 input [ {io.format('x')} ] output [ {io.format('y')} ]")
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "has different size for dims and reshape" in log


def test_f10_instance_groups(repository):
    repository.onnx(
        "m",
        plus(1),
        config="""
        instance_group [
            { count: 3 kind: KIND_CPU }, { name: "mine" kind: KIND_AUTO }, { count: 1 kind: KIND_MODEL } ]""",
    )
    with Server(repository) as server:
        groups = get(server, "/v2/models/m/config").json["instance_group"]
        assert [(g["name"], g["count"], g["kind"]) for g in groups] == [
            ("m_0", 3, "KIND_CPU"),
            ("mine", 2, "KIND_CPU"),
            ("m_2", 1, "KIND_MODEL"),
        ]
        assert infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)]).status == 200


@pytest.mark.parametrize(
    ("group", "error"),
    [
        ("kind: KIND_GPU", "has kind KIND_GPU but no GPUs are available"),
        ("kind: KIND_CPU gpus: [ 0 ]", "has kind KIND_CPU but specifies one or more GPUs"),
        ("kind: KIND_MODEL gpus: [ 0 ]", "has kind KIND_MODEL but specifies one or more GPUs"),
        ("count: -1", "count"),
        ("count: 1000000", "count"),
        ("passive: true", "every instance group of model m is passive"),
        ('host_policy: "p"', "not supported yet"),
    ],
)
def test_f10_f11_f12_instance_groups_that_are_refused(repository, group, error):
    repository.onnx("m", plus(1), config=f"instance_group [ {{ {group} }} ]")
    code, log = serve_and_fail(repository)
    assert code == 1
    assert error in log


def parameter(key, value):
    return f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}\n'


def test_f18_parameters_of_onnxruntime(repository):
    values = {
        "intra_op_thread_count": 2, "inter_op_thread_count": 2, "execution_mode": 1, "enable_mem_arena": 0,
        "enable_mem_pattern": 0, "memory.enable_memory_arena_shrinkage": "cpu:0",
        "session.use_device_allocator_for_initializers": 1, "gpu_mem_limit": 1024,
    }  # fmt: skip
    repository.onnx("m", plus(1), config="".join(parameter(*item) for item in values.items()))
    with Server(repository) as server:
        got = get(server, "/v2/models/m/config").json["parameters"]
        assert got == {key: {"string_value": str(value)} for key, value in values.items()}
        assert "`parameters.gpu_mem_limit`: no effect" in server.log
        assert "`parameters.intra_op_thread_count`" not in server.log
        for _ in range(3):
            answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [0] * 4)])
            assert answer.json["outputs"][0]["data"] == [1] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_thread_count", "many"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "maybe"),
        ("max_queue_size", "0"),
    ],
)
def test_f18_values_that_are_none_are_refused(repository, key, value):
    repository.onnx("m", plus(1), config=parameter(key, value))
    code, log = serve_and_fail(repository)
    assert code == 1
    assert f"parameter `{key}` of model `m` is `{value}`, expected" in log


def test_f18_a_misspelt_key_is_warned_about(repository):
    repository.onnx("m", plus(1), config=parameter("intra_op_threads_count", "1") + parameter("colour", "blue"))
    with Server(repository) as server:
        assert "did you mean `intra_op_thread_count`?" in server.log
        assert "colour" not in server.log


@pytest.mark.parametrize(
    "text",
    [
        "sequence_batching { iterative_sequence: true }",
        'model_operations { op_library_filename: "ops.so" }',
        'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }',
    ],
)
def test_what_is_not_served_yet_is_refused(repository, text):
    repository.onnx("m", plus(1), config="max_batch_size: 8 " + text)
    code, log = serve_and_fail(repository)
    assert code == 1
    assert "not supported yet" in log


def test_f8_f16_f17_what_has_no_effect_is_named_once(repository):
    repository.onnx(
        "m",
        plus(1),
        config="""max_batch_size: 8 dynamic_batching {}
        optimization { priority: PRIORITY_MAX cuda { graphs: true } input_pinned_memory { enable: false }
            execution_accelerators { gpu_execution_accelerator { name: "tensorrt" } } }
        input { name: "x" data_type: TYPE_FP32 dims: 4 format: FORMAT_NONE }
        output { name: "y" data_type: TYPE_FP32 dims: 4 }""",
    )
    with Server(repository) as server:
        for field in (
            "optimization.priority",
            "optimization.cuda",
            "optimization.input_pinned_memory",
            "optimization.execution_accelerators.gpu_execution_accelerator",
        ):
            assert server.log.count(f"`{field}`: no effect") == 1, field


def test_g16_a_config_read_back_over_grpc_is_a_config(repository):
    """What the server shows, it also takes."""
    text = "max_batch_size: 8 instance_group { count: 2 } " + parameter("execution_mode", 0)
    repository.onnx("m", plus(1), config=text)
    with Server(repository) as server, tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        shown = client.get_model_config("m").config
    repository.config("m", str(shown))
    with Server(repository) as server, tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.get_model_config("m").config == shown


def test_f21_g4_calls_with_one_answer_refuse_decoupled_models(repository):
    repository.mock("m", "model_transaction_policy { decoupled: true }", output="echo")
    x = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    x.set_data_from_numpy(np.ones([1, 4], np.float32))
    with Server(repository) as server, tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        assert client.get_model_config("m").config.model_transaction_policy.decoupled
        answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [1] * 4)])
        refusal = "doesn't support models with decoupled transaction policy"
        assert (answer.status, answer.error) == (501, f"HTTP end point {refusal}")
        with pytest.raises(tritonclient.utils.InferenceServerException) as caught:
            client.infer("m", [x])
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert caught.value.message() == f"ModelInfer RPC {refusal}"
        answers = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("m", [x])
        result, error = answers.get(timeout=DEADLINE_S)
        client.stop_stream()
        assert error is None
        assert result.get_response().parameters["triton_final_response"].bool_param
        assert result.as_numpy("y").tolist() == [[1] * 4]


@pytest.mark.parametrize("level", [-1, 0, 1, 2])
def test_f15_levels_of_optimization_change_no_answer(repository, level):
    repository.onnx("m", plus(1), config=f"optimization {{ graph {{ level: {level} }} }}")
    with Server(repository) as server:
        answer = infer(server, "m", [tensor("x", "FP32", [1, 4], [1] * 4)])
        assert answer.json["outputs"][0]["data"] == [2] * 4
        assert get(server, "/v2/models/m/config").json["optimization"]["graph"]["level"] == level
