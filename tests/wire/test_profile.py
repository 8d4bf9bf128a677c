"""`skep profile` and `skep pack`: from a model to a placement."""

import json

import pytest

from server import run

SMALL = ["--point", "50", "--max-batch", "2", "--cpus", "1"]
SHAPES = [part for name in ("input_ids", "attention_mask", "token_type_ids") for part in ("--shape", f"{name}=1,16")]
DEVICE = ["--device", "name=d,cpus=0-3,memory=1G,count=2"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model, its profile, and what was printed."""
    root = tmp_path_factory.mktemp("profile")
    assert run("generate", "bert-tiny", root / "models", "--repository", "tiny").returncode == 0
    outcome = run("profile", *SMALL, *SHAPES, root / "models/tiny", "--output", root / "profiles.json")
    assert (outcome.returncode, outcome.stderr) == (0, "")
    return root / "models/tiny", root / "profiles.json", outcome.stdout


def points(model):
    return [(one["cpus"], one["instances"], one["batch"]) for one in model["configurations"]]


def test_a_profile_says_what_a_model_takes(tiny):
    _, path, text = tiny
    file = json.loads(path.read_text())
    assert (file["skep_profile"], len(file["models"])) == (1, 1)
    [model] = file["models"]
    request = "input_ids[1, 16] attention_mask[1, 16] token_type_ids[1, 16]"
    assert (model["name"], model["request"]) == ("tiny", request)
    assert points(model) == [(1, 1, 1), (1, 1, 2)]
    for one in model["configurations"]:
        latency = one["latency"]
        assert 0 < latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"]
        assert latency["batches"] >= 1 and one["requests_per_second"] > 0
    assert all(model["start"][part] > 0 for part in ("process_ms", "load_ms", "first_inference_ms", "inference_ms"))
    assert sum(tensor["bytes"] for tensor in model["tensors"]) > MIB
    assert all(len(tensor["digest"]) == 64 for tensor in model["tensors"])
    heading, *rows = text.split("\n\n")[1].splitlines()
    assert heading.split()[:4] == ["cores", "instances", "threads", "batch"]
    assert [row.split()[:4] for row in rows] == [["1", "1", "1", "1"], ["1", "1", "1", "2"]]


def test_an_interrupted_profile_is_continued(tiny, tmp_path):
    directory, path, _ = tiny
    file = json.loads(path.read_text())
    [model] = file["models"]
    # As if it had ended before the last point, with a figure that nothing measures by chance.
    first, _ = model["configurations"]
    first["requests_per_second"] = 0.125
    model["configurations"], model["finished"] = [first], []
    begun = tmp_path / "begun.json"
    begun.write_text(json.dumps(file))
    outcome = run("profile", *SMALL, *SHAPES, directory, "--output", begun)
    assert outcome.returncode == 0, outcome.stderr
    [continued] = json.loads(begun.read_text())["models"]
    assert continued["configurations"][0] == first
    assert (len(continued["configurations"]), len(continued["finished"])) == (2, 1)
    assert continued["start"] == model["start"]


def test_an_onnx_file_gets_batches_and_a_page(tiny, tmp_path):
    directory, _, _ = tiny
    [file] = directory.glob("1/*.onnx")
    page = tmp_path / "page.html"
    outcome = run("profile", *SMALL, file, "--json", "--html", page)
    assert outcome.returncode == 0
    assert outcome.stderr.startswith("warning: variable dimensions of input_ids, attention_mask, token_type_ids are 1\n")
    [model] = json.loads(outcome.stdout)["models"]
    assert points(model) == [(1, 1, 1), (1, 1, 2)]
    assert "What cores, instances and batches bring" in page.read_text()


def test_an_objective_ends_a_direction(repository):
    repository.mock("slow", latency_us=20_000)
    outcome = run("profile", "--point", "50", "--cpus", "1", "--objective", "30", "--json", repository.path / "slow")
    assert outcome.returncode == 0, outcome.stderr
    [model] = json.loads(outcome.stdout)["models"]
    assert points(model) == [(1, 1, 1)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nowhere"], "cannot read `/nowhere`"),
        (["--cpus", "4096", "{model}"], "--cpus 4096: this process may use"),
        (["--shape", "nosuch=1", "{model}"], "--shape nosuch=1: expected one of the inputs input_ids, attention_mask"),
        (["--objective", "0", "{model}"], "expected a number of milliseconds above 0"),
        (["--output", "{foreign}", "{model}"], "profiles of another machine or version: other with 3 cores, skep 9"),
        (["--output", "{damaged}", "{model}"], "not a profile of `skep profile`"),
    ],
)
def test_what_cannot_be_profiled_is_said(tiny, tmp_path, arguments, words):
    file = json.loads(tiny[1].read_text())
    file["machine"] = {"processor": "other", "cores": 3, "skep": "9"}
    foreign, damaged = tmp_path / "foreign.json", tmp_path / "damaged.json"
    foreign.write_text(json.dumps(file))
    damaged.write_text('{"skep')
    places = {"model": tiny[0], "foreign": foreign, "damaged": damaged}
    outcome = run("profile", *[part.format(**places) for part in arguments])
    assert outcome.returncode == 1 and words in outcome.stderr
    assert json.loads(foreign.read_text()) == file


def profiles(tmp_path, **models):
    """A file of profiles, whose figures are these: tensors by digit and MiB, and configurations as (cpus, instances,
    batch, milliseconds, MiB)."""
    def configuration(cpus, instances, batch, millis, mib):
        return {
            "cpus": cpus, "instances": instances, "threads": 1, "batch": batch, "private_bytes": mib * MIB,
            "latency": {"p50_ms": millis, "p95_ms": millis, "p99_ms": millis, "batches": 50},
            "requests_per_second": 1e3 * batch * instances / millis,
        }

    file = {
        "skep_profile": 1,
        "machine": {"processor": "p", "cores": 4, "skep": "0"},
        "models": [
            {
                "name": name, "files": "", "request": "", "start": None, "finished": [],
                "tensors": [{"digest": digit * 64, "bytes": mib * MIB} for digit, mib in tensors.items()],
                "configurations": [configuration(*one) for one in configurations],
            }
            for name, (tensors, configurations) in models.items()
        ],
    }
    path = tmp_path / "made.json"
    path.write_text(json.dumps(file))
    return ["--profiles", path]


def pack(*arguments):
    outcome = run("pack", *arguments, "--json")
    return outcome, json.loads(outcome.stdout) if outcome.stdout else None


def test_a_measured_model_is_packed(tiny):
    outcome, packed = pack("--profiles", tiny[1], *DEVICE, "--rate", "tiny=10,1000")
    assert outcome.returncode == 0, outcome.stderr
    [model] = packed["models"]
    assert [one["device"] for one in model["instances"]] == ["d-0"]
    assert (packed["devices_used"], packed["devices_needed_at_least"]) == (1, 1)
    assert model["serves"] >= 10


def test_variants_go_where_their_tensors_are(tmp_path):
    made = profiles(
        tmp_path,
        a=({"1": 400, "2": 10}, [(1, 1, 1, 10, 20)]),
        b=({"1": 400, "3": 10}, [(1, 1, 1, 10, 20)]),
        c=({"4": 400}, [(1, 1, 1, 10, 20)]),
        d=({"4": 400, "5": 10}, [(1, 1, 1, 10, 20)]),
    )
    rates = [part for name in "abcd" for part in ("--rate", f"{name}=90,20")]
    device = ["--device", "name=n,cpus=0-1,memory=512M,count=4"]
    outcome, packed = pack(*made, *device, *rates)
    assert outcome.returncode == 0, outcome.stderr
    on = {model["name"]: model["instances"][0]["device"] for model in packed["models"]}
    assert on["a"] == on["b"] != on["c"] == on["d"]
    assert (packed["devices_used"], packed["devices_needed_at_least"]) == (2, 2)
    assert packed["bytes"] == (2 * 400 + 3 * 10 + 4 * 20) * MIB
    assert packed["bytes_without_sharing"] == (4 * 400 + 3 * 10 + 4 * 20) * MIB
    # Counted with its tensors, each is alone.
    for rule in ("best-fit", "best-fit-decreasing", "first-fit-decreasing", "search"):
        _, apart = pack(*made, *device, *rates, "--place", rule)
        assert apart["devices_used"] == 4, rule


def test_models_take_turns_on_whole_devices(tmp_path):
    rows = [(2, 1, 1, 10, 20), (2, 1, 4, 20, 20), (2, 1, 8, 30, 20), (1, 1, 8, 60, 20)]
    made = profiles(tmp_path, m=({"1": 100}, rows), n=({"2": 100}, rows))
    rates = ["--rate", "m=300,60", "--rate", "n=40,60", "--place", "squishy"]
    device = ["--device", "name=d,cpus=0-1,memory=1G,count=2"]
    outcome, packed = pack(*made, *device, *rates)
    assert outcome.returncode == 0, outcome.stderr
    # Batches of 8 in 30 ms fill a device with 266.7 requests a second; what is left of m shares one with n.
    full, shared = packed["devices"]
    assert [(turn["model"], turn["batch"]) for turn in full["turns"]] == [("m", 8)]
    assert full["occupancy"] == 1 and full["cycle_ms"] == 30
    assert sorted(turn["model"] for turn in shared["turns"]) == ["m", "n"] and shared["occupancy"] <= 1
    served = {"m": 0.0, "n": 0.0}
    for cycle in packed["devices"]:
        for turn in cycle["turns"]:
            served[turn["model"]] += turn["rate"]
            assert cycle["cycle_ms"] + turn["latency_ms"] <= 60
    assert served == pytest.approx({"m": 300, "n": 40})
    outcome = run("pack", *made, "--device", "name=d,cpus=0-1,memory=1G", *rates)
    assert outcome.returncode == 1 and "error: 1 more devices are needed" in outcome.stderr
    assert "devices  2 used, 1 there" in outcome.stdout
    mixed = ["--device", "name=d,cpus=0-1,memory=1G", "--device", "name=e,cpus=0-1,memory=2G"]
    outcome = run("pack", *made, *mixed, *rates)
    assert outcome.returncode == 1 and "all devices have to be equal" in outcome.stderr
    outcome = run("pack", *made, *device, "--rate", "m=3,19", "--place", "squishy")
    assert "keeps no 19.0 ms\n  the closest keeps 20.0 ms" in outcome.stderr


def test_the_picture_shows_how_full_devices_are(tmp_path):
    made = profiles(tmp_path, m=({"1": 500}, [(2, 1, 4, 10, 12)]))
    outcome = run("pack", *made, *DEVICE, "--rate", "m=700", "--objective", "25")
    assert outcome.returncode == 0, outcome.stderr
    models, devices, sums = outcome.stdout.split("\n\n")
    assert "2 x (2 cores, 1 instance, batch 4)" in models and "d-0 (2)" in models
    assert devices.splitlines()[1].split("  ")[-1] == "█" * 20, "all four cores"
    assert sums.startswith("devices  1 used, at least 1 needed, 2 there\nmemory   524 MiB;")


def test_a_table_gives_rates_and_zero_is_no_instance(tmp_path):
    made = profiles(tmp_path, m=({}, [(1, 1, 1, 10, 12)]), n=({}, [(1, 1, 1, 10, 12)]))
    rates = tmp_path / "rates.csv"
    rates.write_text("model,rate,objective_ms\nm,150,10\n# later\nn,0,10\n")
    outcome, packed = pack(*made, *DEVICE, "--rates", rates)
    assert outcome.returncode == 0, outcome.stderr
    assert [len(model["instances"]) for model in packed["models"]] == [2, 0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate", "m=5,9"], "no configuration keeps 9.0 ms\n  the closest keeps 10.0 ms: 1 core, 1 instance, batch 1"),
        (["--rate", "m=5"], "model `m` has no objective"),
        (["--rate", "x=5,9"], "model `x` has a rate and no profile, expected one of: m"),
        (["--rate", "m=-5,9"], "expected requests a second from 0"),
        (["--rate", "m=nan,9"], "expected requests a second from 0"),
        (["--rate", "m=1,10", "--rate", "m=2,10"], "model `m` has two rates"),
        (["--rate", "m=1000,10"], "2 of its instances have no device: one needs 12.0 MiB and 1 cores, and the devices are full"),
        ([], "no model has a rate"),
    ],
)
def test_what_cannot_be_packed_is_said(tmp_path, arguments, words):
    made = profiles(tmp_path, m=({}, [(1, 1, 1, 10, 12)]))
    outcome = run("pack", *made, *DEVICE, *arguments)
    assert outcome.returncode == 1 and words in outcome.stderr, outcome.stderr


def test_a_device_that_is_too_small_is_named_with_what_it_lacks(tmp_path):
    made = profiles(tmp_path, m=({"1": 1000}, [(1, 1, 1, 10, 100)]), n=({}, [(8, 1, 1, 10, 1)]))
    outcome = run("pack", *made, *DEVICE, "--rate", "m=5,10", "--rate", "n=5,10")
    assert outcome.returncode == 1
    assert "`m`: 1 of its instances has no device: one needs 1.07 GiB and 1 cores, and the largest device has 76.0 MiB too little" in outcome.stderr
    assert "`n`: 1 of its instances has no device: one needs 1.00 MiB and 8 cores, and the largest device has 4 cores too few" in outcome.stderr
