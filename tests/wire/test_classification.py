"""Classification: in the place of an output its best classes, with their labels, over both protocols."""

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from tritonclient.utils import InferenceServerException

from http_client import infer, post, tensor
from repository import Repository, identity
from server import Server

VALUES = [0.5, 3.25, -1, 7, 7, 0, 1e10, 1e-7, 0.1, 123456.789]
LABELS = "".join(f"class_{number}\n" for number in range(10))
BEST = [
    "10000000000.000000:6:class_6",
    "123456.789062:9:class_9",
    "7.000000:3:class_3",
    "7.000000:4:class_4",
    "3.250000:1:class_1",
    "0.500000:0:class_0",
    "0.100000:8:class_8",
    "0.000000:7:class_7",
    "0.000000:5:class_5",
    "-1.000000:2:class_2",
]


def model(repository, name, datatype, kind, dims, batch=0, labels=None):
    shape = [f"d{axis}" if dim == -1 else dim for axis, dim in enumerate(dims)]
    io = f"data_type: {kind} dims: {dims}"
    file = "" if labels is None else 'label_filename: "labels.txt"'
    config = f'max_batch_size: {batch} input {{ name: "INPUT0" {io} }} output {{ name: "OUTPUT0" {io} {file} }}'
    repository.onnx(name, identity(datatype, (["batch"] if batch else []) + shape), config=config)
    if labels is not None:
        (repository.path / name / "labels.txt").write_text(labels, newline="")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("classes"))
    model(repository, "batched", "FP32", "TYPE_FP32", [10], 8, LABELS)
    model(repository, "flat", "FP32", "TYPE_FP32", [-1])
    model(repository, "plane", "FP32", "TYPE_FP32", [2, 3], 8, LABELS)
    model(repository, "some", "FP32", "TYPE_FP32", [10], 8, "class_0\r\n\nclass_2")
    model(repository, "whole", "INT32", "TYPE_INT32", [10], 8)
    model(repository, "flags", "BOOL", "TYPE_BOOL", [-1])
    model(repository, "halves", "FP16", "TYPE_FP16", [-1])
    model(repository, "strings", "BYTES", "TYPE_STRING", [-1])
    with Server(repository) as running:
        yield running


def wanted(count, **parameters):
    return [{"name": "OUTPUT0", "parameters": {"classification": count, **parameters}}]


def classes(server, model, shape, data, count, datatype="FP32", **parameters):
    answer = infer(server, model, [tensor("INPUT0", datatype, shape, data)], outputs=wanted(count, **parameters))
    assert answer.status == 200, answer.body
    return answer


@pytest.mark.parametrize("count", [1, 3, 10, 100, 2**63])
def test_h14_the_best_classes_with_their_labels(server, count):
    output = classes(server, "batched", [1, 10], VALUES, count).json["outputs"][0]
    expected = BEST[:count]
    assert output == {"name": "OUTPUT0", "datatype": "BYTES", "shape": [1, len(expected)], "data": expected}


def test_h14_no_classes_is_the_output_itself(server):
    assert classes(server, "batched", [1, 10], VALUES, 0).json["outputs"][0]["datatype"] == "FP32"


def test_h14_each_item_of_a_batch(server):
    data = [*VALUES, *reversed(VALUES)]
    output = classes(server, "batched", [2, 10], data, 2).json["outputs"][0]
    assert output["shape"] == [2, 2]
    assert output["data"] == [*BEST[:2], "10000000000.000000:3:class_3", "123456.789062:0:class_0"]


def test_h14_classes_count_through_all_dimensions(server):
    output = classes(server, "plane", [1, 2, 3], [1, 2, 3, 4, 5, 6], 2).json["outputs"][0]
    assert (output["shape"], output["data"]) == ([1, 2], ["6.000000:5:class_5", "5.000000:4:class_4"])


def test_h14_whole_numbers_and_no_labels(server):
    data = [5, 4, -3, 2, 1, 0, 9, 2147483647, -2147483648, 8]
    output = classes(server, "whole", [1, 10], data, 10, "INT32").json["outputs"][0]
    assert output["data"][:3] == ["2147483647:7", "9:6", "8:9"]
    assert output["data"][-1] == "-2147483648:8"


def test_h14_without_a_batch_dimension(server):
    output = classes(server, "flat", [4], [1, 2, 3, 4], 2).json["outputs"][0]
    assert (output["shape"], output["data"]) == ([2], ["4.000000:3", "3.000000:2"])
    output = classes(server, "flat", [0], [], 2).json["outputs"][0]
    assert (output["shape"], output["data"]) == ([0], [])


