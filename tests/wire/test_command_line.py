"""The command line: Triton's flags, start lines, exit codes, what is said when the start fails."""

import json
import re
import socket
import subprocess

import onnx
import pytest
import tritonclient.grpc

from http_client import get, infer, request, tensor
from repository import Repository, plus
from server import BINARY, LOCAL_PORTS, ROOT, Server, run, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


def test_c31_help_names_the_flags_and_ends_with_0():
    outcome = run("serve", "--help")
    assert outcome.returncode == 0
    for flag in ("--model-repository", "--http-port", "--exit-on-error", "--log-verbose", "--backend-config"):
        assert flag in outcome.stdout


@pytest.mark.parametrize(
    "flag", ["--nosuch", "--http-port=abc", "--http-port=99999", "--exit-on-error=maybe", "--model-control-mode=some"]
)
def test_c31_unknown_flags_and_values_are_errors(simple_repository, flag):
    code, log = serve_and_fail(simple_repository, flag)
    assert code == 1
    assert flag.split("=")[0] in log


@pytest.mark.parametrize(
    "flags",
    [
        ["serve", "models", "--http-port", "-1"],
        ["serve", "models", "--exit-timeout-secs", "-5"],
        ["store", "serve", "--keep-alive", "-1"],
        ["bake", "model.onnx", "--weight-cache-bytes", "-1"],
        ["plan", "model.onnx", "--budget", "-1"],
    ],
)
def test_a_negative_number_is_a_wrong_value_and_no_unknown_flag(flags):
    outcome = run(*flags)
    assert outcome.returncode == 1
    assert f"invalid value '{flags[-1]}' for '{flags[-2]} <" in outcome.stderr
    assert "tip:" not in outcome.stderr


def test_c31_of_a_flag_given_twice_the_last_one_holds(simple_repository):
    modes = ["--model-control-mode=none", "--model-control-mode=explicit"]
    with Server(simple_repository, *modes, "--load-model=digits", "--load-model=addsub", "--id=a", "--id=b") as server:
        assert get(server, "/v2").json["name"] == "b"
        # What may be several is.
        assert {row["state"] for row in request(server.http, "POST", "/v2/repository/index").json} == {"READY"}


def test_c1_repositories_may_be_several_and_spelt_in_three_ways(tmp_path):
    repositories = [Repository(tmp_path / name) for name in ("first", "second", "third")]
    for number, repository in enumerate(repositories):
        repository.onnx(f"m{number}", plus(1))
    with Server(repositories[0], f"--model-repository={repositories[1]}", "--model-store", repositories[2]) as server:
        for number in range(3):
            assert get(server, f"/v2/models/m{number}/ready").status == 200


def test_c1_c35_a_repository_is_required_and_must_be_there():
    code, log = serve_and_fail()
    assert code == 1
    assert "no model repository" in log
    code, log = serve_and_fail("/nonexistent/models")
    assert code == 1
    assert "/nonexistent/models" in log


def test_c2_modes_and_their_flags(simple_repository):
    for flags, text in (
        (["--load-model=addsub"], "explicit"),
        (["--model-control-mode=explicit", "--load-model=*", "--load-model=addsub"], "*"),
        (["--model-control-mode=poll", "--load-model=addsub"], "explicit"),
        (["--repository-poll-secs=0"], "above 0"),
        (["--repository-poll-secs=soon"], "a number of seconds"),
        (["--model-config-name=../x"], "the name of a file"),
    ):
        code, log = serve_and_fail(simple_repository, *flags)
        assert code != 0
        assert text in log
    with Server(simple_repository, "--model-control-mode=none") as server:
        assert get(server, "/v2/models/addsub/ready").status == 200


def test_c2_c3_a_model_to_load_that_is_not_there(simple_repository):
    code, log = serve_and_fail(simple_repository, "--model-control-mode=explicit", "--load-model=nosuch")
    assert code == 1
    assert "failed to load 'nosuch'" in log


def test_c4_a_model_to_load_that_is_not_there_keeps_the_node_unready(simple_repository):
    flags = ["--model-control-mode=explicit", "--load-model=nosuch", "--load-model=addsub", "--exit-on-error=false"]
    with Server(simple_repository, *flags) as server:
        assert get(server, "/v2/models/addsub/ready").status == 200
        assert get(server, "/v2/health/ready").status == 400


@pytest.fixture
def mixed(repository):
    """Two models that work and three that fail, each in its own way."""
    repository.onnx("good", plus(1))
    repository.mock("fine")
    repository.onnx("broken", b"no ONNX")
    repository.onnx("misspelt", plus(1), config="max_batchsize: 8")
    repository.mock("unlucky", load_error="out of luck")
    return repository


