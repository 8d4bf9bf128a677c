#!/usr/bin/env python3
"""Checks what `write_all` wrote: valid ONNX, runs on ONNX Runtime, sane outputs, equal inputs; broken files refused.

    cargo run --release -p skep-testkit --example write_all -- target/models
    python crates/skep-testkit/python/verify.py target/models
"""

import ctypes
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto

from skep_inputs import inputs

SEED, BATCH, SEQUENCE = 7, 3, 16  # as in write_all
VALID = {"int64-constant"}  # only the embedded backend must refuse it
BIG = {"text-recogniser", "resnet50", "bert-base"}


def wire(array):
    """An array as requests carry it."""
    if array.dtype == object:
        return b"".join(len(v).to_bytes(4, "little") + v for v in array.ravel())
    return array.tobytes()


def session(path, **settings):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, arrays, bf16):
    s = session(path)
    if not bf16:
        # Texts go in as `str`: of `bytes`, ONNX Runtime takes what Python prints, quotes and all.
        texts = {n: np.array([v.decode() for v in a.ravel()], object).reshape(a.shape) for n, a in arrays.items() if a.dtype == object}
        return s.run(None, {**arrays, **texts})
    binding = s.io_binding()
    for name, array in arrays.items():
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), TensorProto.BFLOAT16)
        binding.bind_ortvalue_input(name, value)
    outputs = []
    for output in s.get_outputs():
        value = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros_like(next(iter(arrays.values()))), TensorProto.BFLOAT16)
        binding.bind_ortvalue_output(output.name, value)
        outputs.append(value)
    s.run_with_iobinding(binding)
    # numpy has no bfloat16, so `numpy()` refuses: read the bits.
    return [np.ctypeslib.as_array(ctypes.cast(v.data_ptr(), ctypes.POINTER(ctypes.c_uint16)), v.shape()).copy() for v in outputs]


def expected(family, datatype, arrays):
    """What identity and addsub must answer."""
    a = arrays["INPUT0"]
    if family == "identity":
        return [a]
    b = arrays["INPUT1"]
    if datatype == "bytes":
        pairs = list(zip(a.ravel(), b.ravel()))
        return [np.array([str(f(int(x), int(y))) for x, y in pairs], object).reshape(a.shape) for f in (int.__add__, int.__sub__)]
    if datatype == "bool":
        return [a | b, a ^ b]
    if datatype == "bf16":
        from skep_inputs import bf16_bits

        wide = [(v.astype(np.uint32) << 16).view(np.float32) for v in (a, b)]
        return [bf16_bits(wide[0] + wide[1]), bf16_bits(wide[0] - wide[1])]
    return [a + b, a - b]


def same(got, want):
    if want.dtype == object:
        return [v.encode() if isinstance(v, str) else v for v in got.ravel()] == [v.encode() if isinstance(v, str) else v for v in want.ravel()]
    return got.view(want.dtype).tobytes() == want.tobytes()


def check(folder):
    kind = folder.name
    family, _, datatype = kind.partition("-")
    arrays = inputs(kind, SEED, BATCH, SEQUENCE)
    for name, array in arrays.items():
        assert wire(array) == (folder / f"{name}.bin").read_bytes(), f"{kind}: input {name} differs from Rust's"
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)
    onnx.checker.check_model(str(folder / "external.onnx"), full_check=kind not in BIG)
    outputs = run(folder / "model.onnx", arrays, datatype == "bf16")
    external = run(folder / "external.onnx", arrays, datatype == "bf16")
    assert all(same(x, y) for x, y in zip(outputs, external)), f"{kind}: external data changes the answer"
    if family in ("identity", "addsub"):
        assert all(same(x, y) for x, y in zip(outputs, expected(family, datatype, arrays))), f"{kind}: wrong values"
        return "exact"
    report = []
    for output in outputs:
        assert np.isfinite(output).all(), f"{kind}: not finite"
        apart = min(np.abs(output[i] - output[j]).max() for i in range(BATCH) for j in range(i))
        report.append(f"{list(output.shape)} std {output.std():.3f} max {np.abs(output).max():.2f} rows apart {apart:.3f}")
        assert 0.05 < output.std() < 20 and apart > 0.01, f"{kind}: {report}"
    if (folder / "variant.onnx").exists():
        variant = run(folder / "variant.onnx", arrays, False)
        assert not np.allclose(variant[0], outputs[0]), f"{kind}: the variant answers the same"
        report.append("variant differs")
    return "; ".join(report)


def check_broken(folder):
    """In a process of its own: a crash is a finding, not the end."""
    code = "import sys, onnxruntime as o; s = o.SessionOptions(); s.log_severity_level = 4; o.InferenceSession(sys.argv[1], s)"
    done = subprocess.run([sys.executable, "-c", code, str(folder / "1/model.onnx")], capture_output=True, text=True, timeout=60)
    last = (done.stderr.strip().splitlines() or ["accepted"])[-1]
    return done.returncode, last[:150]


def main():
    root = Path(sys.argv[1])
    for folder in sorted(root.iterdir()):
        if folder.name == "broken":
            for broken in sorted(folder.iterdir()):
                code, message = check_broken(broken)
                print("broken", broken.name, code, message)
                # Status 1 is Python's exception; anything else (a signal) is a crash.
                assert code == (0 if broken.name in VALID else 1), broken.name
        elif not folder.name.startswith("broken"):
            print(folder.name, check(folder))


if __name__ == "__main__":
    main()
