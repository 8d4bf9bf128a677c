"""`skep check`: its whole output over small repositories, and its exit code."""

import json

import pytest

from repository import plus
from server import WITHOUT_LIBRARY, run

# Without a scheduler, so that the output is that of the test's own settings.
IO = """max_batch_size: 1
input {
  name: "x"
  data_type: TYPE_FP32
  dims: 4
}
output {
  name: "y"
  data_type: TYPE_FP32
  dims: 4
}
"""


def check(repository, *flags):
    """Exit code and output, without configurations unless asked for; the repository's path reads `REPO`."""
    if not {"--config", "--json"} & set(flags):
        flags = ("--config", "none", *flags)
    outcome = run("check", repository, *flags)
    assert outcome.stderr == ""
    return outcome.returncode, outcome.stdout.replace(str(repository), "REPO")


def test_a_good_model(repository):
    repository.onnx("good", plus(1), config=IO)
    assert check(repository) == (0, "ok      good  version 1\n1 model, 0 failed\n")
    assert check(repository, "--load") == check(repository)


def test_an_empty_repository(repository):
    assert check(repository) == (
        0,
        "warning: repository `REPO` has no models\n"
        "  expected: REPO/NAME/1/model.onnx, a directory for each model and one for each of its versions\n"
        "0 models, 0 failed\n",
    )
    outcome = run("check", "--json", repository)
    assert (outcome.returncode, outcome.stdout) == (0, "[]\n")
    assert f"warning: repository `{repository}` has no models" in outcome.stderr


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("m/1", "`REPO/m/1` is a version of a model, since it has `model.onnx`, not a repository\n  try: REPO\n"),
        ("m", "`REPO/m` is a model's directory, since it has versions with model files, not a repository\n  try: REPO\n"),
        ("..", "its directory `REPO/../models` has: it looks like the repository\n  try: REPO/../models\n"),
    ],
)
def test_a_directory_that_is_no_repository_fails_and_the_way_out_is_said(repository, place, what):
    repository.onnx("m", plus(1))
    outcome = run("check", "--config=none", repository.path / place)
    assert outcome.returncode == 1
    assert outcome.stdout.startswith("error: ")
    assert what in outcome.stdout.replace(str(repository), "REPO")


def test_a_lone_model_file(repository):
    (repository.path / "net.onnx").write_bytes(plus(1).SerializeToString())
    code, output = check(repository)
    assert code == 1
    assert "try: mkdir -p REPO/net/1 && mv REPO/net.onnx REPO/net/1/model.onnx\n" in output
    # Beside models it is a file too many.
    repository.onnx("m", plus(1))
    code, output = check(repository)
    assert code == 0
    assert "warning: `REPO/net.onnx` is not served" in output


