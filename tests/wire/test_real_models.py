"""Real files, as PyTorch, TensorFlow, PaddlePaddle and LightGBM exported them: the answers of ONNX Runtime, to the bit.

The files come out of packages that `cargo xtask setup` unpacks (tests/real-models-requirements.txt). All are served at once
from one repository, on the library that Python's onnxruntime opens. Their configurations say nothing but the number of
threads.
"""

import os
import re
import zlib
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc

from http_client import get, infer, tensor
from repository import DATATYPES, Repository
from server import ROOT, Server, run
from test_parity import PROTOCOL

PACKAGES = ROOT / "target/real-models"
# Operators that add up in parallel round otherwise with another number of threads.
THREADS = 1
# Files of onnxruntime's own. One of them makes a sequence of maps, which no tensor carries and Skep leaves out.
DATASETS = Path(onnxruntime.__path__[0]) / "datasets"
LEAST = 30

# Sizes of the dimensions that a file leaves open: two requests each, the second with more rows or longer. Where all are
# fixed both requests have one shape.
ROWS = (1, 3)
SIZES = {
    # Pictures: detectors take multiples of 32, the recogniser lines of text.
    "nudenet/320n": {"batch": (1, 2), "height": (320, 192), "width": (320, 256)},
    "models/ch_PP-OCRv4_det_infer": {1: (3, 3), 2: (64, 96), 3: (96, 64)},
    "models/ch_PP-OCRv4_rec_infer": {2: (48, 48), 3: (64, 160)},
    "models/ch_ppocr_mobile_v2.0_cls_infer": {2: (48, 48), 3: (192, 192)},
    # Sound: 32 ms at 16 kHz and what came before; a state for each row.
    "data/silero_vad": {"sequence": (576, 576), ("input", 1): (576, 576)},
    # Time series.
    "funcnet/": {"T": (64, 160), "K": (5, 9)},
}
# Inputs that are no measurements.
VALUES = {"sr": 16000}


def found():
    """Model name -> file, in a fixed order."""
    files = [*PACKAGES.rglob("*.onnx"), *DATASETS.glob("*.onnx")]
    return {re.sub(r"\W", "_", f"{file.parent.name}_{file.stem}"): file for file in sorted(files)}


FILES = found()


def test_there_are_real_models():
    assert len(FILES) >= LEAST, f"{len(FILES)} files in {PACKAGES}, which `cargo xtask setup` fills"


def sizes_of(file):
    path = f"{file.parent.name}/{file.stem}"
    return next((sizes for part, sizes in SIZES.items() if path.startswith(part)), {})


def sample(file, spec, which):
    """(datatype, values) of an input in the request of that number."""
    sizes, datatype = sizes_of(file), PROTOCOL[spec.type]

    def size(axis, dim):
        keys = (dim, axis, (spec.name, axis))
        return dim if isinstance(dim, int) else next((sizes[key] for key in keys if key in sizes), ROWS)[which]

    shape = [size(axis, dim) for axis, dim in enumerate(spec.shape)]
    kind = DATATYPES[datatype][0]
    random = np.random.default_rng([which, zlib.crc32(spec.name.encode())])
    if spec.name in VALUES:
        values = np.full(shape, VALUES[spec.name], kind)
    elif np.issubdtype(kind, np.floating):
        values = random.standard_normal(shape).astype(kind)
    else:
        values = random.integers(0, 200, shape, dtype=kind)
    return datatype, values


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("real") / "models")
    for name, file in FILES.items():
        (repository.path / name / "1").mkdir(parents=True)
        os.symlink(file, repository.path / name / "1/model.onnx")
        repository.config(
            name, f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{THREADS}" }} }}'
        )
    return repository


@pytest.fixture(scope="module", params=["plain", "baked"])
def server(request, repository, tmp_path_factory):
    """As the files are, and from the forms that baking makes of the large ones."""
    flags = ["--weight-cache=off"]
    if request.param == "baked":
        flags = [f"--weight-cache={tmp_path_factory.getbasetemp() / 'real-forms'}"]
        assert run("bake", *flags, repository).returncode == 0
    with Server(repository, *flags) as server:
        yield server


@pytest.fixture(scope="module")
def reference():
    """The session of one model after the other: inputs of a request, and Python's outputs."""
    sessions = {}

    def answer(name, which):
        if name not in sessions:
            sessions.clear()
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.intra_op_num_threads = THREADS
            sessions[name] = onnxruntime.InferenceSession(
                str(FILES[name]), options, providers=["CPUExecutionProvider"]
            )
        session = sessions[name]
        inputs = {spec.name: sample(FILES[name], spec, which) for spec in session.get_inputs()}
        outputs = session.run(None, {name: values for name, (_, values) in inputs.items()})
        named = zip((spec.name for spec in session.get_outputs()), outputs, strict=True)
        return inputs, {name: value for name, value in named if isinstance(value, np.ndarray)}

    return answer


def wire_shape(config, values):
    """A tensor of the protocol has a dimension at least, besides that of the batch."""
    shape = list(values.shape)
    is_batched = config.get("max_batch_size", 0) > 0
    return shape if len(shape) > is_batched else [*shape, 1]


def over_http(server, model, config, inputs):
    """Outputs as (shape, bytes)."""
    tensors = [
        tensor(name, datatype, wire_shape(config, values), binary_data_size=values.nbytes)
        for name, (datatype, values) in inputs.items()
    ]
    binary = b"".join(values.tobytes() for _, values in inputs.values())
    answer = infer(server, model, tensors, binary, parameters={"binary_data_output": True})
    assert answer.status == 200, answer.body
    head, data = answer.parts()
    outputs, at = {}, 0
    for output in head["outputs"]:
        size = output["parameters"]["binary_data_size"]
        outputs[output["name"]] = (output["shape"], data[at : at + size])
        at += size
    return outputs


def over_grpc(server, model, config, inputs):
    """The same with Triton's client."""
    tensors = []
    for name, (datatype, values) in inputs.items():
        shape = wire_shape(config, values)
        tensors.append(tritonclient.grpc.InferInput(name, shape, datatype))
        tensors[-1].set_data_from_numpy(values.reshape(shape))
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        answer = client.infer(model, tensors).get_response()
    contents = zip(answer.outputs, answer.raw_output_contents, strict=True)
    return {output.name: (list(output.shape), data) for output, data in contents}


@pytest.mark.parametrize("name", FILES)
def test_answers_are_those_of_onnxruntime_to_the_bit(server, reference, name):
    config = get(server, f"/v2/models/{name}/config").json
    # One request each way, and the first one again once a plan of the run's memory is there.
    for which, ask in ((0, over_http), (1, over_grpc), (0, over_grpc)):
        inputs, wanted = reference(name, which)
        got = ask(server, name, config, inputs)
        assert set(got) == set(wanted)
        for output, values in wanted.items():
            expected = (wire_shape(config, values), values.tobytes())
            assert got[output] == expected, f"output `{output}` of request {which}"


def test_every_model_is_ready(server):
    not_ready = [name for name in FILES if get(server, f"/v2/models/{name}/ready").status != 200]
    assert not_ready == []
