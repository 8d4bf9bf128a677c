"""Encryption: HTTPS and gRPC over TLS, certificates of servers and clients, and their failures."""

import contextlib
import datetime
import http.client
import json
import os
import shutil
import signal
import socket
import ssl

import grpc
import pytest
import tritonclient.grpc
import tritonclient.http
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from http2_client import Http2, split
from http_client import connect, get, infer, raw, request, send, tensor
from repository import Repository, plus
from server import DEADLINE_S, Server, serve_and_fail

ZEROS = [tensor("x", "FP32", [1, 4], [0] * 4)]


class Authority:
    """A certificate authority with a server's and a client's certificate, as files."""

    def __init__(self, directory):
        directory.mkdir()
        self.ca = trustme.CA()
        self.root = directory / "root.pem"
        self.ca.cert_pem.write_to_path(self.root)
        self.server = self._issue(directory, "server", "localhost", "127.0.0.1")
        self.client = self._issue(directory, "client", "client.test")

    def _issue(self, directory, name, *identities):
        issued = self.ca.issue_cert(*identities)
        certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
        for number, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(certificate, append=number > 0)
        issued.private_key_pem.write_to_path(key)
        return certificate, key

    def flags(self, protocol, mutual=False):
        certificate, key = self.server
        flags = [f"--{protocol}-use-ssl=true", f"--{protocol}-server-cert={certificate}"]
        flags += [f"--{protocol}-server-key={key}"]
        return flags + ([f"--{protocol}-use-ssl-mutual=true", f"--{protocol}-root-cert={self.root}"] if mutual else [])

    def context(self, certificate=None, protocols=()):
        """The roots that a client trusts, and the certificate that it presents."""
        context = ssl.create_default_context(cafile=self.root)
        if certificate:
            context.load_cert_chain(*certificate)
        if protocols:
            context.set_alpn_protocols(protocols)
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tls") / "authority")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    """An authority that neither side trusts."""
    return Authority(tmp_path_factory.mktemp("tls") / "stranger")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("tls") / "models")
    repository.onnx("m", plus(1))
    return repository


@pytest.fixture(scope="module")
def encrypted(models, authority):
    with Server(models, *authority.flags("http"), *authority.flags("grpc")) as server:
        yield server


@pytest.fixture(scope="module")
def mutual(models, authority):
    with Server(models, *authority.flags("http", True), *authority.flags("grpc", True)) as server:
        yield server


def https(server, context):
    host, port = split(server.http)
    return contextlib.closing(http.client.HTTPSConnection(host, port, timeout=DEADLINE_S, context=context))


def wrapped(connection, context):
    return context.wrap_socket(connection, server_hostname="localhost")


def credentials(root, certificate=None):
    texts = [path.read_bytes() for path in certificate] if certificate else [None, None]
    return grpc.ssl_channel_credentials(root.read_bytes(), private_key=texts[1], certificate_chain=texts[0])


def grpc_ready(server, channel_credentials):
    host, port = split(server.grpc)
    with grpc.secure_channel(f"localhost:{port}", channel_credentials) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ServerReady")
        return call(b"", timeout=DEADLINE_S)


def test_h38_requests_over_https(encrypted, authority):
    body = json.dumps({"inputs": ZEROS})
    with https(encrypted, authority.context()) as connection:
        for _ in range(3):
            assert send(connection, "POST", "/v2/models/m/infer", body).json["outputs"][0]["data"] == [1] * 4


def test_h38_tritonclient_over_https(encrypted, authority):
    client = tritonclient.http.InferenceServerClient(
        encrypted.http, ssl=True, ssl_context_factory=lambda **_: authority.context()
    )
    assert client.is_server_ready()
    client.close()


@pytest.mark.parametrize(("offered", "agreed"), [(["h2"], "h2"), (["http/1.1"], "http/1.1"), (["h2", "http/1.1"], "h2")])
def test_h38_the_handshake_negotiates_the_protocol(encrypted, authority, offered, agreed):
    context = authority.context(protocols=offered)
    if agreed == "h2":
        with Http2(encrypted.http, wrap=lambda connection: wrapped(connection, context)) as client:
            assert client.socket.selected_alpn_protocol() == agreed
            assert client.answer(client.begin("GET", "/v2/health/ready"))[0][":status"] == "200"
    else:
        with https(encrypted, context) as connection:
            assert send(connection, "GET", "/v2/health/ready").status == 200
            assert connection.sock.selected_alpn_protocol() == agreed


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_h38_versions(encrypted, authority, version):
    context = authority.context()
    context.minimum_version = context.maximum_version = version
    with https(encrypted, context) as connection:
        assert send(connection, "GET", "/v2/health/ready").status == 200


def test_h38_large_bodies_both_ways(models, authority):
    models.onnx("large", plus(1, shape=("batch", 100_000)))
    body = json.dumps({"inputs": [tensor("x", "FP32", [4, 100_000], [0] * 400_000)]})
    with Server(models, *authority.flags("http")) as server, https(server, authority.context()) as connection:
        answer = send(connection, "POST", "/v2/models/large/infer", body)
        assert answer.json["outputs"][0]["data"] == [1] * 400_000


def test_h38_a_client_that_does_not_trust_the_server_leaves(encrypted, stranger):
    with pytest.raises(ssl.SSLCertVerificationError), https(encrypted, stranger.context()) as connection:
        send(connection, "GET", "/v2/health/ready")


def test_g11_calls_over_tls(encrypted, authority):
    assert grpc_ready(encrypted, credentials(authority.root)) == b"\x08\x01"
    port = split(encrypted.grpc)[1]
    with tritonclient.grpc.InferenceServerClient(
        f"localhost:{port}", ssl=True, root_certificates=str(authority.root)
    ) as client:
        data = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
        data._raw_content = b"\0" * 16
        assert client.infer("m", [data]).as_numpy("y").tolist() == [[1.0] * 4]


def test_g11_a_client_that_does_not_trust_the_server_fails(encrypted, stranger):
    with pytest.raises(grpc.RpcError) as failure:
        grpc_ready(encrypted, credentials(stranger.root))
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_h38_g11_a_client_with_a_certificate_is_served(mutual, authority):
    with https(mutual, authority.context(authority.client)) as connection:
        assert send(connection, "GET", "/v2/health/ready").status == 200
    assert grpc_ready(mutual, credentials(authority.root, authority.client)) == b"\x08\x01"


@pytest.mark.parametrize("shown", [None, "stranger"])
def test_h38_g11_a_client_without_a_trusted_certificate_is_refused(mutual, authority, stranger, shown):
    certificate = stranger.client if shown else None
    with pytest.raises((ssl.SSLError, ConnectionError, http.client.RemoteDisconnected)):
        with https(mutual, authority.context(certificate)) as connection:
            send(connection, "GET", "/v2/health/ready")
    with pytest.raises(grpc.RpcError) as failure:
        grpc_ready(mutual, credentials(authority.root, certificate))
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE


def test_h38_plain_text_to_an_encrypted_port_and_vice_versa(encrypted, simple, authority):
    plain = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"
    for address in (encrypted.http, encrypted.grpc):
        assert b"HTTP/1.1" not in raw(address, plain)
    for address in (simple.http, simple.grpc):
        with socket.create_connection(split(address), DEADLINE_S) as connection:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                wrapped(connection, authority.context())
    with https(encrypted, authority.context()) as connection:
        assert send(connection, "GET", "/v2/health/ready").status == 200
    assert get(simple, "/v2/health/ready").status == 200


def test_h38_metrics_stay_plain(encrypted):
    assert request(encrypted.metrics, "GET", "/metrics").status == 200


def test_h38_g11_a_missing_handshake_ends_and_delays_no_others(models, authority):
    flags = authority.flags("http") + authority.flags("grpc")
    with Server(models, *flags, "--head-timeout-ms=300") as server:
        for address in (server.http, server.grpc):
            with socket.create_connection(split(address), DEADLINE_S) as silent:
                with https(server, authority.context()) as connection:
                    assert send(connection, "GET", "/v2/health/ready").status == 200
                # The first bytes of a hello, and no more.
                silent.sendall(b"\x16\x03\x01")
                assert silent.recv(1) == b""


def test_c42_open_encrypted_connections_do_not_delay_a_stop(models, authority):
    flags = authority.flags("http") + authority.flags("grpc")
    with Server(models, *flags) as server, contextlib.ExitStack() as stack:
        idle = stack.enter_context(https(server, authority.context()))
        assert send(idle, "GET", "/v2/health/ready").status == 200
        for address in (server.http, server.grpc):
            stack.enter_context(socket.create_connection(split(address), DEADLINE_S))
        assert server.stop(deadline_s=20) == 0
        assert "connections still open" not in server.log


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["use-ssl=true"], "{p}-server-cert"),
        (["use-ssl=true", "server-cert={cert}"], "{p}-server-key"),
        (["use-ssl-mutual=true", "server-cert={cert}", "server-key={key}"], "{p}-root-cert"),
        (["use-ssl=true", "server-cert=/nonexistent.pem", "server-key={key}"], "{p}-server-cert: `/nonexistent.pem`"),
        (["use-ssl=true", "server-cert={cert}", "server-key=/nonexistent.key"], "{p}-server-key: `/nonexistent.key`"),
        (["use-ssl=true", "server-cert={key}", "server-key={key}"], "{p}-server-cert: `{key}`: holds no certificate"),
        (["use-ssl=true", "server-cert={cert}", "server-key={cert}"], "{p}-server-key: `{cert}`: holds no private key"),
        (["use-ssl=true", "server-cert={cert}", "server-key={other}"], "{p}-server-key: `{other}`"),
    ],
)
def test_c28_unusable_files_are_named_at_the_start(models, authority, stranger, protocol, flags, named):
    values = {"p": protocol, "cert": authority.server[0], "key": authority.server[1], "other": stranger.server[1]}
    code, log = serve_and_fail(models, *[f"--{protocol}-{flag}".format(**values) for flag in flags])
    assert code == 1
    assert named.format(**values) in log


def test_c28_files_without_encryption_are_named(models, authority):
    flags = [f"--grpc-server-cert={authority.server[0]}", f"--grpc-root-cert={authority.root}"]
    with Server(models, *flags) as server:
        for flag in flags:
            assert server.log.count(f"accepted without effect: {flag.split('=')[0]}:") == 1
        assert infer(server, "m", ZEROS).status == 200
        with connect(server.http) as connection:
            assert send(connection, "GET", "/v2/health/ready").status == 200


def self_signed(directory, name, **options):
    """What `openssl req -x509` makes: one certificate, an authority's, signed by itself."""
    certificate, key = directory / f"{name}.pem", directory / f"{name}.key"
    now = datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    private = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=options.get("days_left", 9)))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return certificate, key


