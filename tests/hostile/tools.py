"""What attacks are made of: requests that never wait for ever, protobuf by hand, connections that keep what they get."""

import collections
import contextlib
import http.client
import json
import shutil
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import h2.events
import h2.exceptions

from http2_client import Http2, split
from http_client import HEADER_LENGTH, Answer
from process import MIB
from stage import HANG_S

# Clients of gRPC that take whatever comes.
CHANNEL = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0),
           ("grpc.use_local_subchannel_pool", 1), ("grpc.max_metadata_size", 64 * MIB)]
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/inference.GRPCInferenceService/"


def remove_tree(path):
    """Removes a directory although a server writes into it: what it adds meanwhile goes with the next look."""
    deadline = time.monotonic() + HANG_S
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)
        assert time.monotonic() < deadline, f"{path} is still there"


def post(address, path, body=b"", headers=None, hang_s=HANG_S):
    """An answer, or `None` where the server closed the connection instead: an attacker has no right to one."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, timeout=hang_s)
    try:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request("POST", path, body=body, headers=headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read())
    except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
        return None
    finally:
        connection.close()


def status(answer):
    return "closed" if answer is None else answer.status


def infer(stage, model, inputs, hang_s=HANG_S, **members):
    return post(stage.http, f"/v2/models/{model}/infer", {"inputs": inputs, **members}, hang_s=hang_s)


def ints(name, *values):
    return {"name": name, "datatype": "INT64", "shape": [len(values)], "data": list(values)}


def floats(name, shape, value=1.0):
    count = 1
    for size in shape:
        count *= size
    return {"name": name, "datatype": "FP32", "shape": list(shape), "data": [value] * count}


def refused(answer):
    """An error in order, or a closed connection; not a success, not a hang."""
    assert answer is None or 400 <= answer.status < 600, f"served with {answer.status}: {answer.body[:200]}"
    return status(answer)


def answered(answer):
    """Success or an error in order."""
    assert answer is None or 200 <= answer.status < 600, answer.status
    return status(answer)


def together(count, task):
    """Runs a task many times at once: how often each result came."""
    with ThreadPoolExecutor(count) as pool:
        return dict(collections.Counter(str(result) for result in pool.map(task, range(count))))


# Protobuf.

def varint(value):
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number, data):
    data = data.encode() if isinstance(data, str) else data
    return varint(number << 3 | 2) + varint(len(data)) + data


def input_field(name, datatype, shape, contents=b""):
    packed = b"".join(varint(size) for size in shape)
    tensor = bytes_field(1, name) + bytes_field(2, datatype) + bytes_field(3, packed)
    return bytes_field(5, tensor + (bytes_field(5, contents) if contents else b""))


def infer_message(model, name="x", shape=(1, 4), data=bytes(16)):
    return bytes_field(1, model) + input_field(name, "FP32", shape) + bytes_field(7, data)


@contextlib.contextmanager
def channel(stage):
    with grpc.insecure_channel(stage.grpc, CHANNEL) as opened:
        yield opened


def call(stage, method, message, hang_s=HANG_S, **options):
    """The name of gRPC's code; a deadline of the client's own is a hang."""
    with channel(stage) as opened:
        try:
            opened.unary_unary(SERVICE + method)(message, timeout=hang_s, **options)
            return "OK"
        except grpc.RpcError as error:
            return code(error)


def code(error):
    assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, "no answer: the call's own deadline is over"
    return error.code().name


def grpc_refused(got):
    assert got != "OK", "a success"
    return got


# Connections that do not behave.

def open_socket(address, hang_s=HANG_S, receive_buffer=None):
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(hang_s)
    connection.connect(split(address))
    return connection


def head(path, length, **headers):
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {length}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def until_closed(connection, what="the connection"):
    """Reads nothing but the end: waits until the server closes."""
    received = 0
    try:
        while piece := connection.recv(65536):
            received += len(piece)
    except ConnectionError:
        return received
    except TimeoutError:
        raise AssertionError(f"{what} is still open") from None
    return received


ESTABLISHED = "01"


def still_served(connections):
    """How many of these connections the server has not closed, whatever of that the client has read."""
    ports = {connection.getsockname()[1] for connection in connections}
    count = 0
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            _, _, remote, state, *_ = line.split()
            count += state == ESTABLISHED and int(remote.split(":")[1], 16) in ports
    return count


class Deaf(Http2):
    """Acknowledges pings and opens no window."""

    def __init__(self, address):
        super().__init__(address)
        self.socket.settimeout(HANG_S)
        # As `http2_client` says: what it got of each stream, and how each ended.
        self.got = collections.Counter()
        self.ended = set()

    def take(self, timeout_s):
        """Looks once at what has come; False when the connection has ended."""
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return True
        except ConnectionError:
            data = b""
        finally:
            self.socket.settimeout(HANG_S)
        if not data:
            return False
        try:
            events = self.state.receive_data(data)
        except h2.exceptions.ProtocolError:
            return True
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                self.got[event.stream_id] += len(event.data)
            elif isinstance(event, (h2.events.StreamReset, h2.events.StreamEnded)):
                self.ended.add(event.stream_id)
        with contextlib.suppress(ConnectionError):
            self.flush()
        return True

    def ping(self):
        self.state.ping(b"hostile!")
        self.flush()

    def nudge(self, stream, size=1):
        """Opens the windows by so many bytes."""
        self.state.increment_flow_control_window(size)
        with contextlib.suppress(h2.exceptions.ProtocolError, KeyError):
            self.state.increment_flow_control_window(size, stream)
        self.flush()


class Background:
    """Threads of an attack that go on until it is over, or it gave up."""

    def __init__(self):
        self.pool = ThreadPoolExecutor(64)
        self.over = threading.Event()

    def __enter__(self):
        return self

    def go(self, task, *args):
        return self.pool.submit(task, *args)

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown(wait=True, cancel_futures=True)


def binary_request(inputs, data, **members):
    """Body and headers of a request with binary tensors."""
    text = json.dumps({"inputs": inputs, **members}).encode()
    return text + data, {HEADER_LENGTH: str(len(text))}


def grpc_frame(message):
    return struct.pack(">BI", 0, len(message)) + message
