"""A process that asks a server for another model's answers, and for its health, all the time.

`neighbour.py HTTP_ADDRESS [PAUSE_S]`; the pause is that between an answer and the next question.

A process of its own, so that what a test computes does not delay it. A line on standard input is a command, answered by
one line of JSON: `report` tells what was seen since the last report, and forgets it; `look` waits until each question met
something since then; `pause`, `resume`. The end of the input ends it.
Standard library only.
"""

import json
import socket
import struct
import sys
import threading
import time

MODEL = "neighbour"
# A server that is silent for longer hangs.
PATIENCE_S = 60
# Enough questions to see a stall, too few to be load.
PAUSE_S = 0.004
RETRY_S = 0.05
# A question that has met nothing after so long is told as it is.
LOOK_S = 20
REFUSED = {429, 503}


class Line:
    """One HTTP/1.1 connection, opened again when it was closed."""

    def __init__(self, address):
        host, port = address.rsplit(":", 1)
        self.address = host, int(port)
        self.socket = None

    def ask(self, head, body=b""):
        """Status and body of an answer."""
        if self.socket is None:
            self.socket = socket.create_connection(self.address, PATIENCE_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket.sendall(head + body)
            return self._answer()
        except BaseException:
            self.socket.close()
            self.socket = None
            raise

    def _answer(self):
        received = b""
        while (end := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        fields = received[:end].decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in fields[1:] if ": " in line)
        received = received[end + 4 :]
        while len(received) < int(headers.get("content-length", 0)):
            received += self._more()
        if headers.get("connection") == "close":
            self.socket.close()
            self.socket = None
        return int(fields[0].split(" ")[1]), received, headers

    def _more(self):
        piece = self.socket.recv(1 << 16)
        if not piece:
            raise ConnectionResetError("closed before its answer")
        return piece


class Seen:
    """What one kind of question met since the last report."""

    def __init__(self):
        self.lock = threading.Condition()
        # When the question was asked that has no answer yet.
        self.asked_at = None
        self.clear()

    def clear(self):
        self.right, self.refused, self.wrong, self.broken, self.micros = 0, 0, [], [], []

    def look(self):
        with self.lock:
            self.lock.wait_for(lambda: self.right or self.refused or self.wrong or self.broken, LOOK_S)

    def take(self):
        with self.lock:
            # One that still waits counts with how long it has waited.
            waiting = [] if self.asked_at is None else [round((time.monotonic() - self.asked_at) * 1e6)]
            micros = sorted(self.micros + waiting)
            found = {
                "right": self.right, "refused": self.refused,
                "wrong": self.wrong[:3], "wrongs": len(self.wrong),
                "broken": self.broken[:3], "brokens": len(self.broken),
                "p50_us": micros[len(micros) // 2] if micros else None,
                "p99_us": micros[min(len(micros) - 1, len(micros) * 99 // 100)] if micros else None,
                "max_us": micros[-1] if micros else None,
                "count": len(micros),
            }
            self.clear()
            return found


def loop(seen, running, ask, pause_s):
    """Asks on; `ask` says whether the answer was right, `None` for a refusal, or a text that says what was wrong."""
    number = 0
    while True:
        running.wait()
        number += 1
        began = seen.asked_at = time.monotonic()
        try:
            answer, broken = ask(number), None
        except (OSError, ValueError, KeyError, IndexError) as error:
            answer, broken = None, f"{type(error).__name__}: {error}"
        took = round((time.monotonic() - began) * 1e6)
        with seen.lock:
            seen.asked_at = None
            if broken is not None:
                seen.broken.append(broken)
            elif answer is True:
                seen.right += 1
            elif answer is None:
                seen.refused += 1
            else:
                seen.wrong.append(answer)
            if broken is None:
                seen.micros.append(took)
            seen.lock.notify_all()
        time.sleep(pause_s if broken is None else RETRY_S)


def asking(line):
    """Four floats, each time others; the answers are one more."""

    def ask(number):
        values = [float(number % 4096 + i) for i in range(4)]
        data = struct.pack("<4f", *values)
        head = json.dumps({
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}],
            "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
        }).encode()
        status, body, headers = line.ask(
            f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: n\r\nContent-Length: {len(head) + 16}\r\n"
            f"Inference-Header-Content-Length: {len(head)}\r\n\r\n".encode(), head + data)
        if status in REFUSED:
            return None
        if status != 200:
            return f"{status} {body[:300].decode(errors='replace')}"
        got = list(struct.unpack("<4f", body[int(headers["inference-header-content-length"]) :]))
        return True if got == [value + 1 for value in values] else f"{got} for {values}"

    return ask


def looking(line):
    """Liveness, and that readiness answers, whatever it says."""

    def ask(_):
        status, body, _ = line.ask(b"GET /v2/health/live HTTP/1.1\r\nHost: n\r\n\r\n")
        if status != 200:
            return f"live: {status} {body[:300].decode(errors='replace')}"
        line.ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: n\r\n\r\n")
        return True

    return ask


def main():
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else PAUSE_S
    running = threading.Event()
    running.set()
    kinds = {"answers": Seen(), "health": Seen()}
    for name, make in (("answers", asking), ("health", looking)):
        asked = (kinds[name], running, make(Line(sys.argv[1])), pause_s)
        threading.Thread(target=loop, args=asked, daemon=True).start()
    for command in sys.stdin:
        if command == "pause\n":
            running.clear()
        elif command == "resume\n":
            running.set()
        elif command == "look\n":
            for seen in kinds.values():
                seen.look()
        found = {name: seen.take() for name, seen in kinds.items()} if command == "report\n" else {}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