def test_each_fault_with_its_place_and_how_to_mend_it(repository):
    repository.onnx("dims", plus(1), config=IO.replace("dims: 4\n}\noutput", "dims: 5\n}\noutput"))
    repository.onnx("good", plus(1), config=IO)
    repository.onnx("group", plus(1), config=IO + "instance_group [\n  { count: 1 },\n  { kind: KIND_GPU }\n]\n")
    repository.onnx("no-version", plus(1), "v1", config=IO)
    repository.onnx("odd", plus(1), config=IO + "optimization {\n  priority: PRIORITY_MAX\n}\n")
    repository.onnx("policy", plus(1), config=IO + "version_policy { specific { versions: [ 3, 4 ] } }\n")
    repository.onnx("reshape", plus(1), config=IO.replace("dims: 4\n}\noutput", "dims: 4\n  reshape { shape: 5 }\n}\noutput"))
    repository.onnx("typo", plus(1), config=IO + "max_batchsize: 8\n")
    code, output = check(repository)
    assert code == 1
    assert output == """\
failed  dims        version 1
  error: REPO/dims/config.pbtxt:2:7: version 1: `input[0]`: model 'dims', tensor 'x': the model expects 2 dimensions \
(shape [-1,4]) but the model configuration specifies 2 dimensions (an initial batch dimension because \
max_batch_size > 0 followed by the explicit tensor shape, making complete shape [-1,5])
ok      good        version 1
failed  group       version 1
  error: REPO/group/config.pbtxt:14:5: `instance_group[1].kind`: instance group group_1 of model group has kind \
KIND_GPU but no GPUs are available
    write `kind: KIND_CPU`, or start with `--gpu-as-cpu`, which serves the groups of every model on the CPU
failed  no-version
  error: at least one version must be available under the version policy of model 'no-version'
    model 'no-version' has no version: expected a directory named by a positive integer, such as `1`, in \
`REPO/no-version`
ok      odd         version 1
  warning: REPO/odd/config.pbtxt:13:3: `optimization.priority`: no effect: it is for TensorRT models
failed  policy
  error: at least one version must be available under the version policy of model 'policy'
    available: 1
failed  reshape     version 1
  error: REPO/reshape/config.pbtxt:6:13: `input[0].reshape.shape`: model input 'x' has different size for dims and \
reshape for reshape
failed  typo
  error: REPO/typo/config.pbtxt:12:1: unknown field `max_batchsize` in `ModelConfig`
    did you mean `max_batch_size`?
8 models, 6 failed
"""


def test_broken_files_are_found_without_loading(repository):
    repository.onnx("bytes", b"no ONNX", config=IO)
    repository.onnx("labels", plus(1), config=IO.replace("name: \"y\"", "name: \"y\" label_filename: \"absent.txt\""))
    repository.onnx("missing", plus(1), config=IO)
    (repository.path / "missing/1/model.onnx").rename(repository.path / "missing/1/modell.onnx")
    code, output = check(repository)
    assert code == 1
    for text in ("version 1: `REPO/bytes/1/model.onnx`: not an ONNX file", "absent.txt", "found `modell.onnx`"):
        assert text in output
    assert output.endswith("3 models, 3 failed\n")


def test_what_only_a_load_finds(repository):
    warmup = """model_warmup { name: "w" batch_size: 1 inputs { key: "x" value {
        data_type: TYPE_FP32 dims: [ 4 ] zero_data: true } } }"""
    repository.mock("m", config=warmup, max_batch_size=1, fail_every=1)
    assert check(repository) == (0, "ok      m  version 1\n1 model, 0 failed\n")
    code, output = check(repository, "--load")
    assert code == 1
    assert "error: version 1: failed to run warmup 'w': " in output


@pytest.mark.parametrize("form", ["pbtxt", "json"])
def test_the_completed_configuration_is_a_configuration(repository, form):
    repository.onnx("m", plus(1))

    def printed():
        code, output = check(repository, "--config", form)
        assert code == 0
        return [line.removeprefix("    ") for line in output.splitlines() if line.startswith("    ")]

    lines = printed()
    if form == "json":
        assert json.loads("\n".join(lines))["input"][0]["dims"] == [4]
        return
    repository.config("m", "\n".join(lines))
    assert printed() == lines
    assert run("check", repository).stdout == run("check", repository, "--config", "pbtxt").stdout


def test_json(repository):
    repository.onnx("good", plus(1), config=IO + "optimization {\n  priority: PRIORITY_MAX\n}\n")
    repository.onnx("typo", plus(1), config="max_batchsize: 8")
    code, output = check(repository, "--json")
    assert code == 1
    good, typo = json.loads(output)
    config = good.pop("config")
    assert (config["name"], config["max_batch_size"], config["instance_group"][0]["count"]) == ("good", 1, 2)
    place = {"version": None, "file": "REPO/good/config.pbtxt", "line": 13, "column": 3}
    text = "no effect: it is for TensorRT models"
    assert good == {
        "model": "good",
        "versions": [1],
        "ok": True,
        "errors": [],
        "warnings": [{**place, "field": "optimization.priority", "text": text}],
        "objective_ms": None,
    }
    assert typo == {
        "model": "typo",
        "versions": [],
        "ok": False,
        "errors": [
            {
                "version": None,
                "file": "REPO/typo/config.pbtxt",
                "line": 1,
                "column": 1,
                "field": "max_batchsize",
                "text": "unknown field `max_batchsize` in `ModelConfig`\ndid you mean `max_batch_size`?",
            }
        ],
        "warnings": [],
        "config": None,
        "objective_ms": None,
    }