def test_c3_c35_a_failing_start_lists_all_failures_and_ends_with_1(mixed):
    code, log = serve_and_fail(mixed)
    assert code == 1
    for name, text in (("broken", "not an ONNX file"), ("misspelt", "max_batchsize"), ("unlucky", "out of luck")):
        assert re.search(rf"model `{name}`.*UNAVAILABLE: .*{text}", log), log
    assert "--exit-on-error=false" in log


@pytest.mark.parametrize("value", ["false", "0", "False"])
def test_c3_c36_without_exit_on_error_the_others_are_served(mixed, value):
    with Server(mixed, f"--exit-on-error={value}") as server:
        assert infer(server, "good", ZEROS).status == 200
        assert infer(server, "fine", ZEROS).status == 200
        for name in ("broken", "misspelt", "unlucky"):
            assert infer(server, name, ZEROS).status in (400, 404, 503)
            rows = request(server.http, "POST", "/v2/repository/index").json
            assert [row["state"] for row in rows if row["name"] == name] == ["UNAVAILABLE"]
        assert server.stop() == 0


@pytest.mark.parametrize(("value", "status"), [("true", 0), ("1", 0), ("TRUE", 0), ("yes please", 1)])
def test_c36_booleans(simple_repository, value, status):
    if status:
        assert serve_and_fail(simple_repository, f"--allow-metrics={value}")[0] == status
    else:
        with Server(simple_repository, f"--allow-metrics={value}") as server:
            assert server.metrics