def test_r22_lines_that_are_missing_or_empty_give_no_label(server):
    output = classes(server, "some", [1, 10], [3, 2, 1, *[0] * 7], 4).json["outputs"][0]
    assert output["data"] == ["3.000000:0:class_0", "2.000000:1", "1.000000:2:class_2", "0.000000:3"]


def test_h13_classes_as_binary_data(server):
    answer = classes(server, "batched", [1, 10], VALUES, 2, binary_data=True)
    head, blob = answer.parts()
    assert head["outputs"][0] == {
        "name": "OUTPUT0",
        "datatype": "BYTES",
        "shape": [1, 2],
        "parameters": {"binary_data_size": len(blob)},
    }
    assert blob == b"".join(len(text).to_bytes(4, "little") + text.encode() for text in BEST[:2])


@pytest.mark.parametrize("count", [-1, "2", 1.5, True, None])
def test_h13_an_invalid_count_is_refused(server, count):
    answer = infer(server, "batched", [tensor("INPUT0", "FP32", [1, 10], VALUES)], outputs=wanted(count))
    expected = "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer"
    assert (answer.status, answer.error) == (400, expected)


@pytest.mark.parametrize(("model", "datatype", "data"), [("flags", "BOOL", [True]), ("strings", "BYTES", ["a"])])
def test_h14_datatypes_without_an_order(server, model, datatype, data):
    answer = infer(server, model, [tensor("INPUT0", datatype, [1], data)], outputs=wanted(1))
    expected = f"class result not available for output due to unsupported type '{datatype}'"
    assert (answer.status, answer.error) == (400, expected)
    assert classes(server, "flat", [1], [1], 1).json["outputs"][0]["data"] == ["1.000000:0"]


def test_h14_through_the_http_client(server):
    data = httpclient.InferInput("INPUT0", [1, 10], "FP32")
    data.set_data_from_numpy(np.array([VALUES], np.float32))
    for binary in (True, False):
        output = httpclient.InferRequestedOutput("OUTPUT0", binary_data=binary, class_count=3)
        with httpclient.InferenceServerClient(server.http) as client:
            result = client.infer("batched", [data], outputs=[output]).as_numpy("OUTPUT0")
        texts = [text.decode() if isinstance(text, bytes) else text for text in result.flatten()]
        assert (result.shape, texts) == ((1, 3), BEST[:3])


def grpc_classes(server, model, values, datatype, count):
    data = grpcclient.InferInput("INPUT0", values.shape, datatype)
    data.set_data_from_numpy(values)
    output = grpcclient.InferRequestedOutput("OUTPUT0", class_count=count)
    with grpcclient.InferenceServerClient(server.grpc) as client:
        return client.infer(model, [data], outputs=[output]).as_numpy("OUTPUT0")


def test_h14_through_the_grpc_client(server):
    values = np.array([VALUES, VALUES[::-1]], np.float32)
    best = grpc_classes(server, "batched", values, "FP32", 2)
    assert best.tolist() == [
        [BEST[0].encode(), BEST[1].encode()],
        [b"10000000000.000000:3:class_3", b"123456.789062:0:class_0"],
    ]
    for count, expected in [(-1, "expected >= 0"), (1, "unsupported type 'FP16'")]:
        with pytest.raises(InferenceServerException, match=expected):
            grpc_classes(server, "halves", np.array([1, 2], np.float16), "FP16", count)


def test_r22_a_missing_file_fails_the_load_and_a_reload_reads_it_again(repository):
    model(repository, "m", "FP32", "TYPE_FP32", [2], 0, "old\n")
    model(repository, "broken", "FP32", "TYPE_FP32", [2], 0, "gone\n")
    (repository.path / "broken" / "labels.txt").unlink()
    with Server(repository, "--model-control-mode=explicit", "--load-model=m") as server:
        assert classes(server, "m", [2], [1, 0], 1).json["outputs"][0]["data"] == ["1.000000:0:old"]
        (repository.path / "m" / "labels.txt").write_text("new\n")
        assert classes(server, "m", [2], [1, 0], 1).json["outputs"][0]["data"] == ["1.000000:0:old"]
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert classes(server, "m", [2], [1, 0], 1).json["outputs"][0]["data"] == ["1.000000:0:new"]
        answer = post(server, "/v2/repository/models/broken/load")
        assert answer.status == 400
        assert "failed to open text file for read" in answer.error and "labels.txt" in answer.error
