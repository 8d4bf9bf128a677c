"""Answers that nobody reads, or hardly: given up in time, and their memory is within the bound until then."""

import contextlib
import json
import socket
import threading
import time

from case import Case
from http2_client import Http2, infer_message
from process import MIB
from stage import HANG_S, IS_BASELINE, Setup
from tools import SERVICE, Deaf, answered, channel, grpc_frame, head, open_socket, post, still_served, together, until_closed

MEMORY_MIB = 64
PEAK_MIB = MEMORY_MIB + 128
# An answer is more than the kernel takes of one connection unread (4 MiB by default, and what the client's end takes).
ROWS = 2 * MIB
ANSWER = 4 * ROWS
COUNT = 40
# How long an attacker keeps at it; a server's patience is `--write-timeout-ms`.
PATIENCE_S = 6 if IS_BASELINE else HANG_S


def models_of(repository):
    (repository.path / "wide" / "1").mkdir(parents=True)
    repository.config("wide", f"""backend: "mock" max_batch_size: 1 instance_group {{ count: 1 kind: KIND_CPU }}
        input {{ name: "x" data_type: TYPE_FP32 dims: 1 }} output {{ name: "y" data_type: TYPE_FP32 dims: {ROWS} }}""")


SETUP = Setup("answers", models_of, (
    "--write-timeout-ms=700", "--body-timeout-ms=700", "--head-timeout-ms=700", f"--max-request-memory={MEMORY_MIB * MIB}"))
PATH = "/v2/models/wide/infer"
BODY = json.dumps({
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}],
    "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
}).encode()
MESSAGE = infer_message("wide", shape=(1, 1), data=bytes(4))


def http1(stage):
    """As many connections as answers; none is read. Those that are refused for memory close at once."""
    with contextlib.ExitStack() as stack:
        readers = []
        for _ in range(COUNT):
            reader = stack.enter_context(contextlib.closing(open_socket(stage.http, receive_buffer=4096)))
            reader.sendall(head(PATH, len(BODY), Connection="close") + BODY)
            readers.append(reader)
        for reader in readers:
            # Its answer has begun, or it is given up already.
            with contextlib.suppress(ConnectionError):
                reader.recv(1, socket.MSG_PEEK)
        stage.wait(lambda: not still_served(readers), "the server gave the connections up")
    return "given up"


def deaf(address_of, begin, pings=False, nudges=0, count=COUNT):
    """One HTTP/2 connection whose windows stay shut; the server ends the streams or the connection."""

    def attack(stage):
        with Deaf(address_of(stage)) as client:
            streams = {begin(client) for _ in range(count)}
            deadline = time.monotonic() + PATIENCE_S
            while not streams <= client.ended:
                assert time.monotonic() < deadline, (
                    f"{len(streams - client.ended)} of {count} answers still wait after {PATIENCE_S} s")
                try:
                    if pings:
                        client.ping()
                    for stream in list(streams - client.ended)[:nudges]:
                        client.nudge(stream)
                    if not client.take(0.1):
                        return "the connection was closed"
                except ConnectionError:
                    return "the connection was closed"
                stage.must_live()
            return f"{len(client.ended)} streams ended"

    return attack


def over_http2(client):
    stream = client.begin("POST", PATH, end_stream=False)
    client.data(stream, BODY, end_stream=True)
    return stream


def over_grpc(client):
    return client.call("ModelInfer", MESSAGE)


def over_grpc_stream(client):
    """40 requests on one call, of which no answer is read."""
    path = f"{SERVICE}ModelStreamInfer"
    stream = client.begin("POST", path, end_stream=False, content_type="application/grpc", te="trailers")
    client.data(stream, grpc_frame(MESSAGE) * COUNT, end_stream=True)
    return stream


def http_of(stage):
    return stage.http


def grpc_of(stage):
    return stage.grpc


def drip(stage):
    """A byte of the answer for each look, of which there are ten a second."""
    pace = threading.Event()
    with contextlib.closing(open_socket(stage.http, receive_buffer=2304)) as reader:
        reader.sendall(head(PATH, len(BODY)) + BODY)
        # The answer has begun, so the server has the connection.
        taken = len(reader.recv(1))
        reader.settimeout(0.1)
        deadline = time.monotonic() + PATIENCE_S
        while still_served([reader]):
            assert time.monotonic() < deadline, f"still served after {taken} bytes"
            with contextlib.suppress(TimeoutError, ConnectionError):
                taken += len(reader.recv(1))
            # This is what makes the reader slow.
            pace.wait(0.1)
        return f"given up after {taken} bytes"


def small_windows(stage):
    """A window of one byte for each stream: as many frames as bytes."""
    with Http2(stage.http) as client:
        client.socket.settimeout(HANG_S)
        client.state.update_settings({4: 1})
        client.flush()
        streams = [over_http2(client) for _ in range(10)]
        deadline = time.monotonic() + PATIENCE_S
        opened = 0
        ended = set()
        while len(ended) < len(streams):
            assert time.monotonic() < deadline, f"still served after {opened} windows of a byte"
            try:
                for stream in streams:
                    if stream not in ended:
                        client.state.increment_flow_control_window(1, stream)
                        opened += 1
                client.flush()
                data = client.socket.recv(65536)
            except ConnectionError:
                return "the connection was closed"
            if not data:
                return "the connection was closed"
            for event in client.state.receive_data(data):
                if type(event).__name__ in ("StreamEnded", "StreamReset"):
                    ended.add(event.stream_id)
        return f"{len(ended)} streams ended"


