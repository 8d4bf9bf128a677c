"""`skep infer`: data of every datatype out of arguments and files, shapes, answers for people, machines and NumPy, encrypted
servers and restricted calls."""

import datetime
import json

import numpy as np
import onnx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from onnx import helper

from repository import DATATYPES, Repository, graph, identity, plus, unbatched
from server import ROOT, Server, run
from test_tls import Authority, Version1

KINDS = sorted(DATATYPES)
# Values that each datatype has, as JSON.
VALUES = {"BOOL": [True, False, True, True], "BYTES": ["a", "", "é\n", 'b"c']}
NUMBERS = [0, 1, 2, 100]


def values(datatype):
    if datatype in VALUES:
        return VALUES[datatype]
    return [0, -1, 2, 100] if datatype.startswith("INT") else NUMBERS


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = Repository(tmp_path_factory.mktemp("infer") / "models")
    for datatype in KINDS:
        name = datatype.lower()
        repository.onnx(name, identity(datatype, ("n",)), config=unbatched(datatype, "[ -1 ]"))
    repository.onnx("m", plus(1))
    repository.onnx("open", identity("INT32", ("a", "b")), config=unbatched("INT32", "[ -1, -1 ]"))
    repository.copy(ROOT / "examples/models/digits")
    columns = onnx.numpy_helper.from_array(np.array([3]), "columns")
    gather = [helper.make_node("Gather", ["x", "columns"], ["y"], axis=1)]
    narrow = graph(gather, [("x", "FP32", ("batch", "n"))], [("y", "FP32", ("batch", 1))], [columns])
    repository.onnx("narrow", narrow)
    two = [("a", "FP32", (2,)), ("b/c", "FP32", (2,))]
    add = graph([helper.make_node("Add", ["a", "b/c"], ["s/um"])], two, [("s/um", "FP32", (2,))])
    repository.onnx("two", add)
    with Server(repository) as server:
        yield server


@pytest.fixture(params=["http", "grpc"])
def url(server, request):
    return f"{request.param}://{getattr(server, request.param)}"


def ask(url, model, *flags):
    outcome = run("infer", model, "--url", url, *flags)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return outcome.stdout


def answer(url, model, *flags):
    """The outputs by name, out of the JSON answer."""
    document = json.loads(ask(url, model, "--json", *flags))
    assert (document["model_name"], document["model_version"]) == (model, "1")
    return {output.pop("name"): output for output in document["outputs"]}


def refused(url, model, *flags):
    outcome = run("infer", model, "--url", url, *flags)
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert outcome.stderr.startswith("error: ")
    return outcome.stderr


@pytest.mark.parametrize("datatype", KINDS)
def test_json_of_every_datatype_comes_back(url, tmp_path, datatype):
    sent = values(datatype)
    (tmp_path / "x.json").write_text(json.dumps(sent))
    for data in (json.dumps(sent), f"@{tmp_path / 'x.json'}"):
        output = answer(url, datatype.lower(), "--input", f"INPUT0={data}")["OUTPUT0"]
        assert output == {"datatype": datatype, "shape": [4], "data": sent}


@pytest.mark.parametrize("datatype", KINDS)
def test_numpys_files_of_every_datatype_come_back(url, tmp_path, datatype):
    kind = {"BF16": np.float32, "BYTES": np.bytes_}.get(datatype, DATATYPES[datatype][0])
    sent = [text.encode() for text in VALUES["BYTES"]] if datatype == "BYTES" else values(datatype)
    array = np.array(sent, dtype=kind)
    # As `ml_dtypes.bfloat16` is kept: the upper half of an FP32.
    kept = (array.view(np.uint32) >> 16).astype(np.uint16).view("V2") if datatype == "BF16" else array
    np.save(tmp_path / "x.npy", kept)
    out = tmp_path / "out"
    text = ask(url, datatype.lower(), "--input", f"INPUT0=@{tmp_path / 'x.npy'}", "--output", out)
    assert text.splitlines()[0].startswith(f"OUTPUT0 {datatype} [4]: ")
    assert text.splitlines()[1] == f"wrote `OUTPUT0` to {out}/OUTPUT0.npy"
    back = np.load(out / "OUTPUT0.npy")
    # NumPy has no BF16 of its own; FP32 holds each of its values.
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()
    # What was written can be sent.
    ask(url, datatype.lower(), "--input", f"INPUT0=@{out / 'OUTPUT0.npy'}")


