"""Small ones: closed outputs, durations that overflow, connections that are only polite, certificates."""

import contextlib
import os
import signal
import ssl
import subprocess

from http2_client import Http2
import models
from case import Case
from process import MIB
from repository import Repository, plus
from server import BINARY, ROOT, Server
from stage import HANG_S, PROCESS, Setup
from tools import HTTP2_PREFACE, floats, open_socket, post, until_closed

HUGE = 2**64 - 1
HEAD_MS = 400
PANICKED = 101
SETUP = Setup("small", lambda repository: None, (f"--head-timeout-ms={HEAD_MS}",))
DURATIONS = ["exit-timeout-secs", "session-keep-alive-secs", "store-keep-alive-secs", "sandbox-load-timeout-secs",
             "head-timeout-ms", "body-timeout-ms", "write-timeout-ms", "idle-timeout-ms", "grpc-keepalive-time",
             "grpc-keepalive-timeout", "grpc-max-connection-age", "grpc-max-connection-age-grace", "repository-poll-secs",
             "metrics-interval-ms"]


def closed_output(*arguments):
    """`skep ... | head`, whose end reads nothing: no panic, no signal but the one for it, in time."""
    def attack(stage):
        given = [text.replace("{models}", str(stage.repository)).replace("{directory}", str(stage.directory))
                 .replace("{http}", stage.http) for text in arguments]
        read, write = os.pipe()
        os.close(read)
        try:
            done = subprocess.run([BINARY, *given], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=write, stderr=subprocess.PIPE,
                                  timeout=3 * HANG_S)
        finally:
            os.close(write)
        said = done.stderr.decode(errors="replace")
        assert done.returncode != PANICKED and "panicked" not in said, (done.returncode, said[:300])
        assert done.returncode >= 0 or -done.returncode == signal.SIGPIPE, done.returncode
        return f"exit code {done.returncode}"

    return attack


def closed_store_output(what):
    """The same against a daemon."""
    def attack(stage):
        sockets = stage.directory / f"sockets-{what}"
        command = [BINARY, "store", "serve", "--directory", sockets]
        daemon = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        try:
            daemon.stdout.readline()
            return closed_output("store", what, "--directory", str(sockets))(stage)
        finally:
            daemon.kill()
            daemon.wait()
            daemon.stdout.close()

    return attack