def rapid_reset(stage):
    """4,000 requests, each cancelled at once."""
    with Http2(stage.http) as client:
        try:
            for _ in range(40):
                for _ in range(100):
                    stream = client.prepare("POST", PATH, end_stream=False)
                    client.state.send_data(stream, BODY, end_stream=True)
                    client.state.reset_stream(stream, 8)
                client.flush()
                # The connection's window is the client's for all streams.
                client.state.increment_flow_control_window(MIB)
        except (ConnectionError, TimeoutError):
            return "the connection was closed"
    return "all were taken"


def gone(stage):
    """100 clients that ask and go."""
    for _ in range(100):
        with contextlib.closing(open_socket(stage.http)) as client:
            client.sendall(head(PATH, len(BODY)) + BODY)
    return "gone"


def pipelined(stage):
    """1,000 requests on one connection, of which no answer is read."""
    with contextlib.closing(open_socket(stage.http, receive_buffer=4096)) as client:
        with contextlib.suppress(ConnectionError, TimeoutError):
            client.settimeout(PATIENCE_S)
            client.sendall((head(PATH, len(BODY)) + BODY) * 1000)
        stage.wait(lambda: not still_served([client]), "the server gave the connection up", PATIENCE_S)
    return "given up"


def large_at_once(stage):
    """30 answers of 8 MiB in JSON, 10 at a time, all of them read."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    return together(10, lambda _: [answered(post(stage.http, PATH, body, hang_s=60)) for _ in range(3)])


def slow_request_bodies(stage):
    """50 bodies that come byte by byte, some of them over gRPC: told so, or closed."""
    with contextlib.ExitStack() as stack:
        slow = []
        for _ in range(50):
            client = stack.enter_context(contextlib.closing(open_socket(stage.http)))
            client.sendall(head(PATH, 10_000) + b"{")
            slow.append(client)
        calls = stack.enter_context(Http2(stage.grpc))
        calls.socket.settimeout(HANG_S)
        stream = calls.call("ModelInfer", None, prefix=10_000)
        for client in slow:
            client.sendall(b" ")
        for client in slow:
            until_closed(client, "a connection with a slow body")
        headers, _ = calls.answer(stream)
        assert headers.get("grpc-status") != "0", headers
    return f"closed; grpc-status {headers.get('grpc-status')}"


def grpc_streams_unread(stage):
    """Eight calls of grpcio whose answers are never taken, each with 20 requests."""
    with channel(stage) as opened:
        calls = [opened.stream_stream(f"{SERVICE}ModelStreamInfer")(iter([MESSAGE] * 20), timeout=60) for _ in range(8)]
        firsts = []
        for made in calls:
            try:
                firsts.append(len(next(made)) > ANSWER)
            except Exception as error:  # noqa: BLE001: refusals are right too.
                firsts.append(str(getattr(error, "code", lambda: error)()))
        for made in calls:
            made.cancel()
    return {str(first): firsts.count(first) for first in firsts}


def case(id, what, attack, **more):
    return Case(id, "answers", what, SETUP, attack, **{"peak_mib": PEAK_MIB, "refusals": True, **more})


CASES = [
    case("unread-http1", "40 answers of 8 MiB over HTTP/1.1 that nobody reads", http1),
    case("unread-http2", "the same over HTTP/2, one connection", deaf(http_of, over_http2)),
    case("unread-http2-pings", "the same, kept alive by PINGs", deaf(http_of, over_http2, pings=True)),
    case("unread-grpc", "40 unary calls whose answers of 8 MiB nobody reads", deaf(grpc_of, over_grpc)),
    case("unread-grpc-pings", "the same, kept alive by PINGs", deaf(grpc_of, over_grpc, pings=True)),
    case("unread-stream", "a stream of 40 requests whose answers nobody reads", deaf(grpc_of, over_grpc_stream, count=1)),
    case("unread-stream-pings", "the same, kept alive by PINGs", deaf(grpc_of, over_grpc_stream, pings=True, count=1)),
    case("unread-streams-grpcio", "eight streams of grpcio whose answers are taken once", grpc_streams_unread),
    case("slow-reader-http1", "a reader of ten bytes a second over HTTP/1.1", drip),
    case("slow-reader-http2", "windows of a byte, ten a second, over HTTP/2, kept alive by PINGs",
         deaf(http_of, over_http2, pings=True, nudges=1)),
    case("slow-reader-grpc", "the same over gRPC", deaf(grpc_of, over_grpc, pings=True, nudges=1)),
    case("small-windows", "a window of one byte for each of ten streams, as fast as they are used", small_windows),
    case("rapid-reset", "4,000 requests over HTTP/2, each cancelled at once", rapid_reset),
    case("vanish", "100 clients that ask for 8 MiB and go", gone),
    case("pipelined", "1,000 requests on a connection that reads none of their answers", pipelined),
    case("large-at-once", "30 answers of 8 MiB in JSON, 10 at a time", large_at_once, peak_mib=2 * MEMORY_MIB + 160),
    case("slow-bodies-trickle", "50 bodies and a gRPC message that do not come", slow_request_bodies, refusals=False),
]
