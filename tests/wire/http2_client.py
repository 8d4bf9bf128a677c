"""HTTP/2 frame by frame, for what well-behaved clients do not do."""

import contextlib
import socket
import struct

import h2.config
import h2.connection
import h2.events
from h2.exceptions import ProtocolError

from tritonclient.grpc import service_pb2

from server import DEADLINE_S


# Length, type, flags, stream.
FRAME_HEAD = 9


def split(address):
    """Host and port out of `127.0.0.1:8000` or `[::1]:8000`."""
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def infer_message(model, name="x", shape=(1, 4), data=bytes(16)):
    """A serialized `ModelInferRequest` of one FP32 input."""
    message = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=[data])
    message.inputs.add(name=name, datatype="FP32", shape=shape)
    return message.SerializeToString()


class Http2:
    """One connection. Nothing is acknowledged and no window opened but by `events`."""

    def __init__(self, address, wrap=lambda connection: connection):
        connection = socket.create_connection(split(address), DEADLINE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = wrap(connection)
        self.socket.settimeout(DEADLINE_S)
        self.state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.closed = False
        self.state.initiate_connection()
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def flush(self):
        self.socket.sendall(self.state.data_to_send())

    def prepare(self, method, path, end_stream=True, **headers):
        """Writes a request's head, to be sent with what is flushed next; the number of its stream."""
        stream = self.state.get_next_available_stream_id()
        fields = {":method": method, ":path": path, ":scheme": "http", ":authority": "test"}
        fields.update({name.replace("_", "-"): value for name, value in headers.items()})
        self.state.send_headers(stream, list(fields.items()), end_stream=end_stream)
        return stream

    def begin(self, method, path, end_stream=True, **headers):
        """Sends a request's head; the number of its stream."""
        stream = self.prepare(method, path, end_stream, **headers)
        self.flush()
        return stream

    def call(self, method, message=None, prefix=None, **headers):
        """Begins a gRPC call; `prefix` is a length that need not be the message's."""
        path = f"/inference.GRPCInferenceService/{method}"
        stream = self.begin("POST", path, end_stream=False, content_type="application/grpc", te="trailers", **headers)
        data = struct.pack(">BI", 0, len(message or b"") if prefix is None else prefix) + (message or b"")
        self.state.send_data(stream, data, end_stream=message is not None)
        self.flush()
        return stream

    def data(self, stream, data, end_stream=False):
        self.state.send_data(stream, data, end_stream=end_stream)
        self.flush()

    def frames(self):
        """What comes until the connection closes, a frame at a time."""
        received = b""
        while True:
            try:
                data = self.socket.recv(65536)
            except ConnectionError:
                data = b""
            if not data:
                self.closed = True
                return
            received += data
            while len(received) >= FRAME_HEAD and len(received) >= (end := FRAME_HEAD + int.from_bytes(received[:3], "big")):
                yield received[:end]
                received = received[end:]

    def events(self):
        """What comes until the connection closes, pings acknowledged and windows opened."""
        for frame in self.frames():
            try:
                events = self.state.receive_data(frame)
            except ProtocolError:
                # The client's half of the protocol ends with the server's farewell, of which more frames are part.
                continue
            for event in events:
                if isinstance(event, h2.events.DataReceived):
                    self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                yield event
            with contextlib.suppress(ConnectionError):
                self.flush()

    def answer(self, stream):
        """Headers and trailers in one, and the body, of a request."""
        headers, body = {}, bytearray()
        for event in self.events():
            if getattr(event, "stream_id", None) != stream:
                continue
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                headers.update(event.headers)
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
            elif isinstance(event, h2.events.StreamReset):
                headers["reset"] = event.error_code
                return headers, body
            elif isinstance(event, h2.events.StreamEnded):
                return headers, body
        raise AssertionError(f"the connection closed before the answer was whole: {headers} {len(body)} bytes")

    def until_closed(self):
        """The names of all events until the server closes the connection."""
        return [type(event).__name__ for event in self.events()]
