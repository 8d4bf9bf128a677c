"""Instances whose intermediate tensors come from an allocator that their configuration names."""

import pytest

import plugins
from http_client import get, infer, post, tensor
from metrics import metrics, wait_metric
from server import Server, run

ONE = "max_batch_size: 8 instance_group { count: 1 kind: KIND_CPU }"


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'


def figure(server, name, **labels):
    return metrics(server)[name, frozenset(labels.items())]


def answers(server, model="cnn", batches=(1, 2, 1, 3)):
    """What a model answers to inputs that are all alike."""
    [described] = get(server, f"/v2/models/{model}").json["inputs"]
    name, shape = described["name"], described["shape"][1:]
    outputs = []
    for batch in batches:
        count = batch
        for extent in shape:
            count *= extent
        answer = infer(server, model, [tensor(name, "FP32", [batch, *shape], [0.5] * count)])
        assert answer.status == 200, answer.body
        outputs.append(answer.json["outputs"])
    return outputs


@pytest.fixture
def expected(repository):
    """What the planned arena gives."""
    repository.generate("cnn", config=ONE)
    with Server(repository) as server:
        return answers(server)


@pytest.mark.parametrize("text", ["bfc", "skep", "pytorch_caching:max_split_size=20MiB", "slab", "cuda_async"])
def test_a_configuration_names_an_allocator(repository, expected, text):
    repository.config("cnn", f"{ONE} {parameter('allocator', text)}")
    with Server(repository, "--model-control-mode=explicit", "--load-model=cnn") as server:
        assert answers(server) == expected
        labels = {"model": "cnn", "version": "1", "instance": "cnn_0_0"}
        used, reserved = (figure(server, "skep_run_memory_bytes", kind=kind, **labels) for kind in ("used", "reserved"))
        assert 0 < used <= reserved
        assert figure(server, "skep_runs_total", memory="unplanned", **labels) == 4
        assert figure(server, "skep_run_memory_reserved_bytes") == 0, "no arena"
        assert post(server, "/v2/repository/models/cnn/unload", {}).status == 200
        wait_metric(server, "skep_allocator_reserved_bytes", lambda value: value == 0)


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_library_of_your_own_serves_runs(repository, expected, tmp_path, isolation):
    library = plugins.example(tmp_path)
    repository.config("cnn", f"{ONE} {parameter('allocator', 'mine')} {parameter('isolation', isolation)}")
    with Server(repository, f"--allocator-library=mine={library}") as server:
        assert answers(server) == expected
        labels = {"model": "cnn", "version": "1", "instance": "cnn_0_0"}
        assert figure(server, "skep_run_memory_bytes", kind="reserved", **labels) > 0
        assert "broke its contract" not in server.log


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_library_that_breaks_its_contract_loses_no_request(repository, expected, tmp_path, isolation):
    library = plugins.wrong(tmp_path, "overlapping")
    repository.config("cnn", f"{ONE} {parameter('allocator', 'mine')} {parameter('isolation', isolation)}")
    with Server(repository, f"--allocator-library=mine={library}") as server:
        assert answers(server) == expected
        server.wait_for("allocator `mine` broke its contract: block 5 (")
        assert server.log.count("broke its contract") == 1


def test_an_allocator_that_does_not_exist_fails_its_model_alone(repository):
    repository.generate("cnn", "right", config=ONE)
    repository.generate("cnn", "wrong", config=f"{ONE} {parameter('allocator', './libmine.so')}")
    with Server(repository, "--exit-on-error=false") as server:
        assert len(answers(server, "right")) == 4
        assert "there is no allocator `./libmine.so`, expected one of `bfc`" in server.log
        assert get(server, "/v2/models/wrong/ready").status == 400
    outcome = run("check", repository, "--load")
    assert outcome.returncode == 1 and "there is no allocator `./libmine.so`" in outcome.stdout + outcome.stderr


def test_a_library_that_cannot_be_used_ends_the_start(repository, tmp_path):
    lacking = plugins.compiled(tmp_path, "lacking", "int nothing;")
    for value, words in [
        (f"mine={lacking}", "lacks the function `skep_allocator_create`, expected those of `include/skep_allocator.h`"),
        (f"mine={tmp_path}/libabsent.so", "cannot be opened as a library"),
        (f"bfc={lacking}", "`bfc` is an allocator of Skep's own: choose another name"),
        (str(lacking), "expected a name and a file, as in mine=./libmine.so"),
    ]:
        outcome = run("serve", repository, "--allocator-library", value)
        assert outcome.returncode != 0 and words in outcome.stderr, outcome.stderr
