"""What commands say of files, directories and addresses that are not there or are something else: once, with the name, and with
exit code 1."""

import re

import pytest

from repository import Repository, plus
from server import LOCAL_PORTS, run

MISSING = "/nonexistent"
WRONG = ["/proc/nowhere", "127.0.0.1:1", "192.0.2.1", "no.such.host.invalid", "nosuch", "a/b"]
# A phrase, and the same again.
TWICE = re.compile(r"(?:^|: )([^:]{6,}): \1(?=[:;\n]|$)", re.MULTILINE)
# `{file}` is a file of text, `{directory}` a directory that is empty, `{model}` a model's file.
COMMANDS = [
    ["serve", MISSING],
    ["serve", "{file}"],
    ["serve", "{models}", MISSING],
    ["serve", "{models}", "--http-address=no.such.host.invalid"],
    ["serve", "{models}", "--http-address=192.0.2.1"],
    ["serve", "{models}", "--metrics-address=192.0.2.1"],
    ["serve", "{models}", f"--log-file={MISSING}/log"],
    ["serve", "{models}", "--log-file={directory}"],
    ["serve", "{models}", "--weight-cache=/proc/nowhere"],
    ["serve", "{models}", "--weight-cache={file}"],
    ["serve", "{models}", f"--store={MISSING}"],
    ["serve", "{models}", "--store={file}"],
    ["serve", "{models}", f"--onnxruntime-library={MISSING}"],
    ["serve", "{models}", "--model-config-name=a/b"],
    ["serve", "{models}", "--http-use-ssl=1", f"--http-server-cert={MISSING}", "--http-server-key={file}"],
    ["serve", "{models}", "--grpc-use-ssl=1", "--grpc-server-cert={directory}", "--grpc-server-key={file}"],
    ["serve", "{broken}"],
    ["check", MISSING],
    ["check", "{file}"],
    ["check", "--load", "{broken}"],
    ["check", "{models}", "--model", "nosuch"],
    ["check", "{models}", "--model-config-name=a/b"],
    ["bake", MISSING],
    ["bake", "{file}"],
    ["bake", "{directory}"],
    ["bake", "{broken}"],
    ["bake", "--weight-cache=/proc/nowhere", "{models}"],
    ["plan", MISSING],
    ["plan", "{file}"],
    ["plan", "{directory}"],
    ["plan", "{model}", "--svg", f"{MISSING}/file"],
    ["plan", "{model}", "--html", "{directory}"],
    ["doctor", f"--onnxruntime-library={MISSING}"],
    ["generate", "nosuch", "{directory}/out"],
    ["generate", "mlp", "{directory}"],
    ["generate", "mlp", "{file}/out"],
    ["generate", "mlp", "{file}", "--repository", "m"],
    ["generate", "mlp", "/proc/nowhere/out"],
    ["simulate", "batching", "--table", MISSING],
    ["simulate", "batching", "--table", "{directory}"],
    ["simulate", "batching", "--arrival", MISSING],
    ["store", "serve", "--directory", "{file}"],
    ["store", "serve", "--directory", "/proc/nowhere"],
    ["store", "stat", "--directory", MISSING],
    ["store", "ls", "--directory", "{directory}"],
    ["store", "gc", "--socket", "{file}"],
    ["infer", "m", "--zeros", "--url", "http://127.0.0.1:1"],
    ["infer", "m", "--zeros", "--url", "grpc://127.0.0.1:1"],
    ["infer", "m", "--zeros", "--url", "https://127.0.0.1:1", "--ca", MISSING],
    ["infer", "m", "--zeros", "--url", "grpcs://127.0.0.1:1", "--insecure", "--cert", MISSING, "--key", "{file}"],
    ["infer", "m", "--zeros", "--url", "http://127.0.0.1:1", "--output", "{file}"],
    ["infer", "m", "--zeros", "--header", f"@{MISSING}"],
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("errors")
    models = Repository(root / "models")
    models.onnx("m", plus(1))
    broken = Repository(root / "broken")
    broken.onnx("none", b"")
    (broken.path / "directory/1/model.onnx").mkdir(parents=True)
    (broken.path / "link/1").mkdir(parents=True)
    (broken.path / "link/1/model.onnx").symlink_to(MISSING)
    broken.onnx("labels", plus(1), config='output { name: "y" label_filename: "nosuch.txt" }')
    (broken.path / "config" / "config.pbtxt").mkdir(parents=True)
    (root / "file").write_text("text\n")
    (root / "directory").mkdir()
    names = {name: root / name for name in ("models", "broken", "file", "directory")}
    return {**names, "model": models.path / "m/1/model.onnx"}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_what_is_wrong_is_said_once(places, command):
    arguments = [part.format(**places) for part in command]
    # Of an address that is given twice the last one holds.
    ports = LOCAL_PORTS if command[0] == "serve" else []
    outcome = run(command[0], *ports, *arguments[1:])
    assert outcome.returncode == 1
    said = outcome.stdout + outcome.stderr
    assert said
    assert not TWICE.search(said), said
    assert all(line.count("os error") <= 1 for line in said.splitlines()), said
    assert "panicked" not in said
    wrong = [MISSING, *WRONG, *[str(places[name]) for name in ("file", "directory", "broken")]]
    assert any(name in said for name in wrong if name in " ".join(arguments)), said