def test_c6_c7_c8_start_lines_name_the_ports_that_were_opened(simple):
    addresses = [simple.http, simple.grpc, simple.metrics]
    assert len(set(addresses)) == 3
    assert all(re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", address) for address in addresses)


def test_c6_c7_protocols_can_be_switched_off(simple_repository):
    with Server(simple_repository, "--allow-http=false") as server:
        assert "HTTPService" not in server.log
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            assert client.is_server_ready()
    with Server(simple_repository, "--allow-grpc=false") as server:
        assert "GRPCInferenceService" not in server.log
        assert get(server, "/v2/health/ready").status == 200


def test_c6_addresses(simple_repository):
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0"]
    addresses = ["--http-address=127.0.0.2", "--grpc-address=127.0.0.3"]
    with Server(simple_repository, ports=ports + addresses) as server:
        assert server.http.startswith("127.0.0.2:")
        assert server.grpc.startswith("127.0.0.3:")
        assert server.metrics.startswith("127.0.0.2:"), "metrics follow HTTP's address by default"
        assert get(server, "/v2/health/ready").status == 200


def test_c6_ipv6(simple_repository):
    ports = ["--http-port=0", "--grpc-port=0", "--metrics-port=0", "--http-address=[::1]", "--grpc-address=::1"]
    with Server(simple_repository, ports=ports) as server:
        assert server.http.startswith("[::1]:")
        assert get(server, "/v2/health/ready").status == 200


@pytest.mark.parametrize("protocol", ["http", "grpc", "metrics"])
def test_c35_a_port_that_is_taken_is_named(simple_repository, protocol):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [flag for flag in LOCAL_PORTS if not flag.startswith(f"--{protocol}-port")]
        outcome = run("serve", simple_repository, *ports, f"--{protocol}-port={port}")
        assert outcome.returncode == 1
        assert f"127.0.0.1:{port}" in outcome.stderr


def test_c6_ports_may_be_shared_if_asked_for(simple_repository):
    flags = ["--reuse-http-port=true", "--reuse-grpc-port=true"]
    with Server(simple_repository, *flags) as first:
        port = first.http.rsplit(":", 1)[1]
        ports = ["--http-address=127.0.0.1", f"--http-port={port}", "--grpc-port=0", "--metrics-port=0"]
        with Server(simple_repository, *flags, ports=ports) as second:
            assert second.http == first.http
            assert get(second, "/v2/health/ready").status == 200


def test_c6_c14_c20_g19_flags_without_effect_are_accepted_and_named(simple_repository):
    flags = ["--http-thread-count=4", "--backend-directory=/b", "--repoagent-directory=/r", "--cache-directory=/c"]
    flags += ["--buffer-manager-thread-count=2", "--grpc-infer-allocation-pool-size=8"]
    with Server(simple_repository, *flags) as server:
        for flag in flags:
            assert server.log.count(f"accepted without effect: {flag.split('=')[0]}:") == 1


def test_c17_c18_flags_on_gpus_and_their_memory_are_accepted_and_named(simple_repository):
    flags = ["--pinned-memory-pool-byte-size=268435456", "--cuda-memory-pool-byte-size=0:67108864"]
    flags += ["--min-supported-compute-capability=6.0", "--model-load-gpu-limit=0:0.5", "--enable-peer-access=true"]
    flags += ["--cuda-virtual-address-size=0:1024"]
    with Server(simple_repository, *flags) as server:
        for flag in flags:
            assert server.log.count(f"accepted without effect: {flag.split('=')[0]}:") == 1


DEFAULT_LINE = re.compile(r'[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} \d+ [\w.]+:\d+\] ".*"$')
ISO_LINE = re.compile(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [IWE] \d+ [\w.]+:\d+\] ".*"$')


@pytest.mark.parametrize(
    ("flags", "line"),
    [([], DEFAULT_LINE), (["--log-format=default"], DEFAULT_LINE), (["--log-format=ISO8601"], ISO_LINE)],
)
def test_c9_log_formats(mixed, flags, line):
    with Server(mixed, "--exit-on-error=false", *flags) as server:
        assert len(server.lines) > 5
        assert all(line.match(text) for text in server.lines), server.log


def test_c9_json_lines(mixed):
    code, log = serve_and_fail(mixed, "--log-format=json")
    assert code == 1
    lines = [json.loads(line) for line in log.splitlines()]
    assert {"time", "level", "target", "message"} <= set(lines[0])
    assert any(line["level"] == "ERROR" and "out of luck" in line["message"] for line in lines)


def test_c9_log_file(mixed, tmp_path):
    path = tmp_path / "log.txt"
    assert serve_and_fail(mixed, f"--log-file={path}") == (1, "")
    assert "out of luck" in path.read_text()


def test_c9_levels_can_be_switched_off(mixed):
    levels = {"info": "I", "warning": "W", "error": "E"}
    for name, letter in levels.items():
        code, log = serve_and_fail(mixed, f"--log-{name}=false")
        assert code == 1
        shown = {line[0] for line in log.splitlines()}
        assert letter not in shown
        assert shown <= set(levels.values()) and "E" in shown | {letter}
    assert serve_and_fail(mixed, "--log-info=0", "--log-warning=0", "--log-error=0") == (1, "")


def test_c9_verbose_says_more(simple_repository):
    with Server(simple_repository) as quiet, Server(simple_repository, "--log-verbose=2") as verbose:
        for server in (quiet, verbose):
            assert get(server, "/v2").status == 200
            assert server.stop() == 0
        assert len(verbose.lines) > len(quiet.lines)


def test_c9_log_lines_cannot_be_forged(repository):
    repository.mock(load_error='two\nlines "quoted"')
    code, log = serve_and_fail(repository)
    assert code == 1
    assert all(DEFAULT_LINE.match(line) for line in log.splitlines()), log


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], 4),
        (["--backend-config=onnxruntime,default-max-batch-size=16"], 16),
        (["--backend-config=default-max-batch-size=2"], 2),
        (["--backend-config=default-max-batch-size=2", "--backend-config=onnxruntime,default-max-batch-size=16"], 16),
        (["--backend-config", "onnxruntime,default-max-batch-size=0"], 0),
    ],
)
def test_c12_c13_default_max_batch_size(simple_repository, flags, size):
    with Server(simple_repository, *flags) as server:
        assert get(server, "/v2/models/addsub/config").json["max_batch_size"] == size
        assert get(server, "/v2/models/digits/config").json["max_batch_size"] == 8


def test_c12_threads_of_onnxruntime(simple_repository):
    flags = [f"--backend-config=onnxruntime,{key}_op_thread_count=2" for key in ("intra", "inter")]
    with Server(simple_repository, *flags) as server:
        assert get(server, "/v2/health/ready").status == 200


@pytest.mark.parametrize(
    "value",
    [
        "onnxruntime",
        "onnxruntime,nosuch=1",
        "onnxruntime,default-max-batch-size=x",
        ",=",
        "onnxruntime,enable-global-threadpool=1",
    ],
)
def test_c12_settings_that_are_none_are_refused(simple_repository, value):
    code, log = serve_and_fail(simple_repository, f"--backend-config={value}")
    assert code not in (0, None)
    assert "backend-config" in log


def test_c33_models_and_their_states_are_listed(mixed):
    with Server(mixed, "--exit-on-error=false") as server:
        assert "model `good` version 1: READY" in server.log
        assert "model `fine` version 1: READY" in server.log


