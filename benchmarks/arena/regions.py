"""What ONNX Runtime's arena takes from the system for the tensors of runs, as its own log says.

usage: regions.py MODEL SHAPES PATTERN: shapes as JSON by input; PATTERN 1 with its memory pattern, 0 without. Prints
bytes. The weights lie outside of the arena.
"""

import json
import os
import re
import sys
import tempfile

import numpy
import onnxruntime

TYPES = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
RUNS = 5


def main() -> None:
    model, shapes, pattern = sys.argv[1:]
    shapes = json.loads(shapes)
    # The library logs to the process's standard error, below Python's.
    log = tempfile.TemporaryFile()
    os.dup2(log.fileno(), 2)
    onnxruntime.set_default_logger_severity(1)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_mem_pattern = pattern == "1"
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    loaded = log.tell()
    inputs = {
        each.name: numpy.zeros(shapes[each.name], dtype=TYPES[each.type])
        for each in session.get_inputs()
    }
    for _ in range(RUNS):
        session.run(None, inputs)
    log.seek(loaded)
    text = log.read().decode(errors="replace")
    print(sum(int(size) for size in re.findall(r"Extended allocation by (\d+) bytes", text)))


main()
