"""Plain HTTP against a server: one request a call, and bodies put together by hand."""

import contextlib
import http.client
import json
import socket

from server import DEADLINE_S

HEADER_LENGTH = "Inference-Header-Content-Length"


class Answer:
    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        """The text of an error body, which is `{"error": "..."}` and nothing else, under one of Triton's two labels."""
        label = self.headers["content-type"]
        assert label in ("application/json", "text/plain"), (self.status, self.headers.items(), self.body)
        assert list(self.json) == ["error"], self.body
        return self.json["error"]

    def parts(self):
        """The JSON part and the binary part."""
        length = self.headers[HEADER_LENGTH]
        if length is None:
            return self.json, b""
        return json.loads(self.body[: int(length)]), self.body[int(length) :]


def connect(address):
    return contextlib.closing(http.client.HTTPConnection(address, timeout=DEADLINE_S))


def send(connection, method, path, body=None, headers=None):
    connection.request(method, path, body=body, headers=headers or {})
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def request(address, method, path, body=None, headers=None):
    if isinstance(body, (dict, list)):
        body = json.dumps(body).encode()
    with connect(address) as connection:
        return send(connection, method, path, body, headers)


def get(server, path):
    return request(server.http, "GET", path)


def post(server, path, body=None, headers=None):
    return request(server.http, "POST", path, body, headers)


def infer(server, model, inputs, binary=b"", version=None, **members):
    """An inference; with `binary` the JSON part's length is announced."""
    path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "") + "/infer"
    head = json.dumps({"inputs": inputs, **members}).encode()
    return post(server, path, head + binary, {HEADER_LENGTH: str(len(head))} if binary else None)


def tensor(name, datatype, shape, data=None, **parameters):
    """An input in JSON form; keyword arguments become its parameters."""
    members = {"name": name, "datatype": datatype, "shape": shape}
    if data is not None:
        members["data"] = data
    if parameters:
        members["parameters"] = parameters
    return members


def raw(address, data, half_close=False):
    """Sends bytes as they are; everything that comes back until the server closes the connection."""
    host, port = address.rsplit(":", 1)
    received = b""
    with socket.create_connection((host, int(port)), timeout=DEADLINE_S) as connection:
        # A server that refuses what it has read so far may close before it has all.
        with contextlib.suppress(ConnectionError):
            connection.sendall(data)
        with contextlib.suppress(OSError):
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while chunk := connection.recv(65536):
                received += chunk
    return received