def test_c5_r17_without_completion_a_configuration_is_needed(repository):
    repository.onnx("m", plus(1))
    for flag in ("--disable-auto-complete-config", "--strict-model-config=true"):
        code, log = serve_and_fail(repository, flag)
        assert code == 1
        assert "config.pbtxt" in log
    io = 'input { name: "x" data_type: TYPE_FP32 dims: 4 } output { name: "y" data_type: TYPE_FP32 dims: 4 }'
    repository.config("m", 'backend: "onnxruntime" max_batch_size: 8 ' + io)
    with Server(repository, "--disable-auto-complete-config") as server:
        assert get(server, "/v2/models/m/config").json["instance_group"][0]["count"] == 2
        assert infer(server, "m", ZEROS).status == 200


def test_the_examples_are_served():
    with Server(ROOT / "examples/models") as server:
        image = [tensor("image", "FP32", [1, 1, 8, 8], [0] * 64)]
        answer = infer(server, "digits", image)
        assert sum(answer.json["outputs"][0]["data"]) == pytest.approx(1, abs=1e-5)


def test_generated_variants_say_what_they_share(tmp_path):
    def generate(name, *flags):
        return run("generate", "bert-tiny:vocab=50,layers=4", tmp_path / name, *flags)

    assert generate("base.onnx").stdout.count("\n") == 1
    variant = generate("variant.onnx", "--variant", "last-layer", "--variant-seed", "3")
    assert variant.returncode == 0, variant.stderr
    said = re.search(r"(\d+) of (\d+) bytes .* \(([0-9.]+) %\).* of 10 .* ([0-9.]+) % less", variant.stdout)
    base, model = [onnx.load(tmp_path / name).graph.initializer for name in ("base.onnx", "variant.onnx")]
    assert [tensor.name for tensor in base] == [tensor.name for tensor in model]
    same = sum(len(a.raw_data) for a, b in zip(base, model, strict=True) if a == b)
    total = sum(len(tensor.raw_data) for tensor in model)
    assert (int(said[1]), int(said[2])) == (same, total)
    assert said[3] == f"{100 * same / total:.1f}"
    assert said[4] == f"{100 * (1 - (total + 9 * (total - same)) / (10 * total)):.1f}"

    for flags, text in (
        (["--variant", "last-block"], "expected head, last-layer or last-N-layers"),
        (["--variant", "last-5-layers"], "is `last-5-layers`, expected head, last-layer or last-N-layers with N of at most 4"),
        (["--variant", "last-9-layers"], "`variant` of model kind `bert-tiny` is `last-9-layers`, expected head,"),
        (["--variant", "head", "--variant-seed", "0"], "are both 0, expected different seeds"),
        (["--variant-seed", "3"], "--variant"),
    ):
        outcome = generate("refused.onnx", *flags)
        assert outcome.returncode != 0
        assert text in outcome.stderr
        assert not (tmp_path / "refused.onnx").exists()


def test_a_variant_that_a_small_model_lacks_is_called_by_its_name(tmp_path):
    outcome = run("generate", "mlp:layers=8x4", tmp_path / "m.onnx", "--variant", "last-2-layers")
    words = "parameter `variant` of model kind `mlp` is `last-2-layers`, expected head: no layer is before it"
    assert outcome.stderr == f"error: {words}\n"


def test_generate_makes_no_directory_of_a_mistyped_path(tmp_path):
    nowhere = tmp_path / "nowhere"
    for arguments in ([nowhere / "m.onnx"], [nowhere / "models", "--repository", "m"]):
        outcome = run("generate", "mlp", *arguments)
        assert (outcome.returncode, outcome.stdout) == (1, "")
        assert outcome.stderr == f"error: OUT: there is no directory `{nowhere}`\n"
        assert not nowhere.exists()
    assert run("generate", "mlp", tmp_path / "models", "--repository", "m").returncode == 0
    assert (tmp_path / "models/m/1/model.onnx").is_file()


@pytest.mark.parametrize("flags", [[], ["--external-data"]])
def test_generate_leaves_no_part_of_a_file_on_a_full_disk(tmp_path, flags):
    # A limit of file sizes stands for the disk: 64 KiB, and the shell ignores the signal that would end the process.
    command = [BINARY, "generate", "mlp", tmp_path / "m.onnx", *flags]
    outcome = subprocess.run(
        ["bash", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$@\"", "bash", *map(str, command)], capture_output=True, text=True
    )
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith(f"error: cannot write `{tmp_path}/m.onnx")
    assert list(tmp_path.iterdir()) == []
