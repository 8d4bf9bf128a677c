#!/usr/bin/env python3
"""Writes a model of 5 GiB with external data into a repository: `large.py DIRECTORY`. Eight embeddings of 512 MiB, of which each
row of ids takes a row, and four matrices of 256 MiB: no weight is equal to another."""

import sys
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

ROWS, WIDTH, TABLES, LAYERS = 16384, 8192, 8, 4


def main():
    place = Path(sys.argv[1]) / "m" / "1"
    place.mkdir(parents=True)
    random = np.random.default_rng(0)
    initializers, offset = [], 0

    def add(name, dims, scale, out):
        nonlocal offset
        data = random.standard_normal(dims, dtype=np.float32) * np.float32(scale)
        out.write(data.data)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "weights"), ("offset", offset), ("length", data.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        offset += data.nbytes
        initializers.append(tensor)

    nodes = []
    with open(place / "weights", "wb") as out:
        for table in range(TABLES):
            add(f"table{table}", [ROWS, WIDTH], 1, out)
            nodes.append(helper.make_node("Gather", [f"table{table}", "ids"], [f"row{table}"]))
        nodes.append(helper.make_node("Sum", [f"row{table}" for table in range(TABLES)], ["h0"]))
        for layer in range(LAYERS):
            add(f"matrix{layer}", [WIDTH, WIDTH], WIDTH**-0.5, out)
            nodes.append(helper.make_node("MatMul", [f"h{layer}", f"matrix{layer}"], [f"h{layer + 1}"]))
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    result = helper.make_tensor_value_info(f"h{LAYERS}", TensorProto.FLOAT, ["n", WIDTH])
    graph = helper.make_graph(nodes, "large", [ids], [result], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (place / "model.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    main()
