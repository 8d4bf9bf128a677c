"""A model by itself: an .onnx file, or a directory that holds `model.onnx`."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from http_client import get, infer, tensor
from repository import graph, plus
from server import Server, run, serve_and_fail

X = [tensor("x", "FP32", [1, 4], [1, 2, 3, 4])]


def answers(server, name, number=1):
    answer = infer(server, name, X)
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"] == [number + one for one in (1, 2, 3, 4)]


def links():
    return set(Path(tempfile.gettempdir()).glob("skep-bare-*"))


@pytest.fixture
def models(tmp_path):
    """A file with a name of its own, and a directory as KServe mounts it."""
    given = tmp_path / "given"
    mounted = given / "models"
    mounted.mkdir(parents=True)
    (given / "birds.onnx").write_bytes(plus(1).SerializeToString())
    (mounted / "model.onnx").write_bytes(plus(2).SerializeToString())
    return given


def test_a_file_is_served_under_its_name(models):
    before = links()
    with Server(models / "birds.onnx") as server:
        assert answers(server, "birds")
        assert f"serving `{models}/birds.onnx` as model `birds`" in server.log
        assert links() - before
        assert server.stop() == 0
    assert links() == before, "the links went with the server"


def test_a_directory_is_served_under_its_name_or_the_given_one(models):
    with Server(models / "models") as server:
        assert answers(server, "models", 2)
    with Server(models / "models", "--model-name=bird-classifier") as server:
        assert answers(server, "bird-classifier", 2)
    with Server(models / "models" / "model.onnx") as server:
        assert answers(server, "models", 2)


def test_as_kserve_starts_it(models):
    flags = ["--grpc-port=0", "--http-port=0", "--allow-grpc=true", "--allow-http=true", "--allow-metrics=false"]
    with Server(f"--model-store={models}/models", *flags, "--model-name=m", ports=[]) as server:
        assert answers(server, "m", 2)


def test_files_and_repositories_are_served_together(models, repository):
    repository.onnx("other", plus(3))
    with Server(repository, models / "birds.onnx", models / "models") as server:
        assert answers(server, "other", 3) and answers(server, "birds") and answers(server, "models", 2)


def test_its_configuration_and_labels_lie_beside_it(models):
    folder = models / "models"
    (folder / "config.pbtxt").write_text(
        'max_batch_size: 4 output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] label_filename: "labels.txt" }'
    )
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    with Server(folder) as server:
        assert get(server, "/v2/models/models/config").json["max_batch_size"] == 4
        outputs = [{"name": "y", "parameters": {"classification": 1}}]
        answer = infer(server, "models", X, outputs=outputs)
        assert answer.json["outputs"][0]["data"] == ["6.000000:3:d"]


def test_its_data_may_lie_beside_it(tmp_path):
    weights = onnx.numpy_helper.from_array(np.arange(1000, dtype=np.float32), "w")
    nodes = [helper.make_node("Gather", ["w", "i"], ["y"])]
    model = graph(nodes, [("i", "INT64", [2])], [("y", "FP32", [2])], [weights])
    onnx.save_model(
        model, tmp_path / "table.onnx", save_as_external_data=True, location="table.data", size_threshold=0
    )
    with Server(tmp_path / "table.onnx") as server:
        answer = infer(server, "table", [tensor("i", "INT64", [2], [7, 900])])
        assert answer.status == 200, answer.body
        assert answer.json["outputs"][0]["data"] == [7, 900]


def test_what_is_not_clear_is_said(models, repository, tmp_path):
    repository.onnx("m", plus(1))
    for arguments, words in [
        ([repository, "--model-name=x"], "--model-name names a model by itself"),
        ([models / "birds.onnx", models / "models", "--model-name=x"], "--model-name names a model by itself"),
        ([models / "birds.onnx", "--model-name=a/b"], "a/b"),
    ]:
        outcome = run("serve", *arguments)
        assert outcome.returncode != 0 and words in outcome.stderr, outcome.stderr
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    code, log = serve_and_fail(broken)
    assert code == 1 and "broken" in log and "panicked" not in log
    # A version's directory is taken for a mistake, unless the model is named.
    version = Path(repository) / "m" / "1"
    with Server(version) as server:
        assert "is a version of a model" in server.log
    with Server(version, "--model-name=m") as server:
        assert answers(server, "m")
