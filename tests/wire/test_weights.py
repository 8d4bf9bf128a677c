"""Where weights lie and where an instance runs changes nothing of an answer, to the bit."""

import pytest

from http_client import post
from repository import Repository
from server import Server
from weights import KINDS, config, outputs

EXPLICIT = "--model-control-mode=explicit"
# A first load bakes.
FOREGROUND = "--weight-bake=foreground"


@pytest.mark.parametrize("backend", ["onnxruntime", "embedded"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_same_to_the_bit_wherever_weights_lie(repository, tmp_path, kind, backend):
    repository.generate(kind, "m", config=config("thread", backend=backend))
    with Server(repository, "--weight-cache=off") as server:
        expected = outputs(server, kind)
        assert expected != outputs(server, kind, seed=2)
    weights = tmp_path / "weights"
    # The first server fills the directory, the others use what is there.
    for isolation in ("thread", "thread", "process"):
        repository.config("m", config(isolation, instances=2, backend=backend))
        with Server(repository, f"--weight-cache={weights}", FOREGROUND) as server:
            assert outputs(server, kind) == expected, isolation
        assert any(path.is_file() for path in weights.rglob("*"))
    repository.config("m", config("process", backend=backend))
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
        with Server(shared, f"--weight-cache={tmp_path / 'weights'}", EXPLICIT, FOREGROUND) as server:
            for name in variants:
                assert post(server, f"/v2/repository/models/{name}/load").status == 200
                assert outputs(server, "bert-tiny", name) == apart[name]
            # What one lets go stays as it is for the others.
            assert post(server, "/v2/repository/models/base/unload").status == 200
            for name in ("v1", "v2"):
                assert outputs(server, "bert-tiny", name) == apart[name]
