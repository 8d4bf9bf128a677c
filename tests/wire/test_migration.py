"""A repository and a command line of Triton's, as they are: what is served, and what is said of the rest."""

import pytest

import weights
from http_client import get, infer, post, tensor
from repository import plus
from server import READY, STARTED, Server, run, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]

ON_GPUS = """max_batch_size: 8
instance_group [
  { count: 2 kind: KIND_GPU gpus: [ 0, 1 ] },
  { kind: KIND_MODEL gpus: [ 0 ] },
  { kind: KIND_AUTO gpus: [ 0 ] }
]
optimization {
  cuda { graphs: true }
  execution_accelerators {
    gpu_execution_accelerator { name: "tensorrt" }
    cpu_execution_accelerator { name: "openvino" }
  }
}
parameters { key: "gpu_mem_limit" value { string_value: "1024" } }
"""


def refusals(repository, *flags):
    """The lines of errors of a check, and the log of a start: both must say what is asked for."""
    outcome = run("check", "--config=none", repository, *flags)
    assert outcome.returncode == 1
    code, log = serve_and_fail(repository, *flags)
    assert code == 1
    # Lines of a log are one line each.
    return outcome.stdout, log.replace("\\n", "\n    ").replace('\\"', '"')


@pytest.mark.parametrize(
    ("text", "line", "found", "instead"),
    [
        ('name: "m"\nbackend: "python"', 2, "backend `python` of model `m` is unknown", "export the network that `model.py`"),
        ('\n\nplatform: "pytorch_libtorch"', 3, "unexpected platform type 'pytorch_libtorch' for m", "torch.onnx.export"),
        ('platform: "tensorflow_savedmodel"', 1, "unexpected platform type 'tensorflow_savedmodel'", "tf2onnx.convert"),
        ('backend: "openvino"', 1, "backend `openvino`", "the ONNX file that it was converted from"),
        ('platform: "tensorrt_plan"', 1, "unexpected platform type 'tensorrt_plan'", "the ONNX file that it was built from"),
        ('backend: "dali"', 1, "backend `dali`", "prepare the data in the client"),
        ('backend: "mine"', 1, "backend `mine`", 'write `backend: "onnxruntime"`'),
        ('backend: "onnxruntim"', 1, "backend `onnxruntim`", "did you mean `onnxruntime`?"),
        ('\nplatform: "ensemble"', 2, "ensemble scheduling must be set for ensemble 'm'", "`ensemble_scheduling { step"),
        ("sequence_batching { iterative_sequence: true }", 1, "`sequence_batching.iterative_sequence` of model `m` is not supported yet", "a request for each iteration"),
        ("instance_group {\n  kind: KIND_GPU\n}", 2, "has kind KIND_GPU but no GPUs are available", "`--gpu-as-cpu`"),
        ("instance_group {\n\n gpus: 0 }", 3, "specifies one or more GPUs", "`--gpu-as-cpu`"),
        ('parameters { key: "a" }\nparameters { key: "max_queue_size" value { string_value: "0" } }', 2, "`max_queue_size`", ""),
    ],
)
def test_a_refusal_says_file_line_what_was_found_and_the_way_out(repository, text, line, found, instead):
    repository.onnx("m", plus(1), config=text)
    for said in refusals(repository):
        assert f"{repository}/m/config.pbtxt:{line}:" in said
        assert found in said
        assert instead in said
        assert said.count(found) == 1, "a failure is said once"


def test_a_file_of_another_kind_is_named(repository):
    repository.onnx("m", plus(1))
    (repository.path / "m/1/model.onnx").rename(repository.path / "m/1/model.pt")
    for said in refusals(repository):
        assert "found `model.pt`" in said
        assert "looks like a PyTorch model: export it to ONNX with `torch.onnx.export`" in said


def test_a_model_to_load_that_is_not_there(repository):
    repository.onnx("digits", plus(1))
    repository.onnx("letters", plus(1))
    for name, hint in (("digit", "did you mean `digits`?"), ("zebra", "available models: `digits`, `letters`")):
        code, log = serve_and_fail(repository, "--model-control-mode=explicit", f"--load-model={name}")
        assert code == 1
        assert f"failed to load '{name}', failed to poll from model repository" in log
        assert f"`{repository}` has no directory `{name}`; {hint}" in log
        assert hint in run("check", repository, f"--model={name}").stdout
    with Server(repository, "--model-control-mode=explicit") as server:
        # Triton's text alone, for clients.
        assert post(server, "/v2/repository/models/digit/load").error == (
            "failed to load 'digit', failed to poll from model repository"
        )