def test_h38_a_self_signed_certificate_is_accepted_from_a_client(models, authority, tmp_path):
    """Common in test clusters, and taken by Triton's TLS library; only while it is valid, and only
    where it is one of the roots itself."""
    own, expired, other = [
        self_signed(tmp_path, name, days_left=days) for name, days in (("own", 9), ("expired", -1), ("other", 9))
    ]
    roots = tmp_path / "roots.pem"
    roots.write_bytes(own[0].read_bytes() + expired[0].read_bytes())
    flags = [
        flag if not flag.startswith(f"--{protocol}-root-cert=") else f"--{protocol}-root-cert={roots}"
        for protocol in ("http", "grpc")
        for flag in authority.flags(protocol, mutual=True)
    ]
    with Server(models, *flags) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.context(own)
            context.minimum_version = context.maximum_version = version
            with https(server, context) as connection:
                assert send(connection, "GET", "/v2/health/ready").status == 200
        assert grpc_ready(server, credentials(authority.root, own)) is not None
        for certificate in (other, expired):
            with pytest.raises((ssl.SSLError, ConnectionError)), https(server, authority.context(certificate)) as client:
                send(client, "GET", "/v2/health/ready")
        server.wait_for("a client's certificate is refused")
        assert "it is a CA certificate, and not one of the roots" in server.log
        assert server.log.count("a client's certificate is refused") == 1, "once a minute is enough"