def test_numpys_other_forms(url, tmp_path):
    cases = {
        "columns": (np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)), "open"),
        "strided": (np.arange(12, dtype=np.int32).reshape(3, 4)[::2, ::-1], "open"),
        "big": (np.arange(6, dtype=">i4").reshape(2, 3), "open"),
        "empty": (np.zeros((0, 3), np.int32), "open"),
        "text": (np.array(["é", "longer"]), "bytes"),
    }
    for name, (array, model) in cases.items():
        np.save(tmp_path / f"{name}.npy", array)
        output = answer(url, model, "--input", f"INPUT0=@{tmp_path / name}.npy")["OUTPUT0"]
        assert (output["shape"], output["data"]) == (list(array.shape), array.flatten().tolist())
    with open(tmp_path / "later.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(2, dtype=np.int32).reshape(1, 2), version=(2, 0))
    assert answer(url, "open", "--input", f"INPUT0=@{tmp_path / 'later.npy'}")["OUTPUT0"]["data"] == [0, 1]


def test_raw_files_are_elements_or_one_string(url, tmp_path):
    (tmp_path / "x.bin").write_bytes(np.array([1, 2, 3, 4], "<f4").tobytes())
    assert answer(url, "m", "--input", f"x=@{tmp_path / 'x.bin'}")["y"]["data"] == [2, 3, 4, 5]
    (tmp_path / "photo.jpg").write_bytes(b"bytes\n")
    assert answer(url, "bytes", "--input", f"INPUT0=@{tmp_path / 'photo.jpg'}")["OUTPUT0"]["data"] == ["bytes\n"]
    (tmp_path / "odd").write_bytes(b"12345")
    text = refused(url, "m", "--input", f"x=@{tmp_path / 'odd'}")
    assert f"input `x`: `{tmp_path / 'odd'}`: holds 5 bytes, expected a multiple of 4" in text


def test_a_picture_is_no_elements(url, tmp_path):
    """Not for a model that decodes nothing; its length may well be a multiple of an element's."""
    (tmp_path / "page.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(8))
    text = refused(url, "m", "--input", f"x=@{tmp_path / 'page.png'}")
    assert f"input `x`: `{tmp_path / 'page.png'}`: is a PNG picture, expected elements of FP32: `--input` takes JSON" in text
    # A row of bytes may be a file for a model that decodes it.
    decoded = answer(url, "uint8", "--input", f"INPUT0=@{tmp_path / 'page.png'}")["OUTPUT0"]["data"]
    assert decoded == list((tmp_path / "page.png").read_bytes())


def test_a_file_without_its_sign_is_known(url, tmp_path):
    (tmp_path / "a.json").write_text("[1,2,3,4]")
    text = refused(url, "m", "--input", f"x={tmp_path / 'a.json'}")
    assert f"`{tmp_path / 'a.json'}` is not JSON, but the name of a file\n  try: `--input x=@{tmp_path / 'a.json'}`\n" in text
    assert "is not JSON: " in refused(url, "m", "--input", f"x={tmp_path / 'b.json'}")


def test_sizes_that_zeros_chose_are_told_when_the_model_fails(url):
    """`narrow` gathers column 3, which its one variable dimension must have."""
    text = refused(url, "narrow", "--zeros")
    hint = "`--zeros` made the variable dimensions of `x` 1: [-1,-1] became [1,1]; to choose them: `--shape x=1,?`"
    assert text.endswith(f"\n  {hint}\n")
    assert answer(url, "narrow", "--zeros", "--shape", "x=1,4")["y"]["shape"] == [1, 1]
    # What the user gives, `--zeros` did not choose.
    for flags in (["--input", "x=[[1]]"], ["--zeros", "--shape", "x=1,1"]):
        assert "--zeros" not in refused(url, "narrow", *flags)


def test_specials_and_exact_numbers_survive(url):
    output = answer(url, "fp32", "--input", "INPUT0=[NaN, -Infinity, 0.1]")["OUTPUT0"]["data"]
    assert str(output[:2]) == "[nan, -inf]"
    large = [2**63 - 1, -(2**63)]
    assert answer(url, "int64", "--input", f"INPUT0={large}")["OUTPUT0"]["data"] == large
    assert answer(url, "bytes", "--input", "INPUT0=plain text = one")["OUTPUT0"]["data"] == ["plain text = one"]


def test_shapes(url):
    def shape(model, *flags):
        (output,) = answer(url, model, *flags).values()
        return output["shape"]

    assert shape("m", "--input", "x=[1,2,3,4,5,6,7,8]") == [2, 4]
    assert shape("m", "--input", "x=[1,2,3,4,5,6,7,8]", "--shape", "x=2,4") == [2, 4]
    assert shape("open", "--input", "INPUT0=[[1,2,3],[4,5,6]]") == [2, 3]
    assert shape("open", "--input", "INPUT0=[1,2,3,4,5,6]", "--shape", "INPUT0=3,2") == [3, 2]
    assert shape("open", "--zeros") == [1, 1]
    assert shape("open", "--zeros", "--shape", "INPUT0=5,7") == [5, 7]
    assert "several variable dimensions\n  try: `--shape INPUT0=...`" in refused(url, "open", "--input", "INPUT0=[1]")
    assert "has 1 element, expected 4 for shape [2,2]" in refused(
        url, "open", "--input", "INPUT0=[1]", "--shape", "INPUT0=2,2"
    )
    # The server knows what it expects.
    assert "[1,3]" in refused(url, "m", "--input", "x=[[1,2,3]]")


def test_several_inputs(url, tmp_path):
    flags = ["--input", "a=[1,2]", "--input", "b/c=[10,20]"]
    assert answer(url, "two", *flags)["s/um"]["data"] == [11, 22]
    assert ask(url, "two", *flags) == "s/um FP32 [2]: 11, 22\n"
    assert answer(url, "two", "--input", "a=[1,2]", "--zeros")["s/um"]["data"] == [1, 2]
    ask(url, "two", *flags, "--output", tmp_path)
    assert np.load(tmp_path / "s_um.npy").tolist() == [11, 22]
    assert "b/c" in refused(url, "two", "--input", "a=[1,2]")


def test_what_cannot_be_sent_is_told(url, tmp_path):
    np.save(tmp_path / "double.npy", np.zeros((1, 4)))
    np.savez(tmp_path / "several.npz", np.zeros(4))
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.save(tmp_path / "cut.npy", np.zeros((1, 4), np.float32))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    (tmp_path / "wrong.npy").write_text("[1,2]")
    for flags, words in (
        ([], "nothing to send: model `m` takes `x` FP32 [-1,4]\n  try: `--input x=@FILE.npy`, or `--zeros`"),
        (["--input", "z=[1]"], "--input: model `m` has no input `z`, it takes `x` FP32 [-1,4]"),
        (["--input", "x=[1]", "--input", "x=[1]"], "--input: input `x` is given twice"),
        (["--zeros", "--shape", "z=1"], "--shape: model `m` has no input `z`"),
        (["--input", "x=[1,"], "input `x`: is not JSON: "),
        (["--input", "x=[1,two]"], "input `x`: is not JSON: "),
        (["--input", 'x=["a"]'], 'input `x`: "a" is not a valid FP32'),
        (["--input", "x=[1e99]"], "input `x`: 1e99 is not a valid FP32"),
        (["--input", "x=@/nonexistent.npy"], "input `x`: cannot read `/nonexistent.npy`: No such file or directory"),
        (["--input", f"x=@{tmp_path}"], "Is a directory"),
        (
            ["--input", f"x=@{tmp_path / 'double.npy'}"],
            f'input `x`: `{tmp_path / "double.npy"}`: holds FP64, expected FP32\n  convert it: `array.astype("float32")`',
        ),
        (["--input", f"x=@{tmp_path / 'several.npz'}"], "is an archive of arrays, expected one array"),
        (["--input", f"x=@{tmp_path / 'objects.npy'}"], "holds elements of dtype `|O`"),
        (["--input", f"x=@{tmp_path / 'cut.npy'}"], "holds 15 bytes of data, expected 16"),
        (["--input", f"x=@{tmp_path / 'wrong.npy'}"], "is not a .npy file"),
        (["--zeros", "--output", "/proc/nosuch"], "--output: cannot create `/proc/nosuch`"),
    ):
        assert words in refused(url, "m", *flags)
    assert "unknown model: 'nosuch'" in refused(url, "nosuch", "--zeros")
    for flags in (["--input", "x"], ["--input", "=1"], ["--shape", "x=-1,4"], ["--shape", "x=two"]):
        assert "expected an input's name and" in refused(url, "m", *flags)


def test_bytes_that_are_no_text_go_into_files(url, tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    flags = ["--input", f"INPUT0=@{tmp_path / 'x'}"]
    assert "output `OUTPUT0` cannot be JSON: `--output DIR` writes it into a file" in refused(url, "bytes", "--json", *flags)
    ask(url, "bytes", *flags, "--output", tmp_path)
    assert np.load(tmp_path / "OUTPUT0.npy").tolist() == [b"\xff"]


def test_pictures(url):
    pictures = [ROOT / f"examples/digits/{digit}.png" for digit in (3, 7)]
    lines = ask(url, "digits", *pictures).splitlines()
    assert [line.split(": ")[1][0] for line in lines] == ["3", "7"]
    documents = [json.loads(line) for line in ask(url, "digits", "--json", *pictures).splitlines()]
    assert [document["picture"] for document in documents] == [str(picture) for picture in pictures]
    scores = [document["outputs"][0]["data"] for document in documents]
    assert [np.argmax(score) for score in scores] == [3, 7]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory):
    """One that signs the server's certificate, and one that nobody trusts."""
    root = tmp_path_factory.mktemp("tls")
    return Authority(root / "authority"), Authority(root / "stranger")


@pytest.fixture(scope="module")
def encrypted(tmp_path_factory, authorities):
    repository = Repository(tmp_path_factory.mktemp("encrypted") / "models")
    repository.onnx("m", plus(1))
    flags = authorities[0].flags("http") + authorities[0].flags("grpc", mutual=True)
    with Server(repository, *flags) as server:
        yield server


def test_encrypted_servers(encrypted, authorities, tmp_path):
    authority, stranger = authorities
    certificate, key = authority.client
    identity = ["--cert", certificate, "--key", key]
    https = f"https://localhost:{encrypted.http.split(':')[1]}"
    grpcs = f"grpcs://localhost:{encrypted.grpc.split(':')[1]}"
    for url, shown in ((https, []), (https, identity), (grpcs, identity)):
        for trust in (["--ca", authority.root], ["--insecure"]):
            assert ask(url, "m", "--zeros", *trust, *shown) == "y FP32 [1,4]: 1, 1, 1, 1\n"
        hint = "`--ca FILE` names an authority to trust, `--insecure` trusts any server"
        for trust in (["--ca", stranger.root], []):
            text = refused(url, "m", "--zeros", *trust, *shown)
            assert "no encrypted connection to `localhost:" in text
            assert "the server's certificate is not signed by a trusted authority" in text
            assert hint in text
        # The system's roots, of which these are.
        outcome = run("infer", "m", "--zeros", "--url", url, *shown, env={"SSL_CERT_FILE": str(authority.root)})
        assert (outcome.returncode, outcome.stderr) == (0, "")
    text = refused(grpcs, "m", "--zeros", "--ca", authority.root)
    assert "\n  does the server ask for a certificate? `--cert FILE --key FILE` shows one" in text


def test_a_client_shows_a_certificate_of_version_1(repository, authorities, tmp_path):
    repository.onnx("m", plus(1))
    own = Version1(tmp_path, "ec")
    (certificate, key), (_, other) = own.issue("client"), own.issue("other")
    flags = [*authorities[0].flags("http", mutual=True)[:-1], f"--http-root-cert={own.root}"]
    with Server(repository, *flags) as server:
        url = f"https://localhost:{server.http.split(':')[1]}"
        trust = ["--ca", authorities[0].root, "--cert", certificate, "--key"]
        assert ask(url, "m", "--zeros", *trust, key) == "y FP32 [1,4]: 1, 1, 1, 1\n"
        assert f"is not the key of the certificate in `{certificate}`" in refused(url, "m", "--zeros", *trust, other)


def test_a_certificate_that_is_its_own_root_and_one_of_another_host(tmp_path, repository, authorities):
    """What `openssl req -x509` makes is taken where `--ca` names it, for the host that it names."""
    repository.onnx("m", plus(1))
    own, other = [own_root(tmp_path, name) for name in ("localhost", "elsewhere.test")]
    for certificate, words in (
        (own, None),
        (other, "the server's certificate is refused: "),
        (authorities[0].server, "not signed by a trusted authority"),
    ):
        flags = ["--http-use-ssl=true", f"--http-server-cert={certificate[0]}", f"--http-server-key={certificate[1]}"]
        with Server(repository, *flags) as server:
            url = f"https://localhost:{server.http.split(':')[1]}"
            if words:
                trusted = other[0] if certificate is other else own[0]
                assert words in refused(url, "m", "--zeros", "--ca", trusted)
            else:
                assert ask(url, "m", "--zeros", "--ca", own[0]) == "y FP32 [1,4]: 1, 1, 1, 1\n"
                assert "the server's certificate is " in refused(url, "m", "--zeros", "--ca", other[0])


def own_root(directory, host):
    """One certificate, an authority's, signed by itself; and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(private, hashes.SHA256())
    )
    certificate, key = directory / f"{host}.pem", directory / f"{host}.key"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return certificate, key


def test_encryption_where_there_is_none_and_the_other_way_round(encrypted, server):
    text = refused(f"https://{server.http}", "m", "--zeros", "--insecure")
    assert "the server does not speak TLS\n  try: `http://` or `grpc://`" in text
    text = refused(f"http://{encrypted.http}", "m", "--zeros")
    assert "does the server speak TLS? try: `https://` or `grpcs://`" in text
    text = refused(f"http://{server.http}", "m", "--zeros", "--insecure")
    assert "--insecure is for encrypted connections, expected `--url https://...` or `grpcs://...`" in text


def test_files_of_encryption_are_named(encrypted, authorities, tmp_path):
    authority = authorities[0]
    certificate, key = authority.server
    url = f"https://{encrypted.http}"
    for flags, words in (
        (["--ca", "/nonexistent.pem"], "--ca: `/nonexistent.pem`: No such file or directory (os error 2)\n"),
        (["--ca", key], f"--ca: `{key}`: holds no certificate in PEM form\n"),
        (["--insecure", "--cert", certificate, "--key", certificate], f"`{certificate}`: holds no private key in PEM form\n"),
        (["--insecure", "--cert", certificate, "--key", authority.client[1]], f"--cert, --key: `{authority.client[1]}`: "),
    ):
        assert words in refused(url, "m", "--zeros", *flags)
    outcome = run("infer", "m", "--zeros", "--url", url, env={"SSL_CERT_FILE": "/nonexistent", "SSL_CERT_DIR": "/nonexistent"})
    assert (outcome.returncode, outcome.stdout) == (1, "")
    assert "the system has no root certificates" in outcome.stderr


def test_restricted_calls(tmp_path, repository):
    repository.onnx("m", plus(1))
    flags = ["--http-restricted-api=inference,metadata:key=secret", "--grpc-restricted-protocol=inference:key=secret"]
    (tmp_path / "headers").write_text("key: secret\n\ntriton-grpc-protocol-key: secret\n")
    with Server(repository, *flags) as server:
        for url, header in ((server.http, "key"), (server.grpc, "triton-grpc-protocol-key")):
            url = f"{'http' if header == 'key' else 'grpc'}://{url}"
            assert f"restricted, expecting header '{header}'" in refused(url, "m", "--zeros")
            assert "restricted" in refused(url, "m", "--zeros", "--header", f"{header}: wrong")
            for given in (f"{header}: secret", f"{header}:secret", f"@{tmp_path / 'headers'}"):
                assert ask(url, "m", "--zeros", "--header", given) == "y FP32 [1,4]: 1, 1, 1, 1\n"
            for given, words in (
                ("secret", "--header: expected `name: value`, there is no colon"),
                ("host: secret", "--header: header `host` follows from the request and cannot be set"),
                ("@/nonexistent", "--header: cannot read `/nonexistent`: No such file or directory (os error 2)\n"),
            ):
                text = refused(url, "m", "--zeros", "--header", given)
                assert words in text
                assert "secret" not in text
