"""Where weights lie and where an instance runs changes nothing of an answer, to the bit."""

import numpy as np
import pytest

from http_client import infer, post, tensor
from repository import Repository
from server import Server

# Kind -> inputs of a row: name, datatype, dims, and below what integers are.
KINDS = {
    "mlp": [("input", "FP32", [256], None)],
    # Large enough to be kept.
    "cnn:classes=4000": [("input", "FP32", [3, 32, 32], None)],
    "bert-tiny": [
        ("input_ids", "INT64", [24], 1000),
        ("attention_mask", "INT64", [24], 2),
        ("token_type_ids", "INT64", [24], 2),
    ],
}
ROWS = 3
EXPLICIT = "--model-control-mode=explicit"


def config(isolation, instances=1):
    return f"""backend: "onnxruntime" max_batch_size: 8 instance_group {{ count: {instances} kind: KIND_CPU }}
        parameters {{ key: "isolation" value {{ string_value: "{isolation}" }} }}"""


def outputs(server, kind, model="m", seed=1):
    """The bytes of all outputs."""
    random = np.random.default_rng(seed)
    inputs, binary = [], b""
    for name, datatype, dims, below in KINDS[kind]:
        shape = [ROWS, *dims]
        values = random.uniform(-1, 1, shape).astype("<f4") if below is None else random.integers(0, below, shape)
        data = values.tobytes()
        inputs.append(tensor(name, datatype, shape, binary_data_size=len(data)))
        binary += data
    answer = infer(server, model, inputs, binary, parameters={"binary_data_output": True})
    assert answer.status == 200, answer.body
    return answer.parts()[1]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_same_to_the_bit_wherever_weights_lie(repository, tmp_path, kind):
    repository.generate(kind, "m", config=config("thread"))
    with Server(repository, "--weight-cache=off") as server:
        expected = outputs(server, kind)
        assert expected != outputs(server, kind, seed=2)
    weights = tmp_path / "weights"
    # The first server fills the directory, the others use what is there.
    for isolation in ("thread", "thread", "process"):
        repository.config("m", config(isolation, instances=2))
        with Server(repository, f"--weight-cache={weights}") as server:
            assert outputs(server, kind) == expected, isolation
        assert any(path.is_file() for path in weights.rglob("*"))
    repository.config("m", config("process"))
    with Server(repository, "--weight-cache=off") as server:
        assert outputs(server, kind) == expected


def test_variants_that_share_weights_keep_their_own_answers(tmp_path):
    variants = {"base": [], **{f"v{n}": ["--variant", "last-layer", "--variant-seed", n] for n in (1, 2)}}
    apart = {}
    shared = Repository(tmp_path / "shared")
    for name, flags in variants.items():
        repository = Repository(tmp_path / name)
        for into in (repository, shared):
            into.generate("bert-tiny", name, *flags, config=config("thread"))
        with Server(repository, "--weight-cache=off") as server:
            apart[name] = outputs(server, "bert-tiny", name)
    assert len(set(apart.values())) == len(variants)
    # Loaded one after the other, each finds the weights of those before it; then all come out of the cache.
    for _ in range(2):
        with Server(shared, f"--weight-cache={tmp_path / 'weights'}", EXPLICIT) as server:
            for name in variants:
                assert post(server, f"/v2/repository/models/{name}/load").status == 200
                assert outputs(server, "bert-tiny", name) == apart[name]
            # What one lets go stays as it is for the others.
            assert post(server, "/v2/repository/models/base/unload").status == 200
            for name in ("v1", "v2"):
                assert outputs(server, "bert-tiny", name) == apart[name]