def der(tag, *contents):
    """A value in DER."""
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def without_version(signed):
    """What is signed of a certificate of version 3 without extensions, as version 1 has it."""
    start = 2 if signed[1] < 0x80 else 2 + (signed[1] & 0x7F)
    version = bytes([0xA0, 3, 2, 1, 2])
    assert signed[start:].startswith(version)
    return der(0x30, signed[start + len(version) :])


class Version1:
    """Certificates as `openssl x509 -req` makes them, and their root."""

    def __init__(self, directory, kind):
        self.directory, self.kind = directory, kind
        self.ca = self._key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")])
        now = datetime.datetime.now(datetime.UTC)
        self.name, self.now = name, now
        root = self._builder(name, self.ca.public_key(), 9).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.root = directory / "root.pem"
        self.root.write_bytes(root.sign(self.ca, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _key(self):
        return rsa.generate_private_key(65537, 2048) if self.kind == "rsa" else ec.generate_private_key(ec.SECP256R1())

    def _builder(self, subject, key, days_left):
        builder = x509.CertificateBuilder().subject_name(subject).issuer_name(self.name).public_key(key)
        builder = builder.serial_number(7).not_valid_before(self.now - datetime.timedelta(days=9))
        return builder.not_valid_after(self.now + datetime.timedelta(days=days_left))

    def issue(self, name, days_left=9, signer=None):
        key = self._key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
        made = self._builder(subject, key.public_key(), days_left).sign(self.ca, hashes.SHA256())
        signed = without_version(made.tbs_certificate_bytes)
        signer = signer or self.ca
        scheme = [padding.PKCS1v15(), hashes.SHA256()] if self.kind == "rsa" else [ec.ECDSA(hashes.SHA256())]
        oid = bytes.fromhex("06092a864886f70d01010b0500" if self.kind == "rsa" else "06082a8648ce3d040302")
        whole = der(0x30, signed, der(0x30, oid), der(0x03, b"\0", signer.sign(signed, *scheme)))
        certificate, path = self.directory / f"{name}.pem", self.directory / f"{name}.key"
        assert x509.load_der_x509_certificate(whole).version == x509.Version.v1
        certificate.write_text(ssl.DER_cert_to_PEM_cert(whole))
        private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
        return certificate, path


@pytest.fixture(scope="module", params=["ec", "rsa"])
def version_1(request, tmp_path_factory):
    return Version1(tmp_path_factory.mktemp("version-1"), request.param)


def test_a_server_has_a_certificate_of_version_1(models, version_1):
    certificate, key = version_1.issue("server")
    flags = [flag.format(cert=certificate, key=key) for protocol in ("http", "grpc") for flag in (
        f"--{protocol}-use-ssl=true", f"--{protocol}-server-cert={{cert}}", f"--{protocol}-server-key={{key}}")]
    with Server(models, *flags) as server:
        # It names no host, and gRPC takes its common name for one.
        assert grpc_ready(server, credentials(version_1.root)) == b"\x08\x01"
        context = ssl.create_default_context(cafile=version_1.root)
        context.check_hostname = False
        with https(server, context) as connection:
            assert send(connection, "GET", "/v2/health/ready").status == 200
        assert f"`{certificate}` is a certificate of X.509 version 1" in server.log
    code, log = serve_and_fail(models, *flags[:2], f"--http-server-key={version_1.issue('other')[1]}")
    assert code == 1
    assert f"is not the key of the certificate in `{certificate}`: their public keys differ" in log


def test_a_client_has_a_certificate_of_version_1(models, authority, version_1, tmp_path):
    good = version_1.issue("good")
    expired = version_1.issue("expired", days_left=-1)
    forged = version_1.issue("forged", signer=version_1._key())
    # Another one's certificate with a key of one's own.
    stolen = good[0], version_1.issue("thief")[1]
    flags = [
        flag if "-root-cert=" not in flag else f"--{protocol}-root-cert={version_1.root}"
        for protocol in ("http", "grpc")
        for flag in authority.flags(protocol, mutual=True)
    ]
    with Server(models, *flags) as server:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            context = authority.context(good)
            context.minimum_version = context.maximum_version = version
            with https(server, context) as connection:
                assert send(connection, "GET", "/v2/health/ready").status == 200
            for certificate in (expired, forged):
                context = authority.context(certificate)
                context.minimum_version = context.maximum_version = version
                with pytest.raises((ssl.SSLError, ConnectionError)), https(server, context) as connection:
                    send(connection, "GET", "/v2/health/ready")
        assert grpc_ready(server, credentials(authority.root, good)) == b"\x08\x01"
        with pytest.raises(ssl.SSLError):
            authority.context(stolen)
        server.wait_for("a client's certificate is refused")
        assert "it is of X.509 version 1, as `openssl x509 -req` makes them" in server.log


NEW = "new {} connections use the certificate that is now in"
OLD = "connections keep the certificate that was read before:"


class Renewed:
    """Files of a server, first an authority's and then another one's."""

    def __init__(self, directory):
        self.certificate, self.key, self.root = [directory / name for name in ("tls.crt", "tls.key", "roots.pem")]

    def write(self, authority):
        """As a renewal does it: another file in the place of each."""
        for source, target in zip((*authority.server, authority.root), (self.certificate, self.key, self.root)):
            shutil.copy(source, f"{target}.new")
            os.replace(f"{target}.new", target)

    def flags(self):
        return [
            flag
            for protocol in ("http", "grpc")
            for flag in (
                f"--{protocol}-use-ssl-mutual=true",
                f"--{protocol}-server-cert={self.certificate}",
                f"--{protocol}-server-key={self.key}",
                f"--{protocol}-root-cert={self.root}",
            )
        ]


@pytest.mark.parametrize("how", ["signal", "change"])
def test_new_connections_use_new_certificates(models, authority, stranger, tmp_path, how):
    files = Renewed(tmp_path)
    files.write(authority)
    with Server(models, *files.flags()) as server, https(server, authority.context(authority.client)) as old:
        assert send(old, "GET", "/v2/health/ready").status == 200
        files.write(stranger)
        if how == "signal":
            server.send_signal(signal.SIGHUP)
            server.wait_for("received SIGHUP: reading files again")
        for protocol in ("HTTP", "gRPC"):
            server.wait_for(NEW.format(protocol))
        with https(server, stranger.context(stranger.client)) as new:
            assert send(new, "GET", "/v2/health/ready").status == 200
        assert grpc_ready(server, credentials(stranger.root, stranger.client)) == b"\x08\x01"
        # A client that trusts only the old one leaves, and clients of the old root are refused.
        with pytest.raises(ssl.SSLCertVerificationError), https(server, authority.context(authority.client)) as other:
            send(other, "GET", "/v2/health/ready")
        assert send(old, "GET", "/v2/health/ready").status == 200, "what is open goes on"
        assert server.stop() == 0


def test_a_broken_pair_keeps_the_old_certificate(models, authority, stranger, tmp_path):
    files = Renewed(tmp_path)
    files.write(authority)
    with Server(models, *files.flags()) as server:
        files.key.write_bytes(stranger.server[1].read_bytes())
        server.wait_for("HTTP " + OLD)
        server.wait_for("gRPC " + OLD)
        with https(server, authority.context(authority.client)) as connection:
            assert send(connection, "GET", "/v2/health/ready").status == 200
        files.write(stranger)
        for protocol in ("HTTP", "gRPC"):
            server.wait_for(NEW.format(protocol))
        # Once a change, however often it is looked at.
        assert server.log.count(OLD) == 2
        with https(server, stranger.context(stranger.client)) as connection:
            assert send(connection, "GET", "/v2/health/ready").status == 200


def test_the_page_of_an_encrypted_port_is_https(encrypted, simple):
    port = split(encrypted.http)[1]
    assert f"page at https://localhost:{port}/" in encrypted.log
    assert f"page at http://localhost:{split(simple.http)[1]}/" in simple.log


def test_a_certificate_of_version_1_cannot_sign_another(models, authority, version_1, tmp_path):
    middle, middle_key = version_1.issue("middle")
    issuer = x509.load_pem_x509_certificate(middle.read_bytes())
    signer = serialization.load_pem_private_key(middle_key.read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(issuer.subject, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
    leaf, leaf_key = tmp_path / "leaf.pem", tmp_path / "leaf.key"
    leaf.write_bytes(made.public_bytes(serialization.Encoding.PEM) + middle.read_bytes())
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    leaf_key.write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))
    flags = [*authority.flags("http", mutual=True)[:-1], f"--http-root-cert={version_1.root}"]
    with Server(models, *flags) as server:
        context = authority.context((leaf, leaf_key))
        with pytest.raises((ssl.SSLError, ConnectionError)), https(server, context) as connection:
            send(connection, "GET", "/v2/health/ready")
        server.wait_for("a client's certificate is refused: ")
        assert "a certificate between it and the root is of version 1" in server.log
        assert "BadEncoding" not in server.log


def test_a_servers_certificate_that_is_not_valid_is_a_warning(models, authority, tmp_path):
    certificate, key = self_signed(tmp_path, "expired", days_left=-3)
    flags = ["--http-use-ssl=true", f"--http-server-cert={certificate}", f"--http-server-key={key}"]
    with Server(models, *flags) as server:
        assert f"`{certificate}`: the server's certificate expired 3 days ago" in server.log
        shutil.copy(authority.server[0], certificate)
        shutil.copy(authority.server[1], key)
        server.send_signal(signal.SIGHUP)
        server.wait_for("new HTTP connections use the certificate")
        assert server.log.count("the server's certificate") == 1
        expired = self_signed(tmp_path, "again", days_left=-1)
        shutil.copy(expired[0], certificate)
        shutil.copy(expired[1], key)
        server.send_signal(signal.SIGHUP)
        server.wait_for("the server's certificate expired 1 day ago")