def test_groups_of_gpus_are_served_on_the_cpu(repository):
    repository.onnx("m", plus(1), config=ON_GPUS)
    repository.onnx("plain", plus(1))
    assert all("`--gpu-as-cpu`" in said for said in refusals(repository))
    with Server(repository, "--gpu-as-cpu") as server:
        groups = get(server, "/v2/models/m/config").json["instance_group"]
        assert [(g["count"], g["kind"], g["gpus"]) for g in groups] == [
            (2, "KIND_CPU", []),
            (1, "KIND_MODEL", []),
            (2, "KIND_CPU", []),
        ]
        answer = infer(server, "m", ZEROS)
        assert answer.json["outputs"][0]["data"] == [1] * 4
        warnings = [line for line in server.lines if line.startswith("W")]
        assert len(warnings) == 1, warnings
        assert f"{repository}/m/config.pbtxt:3:" in warnings[0]
        for field in ("cuda", "gpu_execution_accelerator", "cpu_execution_accelerator", "gpu_mem_limit"):
            assert field in warnings[0]
    outcome = run("check", "--config=none", "--gpu-as-cpu", repository)
    assert outcome.returncode == 0
    assert outcome.stdout.count("warning: ") == 1
    assert "served on the CPU (`--gpu-as-cpu`); no effect of `optimization.cuda`" in outcome.stdout


def test_accelerators_are_ignored_in_worker_processes(repository, tmp_path):
    """The process of an instance, and the one that bakes."""
    accelerators = 'optimization { execution_accelerators { cpu_execution_accelerator { name: "openvino" } } }'
    repository.onnx("m", plus(1), config=f"{accelerators} {weights.config('process')}")
    repository.generate("bert-tiny", "large", config=f"{accelerators} {weights.config('thread')}")
    outcome = run("check", "--config=none", "--load", "--gpu-as-cpu", repository)
    assert outcome.returncode == 0, outcome.stdout
    flags = [f"--weight-cache={tmp_path / 'weights'}", "--weight-bake=foreground"]
    with Server(repository, "--gpu-as-cpu", *flags) as server:
        assert infer(server, "m", ZEROS).json["outputs"][0]["data"] == [1] * 4
        assert "execution_accelerators" not in get(server, "/v2/models/m/config").json["optimization"]
        assert "was not baked" not in server.log
        assert "without a baked form" not in server.log
    assert any(path.is_file() for path in (tmp_path / "weights").rglob("*"))


HARMLESS = [
    "--allow-sagemaker=false",
    "--sagemaker-port=8080", "--sagemaker-safe-port-range=8000-9000", "--sagemaker-thread-count=8", "--allow-vertex-ai=false",
    "--vertex-ai-port=8080", "--vertex-ai-thread-count=8", "--vertex-ai-default-model=m",
    "--host-policy=p,numa-node=0", "--grpc-infer-thread-count=2",
    "--grpc-max-response-pool-size=8", "--tf-allow-soft-placement=true", "--tf-gpu-memory-fraction=0.5",
    "--tf-add-vgpu=0:1:1024", "--http-thread-count=8", "--pinned-memory-pool-byte-size=0", "--enable-peer-access=true",
]  # fmt: skip

HONOURED = [
    "--log-info=true", "--log-verbose=0", "--strict-model-config=false", "--metrics-interval-ms=1000", "--allow-gpu-metrics=true",
    "--http-header-forward-pattern=x-.*", "--allow-cpu-metrics=true", "--exit-timeout-secs=30", "--model-namespacing=false",
    "--cache-config=local,size=1048576", "--allow-client-shm=true",
    "--rate-limit=execution_count", "--rate-limit-resource=R1:10:0",
    "--trace-level=OFF", "--trace-rate=1000", "--trace-count=-1", "--trace-log-frequency=0",
]  # fmt: skip