def test_one_model_by_name(repository):
    repository.onnx("a", plus(1), config=IO)
    repository.onnx("b", b"no ONNX", config=IO)
    assert check(repository, "--model=a")[0] == 0
    code, output = check(repository, "--model=nosuch")
    assert (code, output) == (
        1,
        "failed  nosuch\n  error: failed to load 'nosuch', failed to poll from model repository\n"
        "    `REPO` has no directory `nosuch`; available models: `a`, `b`\n1 model, 1 failed\n",
    )


def test_flags_of_serve(repository):
    repository.onnx("m", plus(1), config="max_batch_size: 1")
    (repository.path / "m/configs").mkdir()
    (repository.path / "m/configs/big.pbtxt").write_text("max_batch_size: many")
    assert check(repository)[0] == 0
    code, output = check(repository, "--model-config-name=big")
    assert code == 1
    assert "REPO/m/configs/big.pbtxt:1:17: " in output
    code, output = check(repository, "--disable-auto-complete-config")
    assert code == 1
    assert "has no output" in output


def test_a_repository_that_is_not_there(repository):
    outcome = run("check", repository.path / "nosuch")
    assert outcome.returncode == 1
    assert "cannot read model repository" in outcome.stderr


def test_without_the_library_the_configuration_is_checked_all_the_same(repository):
    backend = 'backend: "onnxruntime"\n'
    decoupled = "model_transaction_policy { decoupled: true }\n"
    repository.onnx("cache", plus(1), config=IO + backend + "response_cache { enable: true }\n" + decoupled)
    repository.onnx("fine", plus(1), config=IO + backend)
    repository.onnx("gpu", plus(1), config=IO + backend + "instance_group {\n  kind: KIND_GPU\n}\n")
    repository.onnx("platform", plus(1), config=IO + 'platform: "onnxruntime_onnx"\n')
    repository.onnx("sequence", plus(1), config=IO + backend + "sequence_batching { iterative_sequence: true }\n")
    outcome = run("check", "--config=none", repository, **WITHOUT_LIBRARY)
    assert outcome.returncode == 1
    parts = outcome.stdout.replace(str(repository), "REPO").split("failed  ")
    assert len(parts) == 6, outcome.stdout
    for name, part in zip(("cache", "fine", "gpu", "platform", "sequence"), parts[1:], strict=True):
        field = "platform" if name == "platform" else "backend"
        assert f"REPO/{name}/config.pbtxt:12:1: `{field}`: ONNX Runtime's library was not found" in part
        assert "`--onnxruntime-library`" in part and "`ORT_DYLIB_PATH`" in part
    for name, place, words in (("cache", "13", "Response Cache"), ("gpu", "14", "KIND_GPU"), ("sequence", "13", "sequence_batching")):
        (part,) = [part for part in parts[1:] if f"REPO/{name}/" in part]
        assert f"REPO/{name}/config.pbtxt:{place}" in part and words in part


@pytest.mark.parametrize("target", ["model.onnx", "nowhere.onnx"])
def test_a_model_file_that_is_a_link_to_nowhere(repository, target):
    repository.onnx("m", plus(1), config=IO)
    file = repository.path / "m/1/model.onnx"
    file.unlink()
    file.symlink_to(target)
    code, output = check(repository)
    assert code == 1
    assert f"`REPO/m/1/model.onnx` is a link that leads nowhere: it names `{target}`\n" in output
    assert "rename" not in output
