"""Models whose requests belong to sequences, and clients that send them."""

import queue

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import TensorProto, helper

from repository import graph
from server import DEADLINE_S

HOUR_US = 3_600_000_000
DIRECT = "direct { }"


def oldest(candidates, rest=""):
    return f"oldest {{ max_candidate_sequences: {candidates} {rest} }}"


def node(kind, inputs, *outputs, **attributes):
    return helper.make_node(kind, inputs.split(), list(outputs), **attributes)


def accumulator(corrid="UINT64", batch="n"):
    """`SUM` is the sum of a sequence's inputs so far; the other outputs are what the server tells of the batch."""
    shape = (batch, 1) if batch else (1,)
    one = helper.make_tensor("axis", TensorProto.INT64, [1], [0])
    zero = helper.make_tensor("first", TensorProto.INT64, [], [0])
    nodes = [
        node("Add", "INPUT STATE", "SUM"),
        node("Add", "INPUT STATE", "NEXT"),
        node("Identity", "START", "STARTED"),
        node("Identity", "END", "ENDED"),
        node("Identity", "CORRID", "ID"),
        node("Sub", "READY READY", "zeros"),
        node("ReduceSum", "READY axis", "ready", keepdims=1),
        node("Add", "zeros ready", "READIES"),
        node("Shape", "READY", "shape"),
        node("Gather", "shape first", "rows"),
        node("Cast", "rows", "rows32", to=TensorProto.INT32),
        node("Add", "zeros rows32", "ROWS"),
    ]
    inputs = [
        ("END", "BOOL", shape), ("INPUT", "INT32", shape), ("READY", "INT32", shape), ("STATE", "INT32", shape),
        ("START", "FP32", shape), ("CORRID", corrid, shape),
    ]
    outputs = [
        ("NEXT", "INT32", shape), ("SUM", "INT32", shape), ("STARTED", "FP32", shape), ("ENDED", "BOOL", shape),
        ("ID", corrid, shape), ("READIES", "INT32", shape), ("ROWS", "INT32", shape),
    ]
    return graph(nodes, inputs, outputs, [one, zero])


def control(name, kind, rest):
    return f'control_input {{ name: "{name}" control {{ kind: CONTROL_SEQUENCE_{kind} {rest} }} }}\n'


def controls(corrid="UINT64"):
    return (
        control("START", "START", "fp32_false_true: [ -1, 1 ]")
        + control("END", "END", "bool_false_true: [ false, true ]")
        + control("READY", "READY", "int32_false_true: [ 0, 1 ]")
        + control("CORRID", "CORRID", f"data_type: TYPE_{corrid}")
    )


def state(rest="", dims="[ 1 ]"):
    return f'state {{ input_name: "STATE" output_name: "NEXT" data_type: TYPE_INT32 dims: {dims} {rest} }}\n'


def config(strategy=DIRECT, batch=2, corrid="UINT64", more="", sequences="", state=state(), idle_us=HOUR_US, count=1):
    outputs = [("SUM", "INT32"), ("STARTED", "FP32"), ("ENDED", "BOOL"), ("READIES", "INT32"), ("ROWS", "INT32")]
    listed = [f'output {{ name: "{name}" data_type: TYPE_{datatype} dims: [ 1 ] }}' for name, datatype in outputs]
    return f"""max_batch_size: {batch} instance_group {{ count: {count} kind: KIND_CPU }}
        input {{ name: "INPUT" data_type: TYPE_INT32 dims: [ 1 ] }} {" ".join(listed)}
        output {{ name: "ID" data_type: TYPE_{corrid} dims: [ 1 ] }}
        sequence_batching {{ {strategy} max_sequence_idle_microseconds: {idle_us} {controls(corrid)} {state} {sequences} }}
        {more}"""


class Caller:
    """A client of one protocol: `http`, `grpc` or `stream` (a gRPC stream)."""

    def __init__(self, server, protocol, model="sum"):
        self.model = model
        self.protocol = protocol
        self.module = httpclient if protocol == "http" else grpcclient
        address = server.http if protocol == "http" else server.grpc
        self.client = self.module.InferenceServerClient(address)
        self.answers = queue.Queue()
        if protocol == "stream":
            self.client.start_stream(lambda result, error: self.answers.put(error or result))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.protocol == "stream":
            self.client.stop_stream()
        self.client.close()

    def input(self, value, shape=(1, 1), datatype=np.int32, name="INPUT"):
        data = np.full(shape, value, datatype) if np.isscalar(value) else np.array(value, datatype)
        given = self.module.InferInput(name, list(data.shape), "INT32")
        given.set_data_from_numpy(data)
        return given

    def step(self, sequence, value, start=False, end=False, shape=(1, 1), **rest):
        """One request; its answer as numpy arrays by output."""
        inputs = [self.input(value, shape)]
        place = {"sequence_id": sequence, "sequence_start": start, "sequence_end": end, **rest}
        if self.protocol == "stream":
            self.client.async_stream_infer(self.model, inputs, **place)
            answer = self.answers.get(timeout=DEADLINE_S)
            if isinstance(answer, Exception):
                raise answer
        else:
            answer = self.client.infer(self.model, inputs, **place)
        response = answer.get_response()
        names = [output["name"] if self.protocol == "http" else output.name for output in outputs_of(response)]
        return {name: answer.as_numpy(name).ravel().tolist() for name in names}

    def sum(self, sequence, value, **place):
        (got,) = self.step(sequence, value, **place)["SUM"]
        return got


def outputs_of(response):
    return response["outputs"] if isinstance(response, dict) else response.outputs