def test_tritons_flags_start_the_server_and_those_without_effect_are_named_once(repository):
    repository.onnx("m", plus(1))
    foreign = ["--backend-config=tensorflow,version=2", "--backend-config=python,shm-default-byte-size=1048576"]
    with Server(f"--model-store={repository}", *HARMLESS, *HONOURED, *foreign, until=READY) as server:
        assert infer(server, "m", ZEROS).status == 200
        for name in {flag.split("=")[0] for flag in HARMLESS}:
            assert server.log.count(f"accepted without effect: {name}: ") == 1, name
        for flag in foreign:
            assert server.log.count(f"accepted without effect: `{flag}`") == 1
        assert not any(f"without effect: {flag.split('=')[0]}" in server.log for flag in HONOURED)
    help_text = run("serve", "--help").stdout
    assert all(flag.split("=")[0] in help_text for flag in HARMLESS)


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("--allow-sagemaker=true", "SageMaker's endpoints are not served"),
        ("--allow-vertex-ai=true", "Vertex AI's endpoints are not served"),
        ("--rate-limit=sometimes", "execution_count"),
    ],
)
def test_flags_that_open_what_is_not_served_are_refused(repository, flag, why):
    repository.onnx("m", plus(1))
    code, log = serve_and_fail(repository, flag)
    assert code == 1
    assert flag.split("=")[0] in log
    assert why in log


@pytest.mark.parametrize("strict", [True, False])
def test_the_log_ends_as_the_probe_answers(repository, strict):
    repository.onnx("broken", plus(1), config="\nmax_batchsize: 8")
    repository.onnx("good", plus(1))
    repository.mock("unlucky", load_error="out of luck")
    with Server(repository, "--exit-on-error=false", f"--strict-readiness={strict}") as server:
        last = [line for line in server.lines if STARTED in line][-1]
        assert get(server, "/v2/health/ready").status == (400 if strict else 200)
        assert ("ready for requests" in server.log) is not strict
        assert "2 of 3 models failed to load: `broken`, `unlucky`" in last
        assert ("--strict-readiness=false" in last) is strict
        # Each failure once, with its place.
        assert server.log.count(f"{repository}/broken/config.pbtxt:2:1: ") == 1
        assert server.log.count("out of luck") == 1
        assert infer(server, "good", ZEROS).status == 200


def test_the_objective_under_other_names(repository):
    keys = ["slo_latency", "SLO_LATENCY_MS", "slo-latency-ms", "slo_ms", "latency_slo_ms", "max_latency_ms"]
    silent = ["EXECUTION_ENV_PATH", "INFERENCE_MODE", "owner", "slo_tier"]
    text = "\n".join(f'parameters {{ key: "{key}" value {{ string_value: "50" }} }}' for key in keys + silent)
    repository.onnx("m", plus(1), config=text)
    outcome = run("check", "--config=none", repository)
    assert outcome.returncode == 0
    with Server(repository) as server:
        for line, key in enumerate(keys, 1):
            for said in (outcome.stdout, server.log):
                assert f"{repository}/m/config.pbtxt:{line}:12: `parameters.{key}`: unknown key" in said
        for said in (outcome.stdout, server.log):
            assert said.count("did you mean `slo_latency_ms`?") == len(keys)
            assert not any(key in said for key in silent)


@pytest.mark.parametrize(
    ("place", "text"),
    [("", "has no models"), ("m/1", "is a version of a model"), ("m", "is a model's directory"), ("..", "has: it looks like")],
)
def test_a_directory_that_is_no_repository_is_said_at_the_start(repository, place, text):
    if place:
        repository.onnx("m", plus(1))
    with Server(repository.path / place, "--exit-on-error=false") as server:
        assert any(line.startswith("W") and text in line for line in server.lines), server.log


@pytest.mark.parametrize(
    ("path", "hint"), [("notes.txt", "a repository is a directory"), ("s3://bucket/models", "mount them")]
)
def test_a_repository_that_cannot_be_read_says_what_one_is(repository, path, hint):
    (repository.path / "notes.txt").write_text("no model")
    code, log = serve_and_fail(path if "://" in path else repository.path / path)
    assert code == 1
    assert hint in log