def closed_store_serve(stage):
    """A daemon whose own output is closed goes on, or ends without a panic."""
    read, write = os.pipe()
    os.close(read)
    daemon = subprocess.Popen([BINARY, "store", "serve", "--directory", stage.directory / "sockets-serve"], cwd=ROOT,
                              stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    try:
        socket = stage.directory / "sockets-serve" / "store.sock"
        stage.wait(lambda: socket.exists() or daemon.poll() is not None, "it has begun")
        daemon.send_signal(signal.SIGTERM)
        code = daemon.wait(HANG_S)
        said = daemon.stderr.read()
        assert code != PANICKED and "panicked" not in said, (code, said[:300])
        return f"exit code {code}"
    finally:
        daemon.kill()
        daemon.wait()
        daemon.stderr.close()


def duration(flag):
    """A second server with the largest of durations serves, loads and unloads, and stops; or says what is wrong."""
    def attack(stage):
        repository = Repository(stage.directory / f"models-{flag}")
        repository.onnx("m", plus(1))
        # Large enough to be baked, so that its session is kept when it is unloaded.
        repository.onnx("large", models.constant(0.5, MIB))
        repository.mock("sandboxed", config=PROCESS)
        control = "--model-control-mode=poll" if "poll" in flag else "--model-control-mode=explicit"
        loaded = () if "poll" in flag else ("--load-model=m",)
        with Server(repository, f"--{flag}={HUGE}", control, *loaded, until=None) as server:
            def either():
                return any("ready for requests" in line for line in server.lines) or server.process.poll() is not None

            stage.wait(either, "it has begun or ended")
            if server.process.poll() is not None:
                code = server.wait(HANG_S)
                assert code == 1 and flag in server.log and "panicked" not in server.log, (code, server.log[-500:])
                return f"refused: {server.lines[0][:200]}"
            assert post(server.http, "/v2/models/m/infer", {"inputs": [floats("x", (1, 4))]}).status == 200
            if "poll" not in flag:
                for verb in ("load", "unload", "load"):
                    for model in ("large", "sandboxed"):
                        told = post(server.http, f"/v2/repository/models/{model}/{verb}")
                        assert told is not None and told.status == 200, (verb, model, told and told.body, server.log[-500:])
            code = server.stop(deadline_s=HANG_S)
            assert code == 0 and "panicked" not in server.log, (code, server.log[-500:])
            return "served, and stopped with 0"

    return attack


def settings_only(address_of):
    """A connection that has said what HTTP/2 wants first, and nothing yet, stays; its first request is answered."""
    def attack(stage):
        with Http2(address_of(stage)) as polite, contextlib.closing(open_socket(stage.http)) as silent:
            polite.socket.settimeout(HANG_S)
            # Silent ones are closed after the time for a head, which has passed for the other as well by then.
            until_closed(silent, "a silent connection")
            with contextlib.closing(open_socket(stage.http)) as another:
                until_closed(another, "another silent connection")
            stream = polite.begin("GET", "/v2/health/live")
            headers, _ = polite.answer(stream)
            return headers.get(":status")

    return attack


def half_a_preface(stage):
    """What begins as HTTP/2 and goes no further is closed."""
    with contextlib.closing(open_socket(stage.http)) as client:
        client.sendall(HTTP2_PREFACE[:10])
        until_closed(client)
    with contextlib.closing(open_socket(stage.grpc)) as client:
        client.sendall(HTTP2_PREFACE[:10])
        until_closed(client)
    return "closed"


def frames(kind, count):
    """So many frames that ask for answers, of which none is read."""
    def attack(stage):
        with contextlib.closing(open_socket(stage.http, receive_buffer=4096)) as client:
            client.settimeout(3)
            sent = 0
            try:
                client.sendall(HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0")
                while sent < count:
                    client.sendall(kind * 1000)
                    sent += 1000
            except (ConnectionError, TimeoutError) as error:
                return f"{type(error).__name__} after {sent} frames"
            return f"{sent} frames taken"

    return attack


def continuation(stage):
    """A head that never ends: 10,000 CONTINUATION frames."""
    with contextlib.closing(open_socket(stage.http)) as client:
        first = b"\0\0\1\1\0\0\0\0\1\x82"
        more = b"\x00\x40\x00\x09\x00\0\0\0\1" + (b"\x00\x01a\x01b" * 3300)[:16384]
        try:
            client.sendall(HTTP2_PREFACE + b"\0\0\0\4\0\0\0\0\0" + first)
            for number in range(10_000):
                client.sendall(more)
        except ConnectionError:
            return f"closed after {number} frames"
        except TimeoutError:
            raise AssertionError("it is neither read nor closed") from None
    return "all were taken"


def garbage(stage):
    """Bytes that are no protocol, on each port."""
    told = []
    for address in (stage.http, stage.grpc, stage.server.metrics):
        for data in (os.urandom(4096), b"\0" * 4096, b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00" + os.urandom(600),
                     HTTP2_PREFACE + os.urandom(4096)):
            with contextlib.closing(open_socket(address)) as client:
                with contextlib.suppress(ConnectionError):
                    client.sendall(data)
                    with contextlib.suppress(OSError):
                        client.shutdown(1)
                    until_closed(client, "a connection with garbage")
            told.append("closed")
    return f"{len(told)} closed"


def certificates(directory):
    """A pair that is its own authority, as `openssl req -x509` makes it."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(7)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pair = directory / "own.pem", directory / "own.key"
    pair[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pair[1].write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return pair


def own_authority(stage):
    """A client's certificate that is also its authority's: taken, or refused with a reason."""
    directory = stage.directory / "tls"
    # The benchmark attacks more than once.
    directory.mkdir(exist_ok=True)
    certificate, key = certificates(directory)
    repository = Repository(directory / "models")
    repository.onnx("m", plus(1))
    flags = [f"--http-server-cert={certificate}", f"--http-server-key={key}", f"--http-root-cert={certificate}"]
    with Server(repository, "--http-use-ssl-mutual=true", *flags, "--log-verbose=1") as server:
        context = ssl.create_default_context(cafile=certificate)
        context.load_cert_chain(certificate, key)
        try:
            with context.wrap_socket(open_socket(server.http), server_hostname="localhost") as client:
                client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
                told = client.recv(65536).split(b"\r\n")[0].decode() or "closed"
        except (ssl.SSLError, ConnectionError) as error:
            told = f"{type(error).__name__}: {error}"
        if " 200 " in told:
            return told
        # The text that says why may be the log's alone.
        reasons = [line for line in server.lines if "certificate" in line.lower() and "CA" in line]
        assert reasons, f"refused, and no line says why: {told}\n{server.log[-500:]}"
        return f"{told}: {reasons[0][:200]}"


def case(id, what, attack, **more):
    return Case(id, "small", what, SETUP, attack, **{"peak_mib": 64, **more})



def plan(stage):
    """A plan of a problem of 200 buffers."""
    rows = "".join(f"{number},{number},{number + 3},{1024 + number}\n" for number in range(200))
    (stage.directory / "problem.csv").write_text("id,lower,upper,size\n" + rows)
    return closed_output("plan", "{directory}/problem.csv")(stage)


CASES = [
    *[case(f"closed-{name}", f"`skep {' '.join(arguments)} | head`", closed_output(*arguments)) for name, arguments in (
        ("help", ("--help",)), ("serve-help", ("serve", "--help")), ("doctor", ("doctor",)), ("check", ("check", "{models}")),
        ("check-json", ("check", "--json", "{models}")), ("bake", ("bake", "--weight-cache={directory}/forms", "{models}")),
        ("bake-json", ("bake", "--json", "--weight-cache={directory}/forms", "{models}")),
        ("generate", ("generate", "mlp:layers=16x8", "{directory}/generated.onnx")),
        ("infer", ("infer", "neighbour", "--zeros", "--url", "http://{http}")),
        ("simulate", ("simulate", "batching", "--requests=300", "--seeds=1", "--load=0.5", "--arrival=poisson")))],
    case("closed-plan", "`skep plan TABLE | head`", plan),
    *[case(f"closed-store-{what}", f"`skep store {what} | head`", closed_store_output(what)) for what in ("stat", "ls", "gc")],
    case("closed-store-serve", "`skep store serve` whose output is closed", closed_store_serve),
    *[case(f"huge-{flag}", f"`--{flag} {HUGE}`", duration(flag)) for flag in DURATIONS],
    case("http2-settings-only", "an HTTP/2 connection that sends settings and waits with its request",
         settings_only(lambda stage: stage.http)),
    case("grpc-settings-only", "the same on the gRPC port", settings_only(lambda stage: stage.grpc)),
    case("http2-half-preface", "half of HTTP/2's first bytes", half_a_preface),
    case("http2-pings", "a million PINGs whose answers nobody reads", frames(b"\0\0\x08\6\0\0\0\0\0hostile!", 1_000_000)),
    case("http2-settings", "a million SETTINGS whose answers nobody reads", frames(b"\0\0\0\4\0\0\0\0\0", 1_000_000)),
    case("http2-continuation", "a head of 10,000 CONTINUATION frames", continuation),
    case("garbage", "bytes that are no protocol, on each port", garbage),
    case("tls-own-authority", "a client's certificate that is its own authority", own_authority),
]
