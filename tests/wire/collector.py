"""A collector of OpenTelemetry: takes traces over HTTP and reads them with OpenTelemetry's own messages."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from server import DEADLINE_S


class Collector:
    """Listens while it is a context. `status` is what it answers."""

    def __init__(self, status=200):
        self.status = status
        self.requests = []
        self.changed = threading.Condition(threading.RLock())
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                with collector.changed:
                    collector.requests.append((self.path, dict(self.headers), ExportTraceServiceRequest.FromString(body)))
                    collector.changed.notify_all()
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(DEADLINE_S)

    @property
    def spans(self):
        with self.changed:
            resources = [resource for _, _, request in self.requests for resource in request.resource_spans]
            return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def wait_spans(self, count):
        """The spans, once there are so many."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.spans) >= count, DEADLINE_S), self.spans
        return self.spans


def attributes(holder):
    """Attributes of a span or a resource."""
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in holder.attributes}


def events(span):
    """The names of a span's events, in order."""
    return [event.name for event in span.events]
