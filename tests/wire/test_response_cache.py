"""The response cache: what is kept, what is found, what leaves, and how that is counted, over both protocols."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.http as httpclient
from onnx import helper

from http_client import get, infer, post, request, tensor
from metrics import metrics
from repository import DATATYPES, graph, identity, plus, unbatched
from server import Server, run, serve_and_fail

ON = "response_cache { enable: true }\n"
MIB = 1 << 20
CACHE = f"--cache-config=local,size={16 * MIB}"
EXPLICIT = "--model-control-mode=explicit"
# What the table of entries counts for a small response, besides its data: at most.
ENTRY = 1024
MODEL = {"model": "m", "version": "1"}


def parameter(key, value):
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


def stats(server, model="m"):
    (only,) = get(server, f"/v2/models/{model}/versions/1/stats").json["model_stats"]
    return only


def counts(server, model="m"):
    """Executions, hits and misses."""
    got = stats(server, model)
    parts = got["inference_stats"]
    return got["execution_count"], parts["cache_hit"]["count"], parts["cache_miss"]["count"]


def figure(server, name, **labels):
    return metrics(server)[name, frozenset(labels.items())]


def dropped(server):
    """How many responses were dropped, for which reasons."""
    reasons = ("size", "model_size", "expired", "too_large")
    found = {reason: figure(server, "skep_response_cache_dropped_total", reason=reason, **MODEL) for reason in reasons}
    return {reason: count for reason, count in found.items() if count}


def row(value, count=4):
    return [tensor("x", "FP32", [1, count], [value] * count)]


def value(server, asked, model="m"):
    """The first element of the model's answer."""
    answer = infer(server, model, row(asked))
    assert answer.status == 200, answer.body
    return answer.json["outputs"][0]["data"][0]


@pytest.fixture
def server(repository):
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 {ON}")
    with Server(repository, CACHE) as server:
        yield server


@pytest.mark.parametrize("form", ["json", "binary"])
def test_f22_a_hit_over_http_is_the_miss_to_the_byte(server, form):
    outputs = [{"name": "y", "parameters": {"binary_data": form == "binary"}}]
    answers = [infer(server, "m", row(0.1), outputs=outputs, id="same") for _ in range(3)]
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    headers = [{name: value for name, value in answer.headers.items() if name != "date"} for answer in answers]
    assert headers[0] == headers[1] == headers[2]
    assert counts(server) == (1, 2, 1)


def test_f22_a_hit_over_grpc_is_the_miss_to_the_byte(server):
    x = grpcclient.InferInput("x", [2, 4], "FP32")
    x.set_data_from_numpy(np.arange(8, dtype=np.float32).reshape(2, 4))
    with grpcclient.InferenceServerClient(server.grpc) as client:
        answers = [client.infer("m", [x], request_id="same").get_response() for _ in range(3)]
        assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
        # Each answer has its own id.
        assert client.infer("m", [x], request_id="other").get_response().id == "other"
    assert counts(server) == (1, 3, 1)


def test_f22_both_protocols_and_all_calls_share_the_responses(server):
    data = np.array([[1, 2, 3, 4]], np.float32)
    expected = data + 1
    with httpclient.InferenceServerClient(server.http) as http, grpcclient.InferenceServerClient(server.grpc) as grpc:
        for module, client in ((httpclient, http), (grpcclient, grpc)):
            x = module.InferInput("x", [1, 4], "FP32")
            x.set_data_from_numpy(data)
            assert np.array_equal(client.infer("m", [x]).as_numpy("y"), expected)
        answered = []
        grpc.start_stream(lambda result, error: answered.append((result, error)))
        grpc.async_stream_infer("m", [x])
        grpc.stop_stream()
        ((result, error),) = answered
        assert error is None and np.array_equal(result.as_numpy("y"), expected)
    generated = post(server, "/v2/models/m/generate", {"x": data[0].tolist()})
    assert generated.status == 200 and generated.json["y"] == expected[0].tolist(), generated.body
    assert counts(server) == (1, 3, 1)


def test_t1_t2_hits_and_misses_are_counted_as_by_triton(server):
    for asked in (1, 2, 1, 1):
        answer = infer(server, "m", [tensor("x", "FP32", [3, 4], [asked] * 12)])
        assert answer.status == 200
    got = stats(server)
    # Inferences and executions are those of the model; requests are all.
    assert (got["inference_count"], got["execution_count"]) == (6, 2)
    parts = got["inference_stats"]
    assert {name: parts[name]["count"] for name in parts} == {
        "success": 4, "fail": 0, "queue": 4, "compute_input": 2, "compute_infer": 2, "compute_output": 2, "cache_hit": 2, "cache_miss": 2,
    }  # fmt: skip
    assert parts["cache_hit"]["ns"] > 0 and parts["cache_miss"]["ns"] > 0
    assert parts["success"]["ns"] >= parts["queue"]["ns"] + parts["compute_infer"]["ns"] + parts["cache_hit"]["ns"]
    assert {b["batch_size"]: b["compute_infer"]["count"] for b in got["batch_stats"]} == {3: 2}
    with grpcclient.InferenceServerClient(server.grpc) as client:
        (same,) = client.get_inference_statistics("m").model_stats
    for name in parts:
        assert getattr(same.inference_stats, name).count == parts[name]["count"], name
        assert getattr(same.inference_stats, name).ns == parts[name]["ns"], name


def test_m13_metrics_are_those_of_the_statistics(server):
    for asked in (1, 2, 1):
        value(server, asked)
    parts = stats(server)["inference_stats"]
    for kind, plural in (("hit", "hits"), ("miss", "misses")):
        part = parts[f"cache_{kind}"]
        assert figure(server, f"nv_cache_num_{plural}_per_model", **MODEL) == part["count"] > 0
        assert figure(server, f"nv_cache_{kind}_duration_per_model", **MODEL) == part["ns"] // 1000
    assert figure(server, "nv_inference_count", **MODEL) == 2
    assert figure(server, "nv_inference_request_success", **MODEL) == 3
    used = figure(server, "skep_response_cache_bytes", **MODEL)
    assert 2 * 16 < used < 2 * ENTRY
    assert figure(server, "skep_response_cache_entries", **MODEL) == 2
    assert figure(server, "skep_response_cache_memory_bytes", kind="used") == used
    assert figure(server, "skep_response_cache_memory_bytes", kind="limit") == 16 * MIB
    assert dropped(server) == {}


def test_m13_a_summary_counts_hits(repository):
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 {ON}")
    with Server(repository, CACHE, "--metrics-config=summary_latencies=true", "--metrics-config=counter_latencies=false") as server:
        for _ in range(3):
            value(server, 1)
        got = metrics(server)
        for name, count in (("request", 3), ("queue", 3), ("compute_infer", 1)):
            assert got[f"nv_inference_{name}_summary_us_count", frozenset(MODEL.items())] == count
        assert got["nv_cache_num_hits_per_model", frozenset(MODEL.items())] == 2
        assert not any(name.startswith("nv_cache_hit_duration") for name, _ in got)


def sums(shape):
    """`sum` and `difference` of `a` and `b`."""
    nodes = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    tensors = [("a", "FP32", shape), ("b", "FP32", shape)]
    return graph(nodes, tensors, [("sum", "FP32", shape), ("difference", "FP32", shape)])


def test_f22_requests_that_differ_never_get_each_others_responses(repository):
    inputs = ", ".join(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ -1, -1 ] }}' for name in ("a", "b"))
    outputs = ", ".join(f'{{ name: "{name}" data_type: TYPE_FP32 dims: [ -1, -1 ] }}' for name in ("sum", "difference"))
    repository.onnx("m", sums(("n", "k")), config=f"input [ {inputs} ] output [ {outputs} ] {ON}")

    def two(shape, a, b):
        return [tensor("a", "FP32", shape, a), tensor("b", "FP32", shape, b)]

    ones, twos, mixed = [1] * 6, [2] * 6, [1, 2, 1, 2, 1, 2]
    asked = []
    for shape in ([2, 3], [3, 2], [1, 6], [6, 1]):
        for a, b in ((ones, twos), (twos, ones), (mixed, ones), (ones, mixed)):
            for names in (["sum"], ["difference"], ["sum", "difference"], ["difference", "sum"]):
                asked.append((two(shape, a, b), names, shape, a, b))
    with Server(repository, CACHE) as server:
        for _ in range(2):
            for inputs, names, shape, a, b in asked:
                answer = infer(server, "m", inputs, outputs=[{"name": name} for name in names])
                results = {"sum": np.add(a, b).tolist(), "difference": np.subtract(a, b).tolist()}
                got = [(output["name"], output["shape"], output["data"]) for output in answer.json["outputs"]]
                assert got == [(name, shape, results[name]) for name in names]
        # The order in which a client names its inputs is no difference.
        (inputs, names, *_) = asked[0]
        infer(server, "m", inputs[::-1], outputs=[{"name": name} for name in names])
        assert counts(server) == (len(asked), len(asked) + 1, len(asked))


def test_f22_all_outputs_and_the_same_outputs_by_name(repository):
    repository.onnx("m", sums((1,)), config=f"max_batch_size: 0 {ON}")
    inputs = [tensor("a", "FP32", [1], [1]), tensor("b", "FP32", [1], [2])]
    with Server(repository, CACHE) as server:
        whole = infer(server, "m", inputs)
        named = infer(server, "m", inputs, outputs=[{"name": output["name"]} for output in whole.json["outputs"]])
        assert whole.body == named.body
        assert counts(server) == (1, 1, 1)


def test_f22_datatypes_models_and_versions_are_kept_apart(repository):
    data = bytes(range(8)) * 2
    sizes = {"UINT8": 16, "INT16": 8, "INT32": 4, "FP32": 4, "INT64": 2, "FP64": 2}
    for datatype, count in sizes.items():
        repository.onnx(datatype.lower(), identity(datatype, (count,)), config=unbatched(datatype, [count]) + ON)
    for version in (1, 2):
        repository.onnx("m", plus(version), version, config=f"version_policy {{ all {{}} }} {ON}")
    with Server(repository, CACHE) as server:
        for _ in range(2):
            for datatype, count in sizes.items():
                x = httpclient.InferInput("INPUT0", [count], datatype)
                x.set_data_from_numpy(np.frombuffer(data, DATATYPES[datatype][0]))
                with httpclient.InferenceServerClient(server.http) as client:
                    result = client.infer(datatype.lower(), [x])
                assert result.get_output("OUTPUT0")["datatype"] == datatype
                assert result.as_numpy("OUTPUT0").tobytes() == data
            for version in (1, 2):
                answer = infer(server, "m", row(5), version=version)
                assert answer.json["model_version"] == str(version)
                assert answer.json["outputs"][0]["data"] == [5 + version] * 4
        for datatype in sizes:
            assert counts(server, datatype.lower()) == (1, 1, 1)


def test_f22_parameters_of_a_request_and_classes_are_those_of_each_request(repository):
    repository.onnx("m", identity("FP32", ("batch", 4)), config=f"max_batch_size: 8 {ON}")
    repository.mock("echo", ON, echo_parameters=1)
    inputs = [tensor("INPUT0", "FP32", [1, 4], [0.5, 3, -1, 2])]
    classes = {1: ["3.000000:1"], 3: ["3.000000:1", "2.000000:3", "0.500000:0"]}
    with Server(repository, CACHE) as server:
        for _ in range(2):
            for count, expected in classes.items():
                answer = infer(server, "m", inputs, outputs=[{"name": "OUTPUT0", "parameters": {"classification": count}}])
                assert answer.json["outputs"][0]["data"] == expected
            assert infer(server, "m", inputs).json["outputs"][0]["data"] == [0.5, 3, -1, 2]
        # One execution for all: classes are made of the kept output.
        assert counts(server) == (1, 5, 1)
        for mine in (1, 2, 1):
            answer = infer(server, "echo", row(0), parameters={"mine": mine, "priority": mine})
            assert answer.json["parameters"]["mine"] == mine
        assert counts(server, "echo") == (1, 2, 1)


def test_f22_f6_an_omitted_input_is_no_given_one(repository):
    x, z = ('{ name: "%s" data_type: TYPE_FP32 dims: 4 %s }' % part for part in (("x", ""), ("z", "optional: true")))
    config = f'backend: "mock" max_batch_size: 4 input [ {x}, {z} ] output {{ name: "y" data_type: TYPE_FP32 dims: 4 }}\n'
    (repository.path / "m/1").mkdir(parents=True)
    repository.config("m", config + ON + parameter("mock.output", "echo"))
    zeros = tensor("z", "FP32", [1, 4], [0] * 4)
    with Server(repository, CACHE) as server:
        for inputs in (row(1), [*row(1), zeros], row(1), [zeros, *row(1)]):
            assert infer(server, "m", inputs).json["outputs"][0]["data"] == [1] * 4
        assert counts(server) == (2, 2, 2)


# 10,000 floats.
LARGE = 40_000


def large(server, asked, count=LARGE // 4):
    answer = infer(server, "m", row(asked, count), outputs=[{"name": "y", "parameters": {"binary_data": True}}])
    assert answer.status == 200, answer.body
    _, data = answer.parts()
    assert data == np.full(count, asked + 1, np.float32).tobytes()


def test_f22_the_least_recently_used_response_leaves_first(repository):
    repository.onnx("m", plus(1, ("batch", "width")), config=f"max_batch_size: 8 {ON}")
    size = 2 * LARGE + 4 * ENTRY
    with Server(repository, f"--cache-config=local,size={size}") as server:
        for asked in (1, 2, 1):
            large(server, asked)
        assert counts(server) == (2, 1, 2)
        large(server, 3)
        assert dropped(server) == {"size": 1}
        large(server, 1)
        assert counts(server) == (3, 2, 3), "used later than the other one"
        large(server, 2)
        assert counts(server) == (4, 2, 4)
        assert 2 * LARGE < figure(server, "skep_response_cache_memory_bytes", kind="used") <= size
        # One that has no room at all costs the others nothing.
        large(server, 4, size // 4)
        large(server, 2)
        assert counts(server) == (5, 3, 5)
        assert dropped(server) == {"size": 2, "too_large": 1}


def test_a_models_own_bound(repository):
    bound = parameter("response_cache_bytes", LARGE + 2 * ENTRY)
    repository.onnx("m", plus(1, ("batch", "width")), config=f"max_batch_size: 8 {ON}{bound}")
    repository.onnx("other", plus(1), config=f"max_batch_size: 8 {ON}")
    with Server(repository, CACHE) as server:
        value(server, 1, "other")
        for asked in (1, 2, 2, 1):
            large(server, asked)
        assert counts(server) == (3, 1, 3)
        assert dropped(server) == {"model_size": 2}
        assert value(server, 1, "other") == 2
        assert counts(server, "other") == (1, 1, 1)


def test_a_time_to_live(repository):
    repository.onnx("m", plus(1), config=ON + parameter("response_cache_ttl_ms", 30))
    repository.onnx("long", plus(1), config=ON + parameter("response_cache_ttl_ms", 3_600_000))
    with Server(repository, CACHE) as server:
        value(server, 1, "long")
        # Hits do not prolong it: each look is one.
        server.wait_until(lambda: value(server, 1) == 2 and counts(server)[0] >= 2)
        assert dropped(server)["expired"] >= 1
        assert figure(server, "skep_response_cache_entries", **MODEL) == 1
        assert value(server, 1, "long") == 2
        assert counts(server, "long") == (1, 1, 1)


def test_f22_a_reload_and_an_unload_drop_the_responses(repository):
    repository.onnx("m", plus(1), config=ON)
    with Server(repository, CACHE, EXPLICIT, "--load-model=m") as server:
        assert [value(server, 1) for _ in range(2)] == [2, 2]
        # Unchanged: the version stays, and so do its responses.
        assert post(server, "/v2/repository/models/m/load").status == 200
        assert value(server, 1) == 2
        assert counts(server) == (1, 2, 1)
        repository.onnx("m", plus(5))
        assert post(server, "/v2/repository/models/m/load").status == 200
        server.wait_until(lambda: figure(server, "skep_response_cache_memory_bytes", kind="used") == 0)
        assert [value(server, 1) for _ in range(2)] == [6, 6]
        assert counts(server) == (1, 1, 1)
        assert post(server, "/v2/repository/models/m/unload").status == 200
        server.wait_until(lambda: figure(server, "skep_response_cache_memory_bytes", kind="used") == 0)


def test_f22_errors_are_not_kept(repository):
    repository.mock("m", ON, fail_every=2)
    with Server(repository, CACHE) as server:
        assert [infer(server, "m", row(asked)).status for asked in (1, 2, 2, 2)] == [200, 500, 200, 200]
        assert counts(server) == (2, 1, 2)
        assert stats(server)["inference_stats"]["fail"]["count"] == 1
        # A request that the model cannot get is refused before the cache.
        assert infer(server, "m", row(1, 5)).status == 400
        assert counts(server) == (2, 1, 2)


def test_f22_many_clients_at_once_each_get_their_own(repository):
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 dynamic_batching {{ }} instance_group {{ count: 2 }} {ON}")

    def client(number):
        module, address = ((httpclient, server.http), (grpcclient, server.grpc))[number % 2]
        with module.InferenceServerClient(address) as client:
            for step in range(40):
                asked = (number + step) % 10
                x = module.InferInput("x", [1 + asked % 3, 4], "FP32")
                x.set_data_from_numpy(np.full((1 + asked % 3, 4), asked, np.float32))
                assert np.array_equal(client.infer("m", [x]).as_numpy("y"), np.full((1 + asked % 3, 4), asked + 1))

    # Room for some of them.
    with Server(repository, f"--cache-config=local,size={4 * ENTRY}") as server, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(client, number) for number in range(8)]:
            done.result()
        parts = stats(server)["inference_stats"]
        assert parts["success"]["count"] == 320 == parts["cache_hit"]["count"] + parts["cache_miss"]["count"]
        assert parts["compute_infer"]["count"] == parts["cache_miss"]["count"]
        assert figure(server, "skep_response_cache_memory_bytes", kind="used") <= 4 * ENTRY


def test_f22_decoupled_models_are_refused_in_tritons_words(repository):
    repository.mock("m", f"model_transaction_policy {{ decoupled: true }}\n{ON}")
    said = "Response Cache does not currently support model m with 'Decoupled' transaction policy. Please disable the response cache."
    for flags in ([CACHE], []):
        code, log = serve_and_fail(repository, *flags)
        assert code == 1 and said in log
        assert re.search(rf"{re.escape(str(repository))}/m/config.pbtxt:\d+:\d+: Response Cache", log), log
    outcome = run("check", repository)
    assert outcome.returncode == 1 and said in outcome.stdout


def test_f22_without_the_flag_models_are_served_without_cache_and_one_warning(repository):
    repository.onnx("m", plus(1), config=f"max_batch_size: 8\n{ON}")
    for flags in ([], ["--response-cache-byte-size=0"]):
        with Server(repository, *flags) as server:
            assert [value(server, 1) for _ in range(2)] == [2, 2]
            assert counts(server) == (2, 0, 0)
            warned = [line for line in server.lines if line.startswith("W")]
            assert len(warned) == 1, warned
            assert f"{repository}/m/config.pbtxt:2:18: `response_cache.enable`: no effect" in warned[0]
            assert "`--cache-config=local,size=BYTES`" in warned[0]
            assert not any("cache" in name for name, _ in metrics(server))
    # A check does not know how the server will be started.
    outcome = run("check", "--config=none", repository)
    assert outcome.returncode == 0 and "no effect" not in outcome.stdout


def test_f22_models_that_do_not_ask_for_it_are_not_cached(repository):
    repository.onnx("m", plus(1), config=parameter("response_cache_ttl_ms", 100))
    with Server(repository, CACHE) as server:
        assert [value(server, 1) for _ in range(2)] == [2, 2]
        assert counts(server) == (2, 0, 0)
        assert "`parameters.response_cache_ttl_ms`: no effect without `response_cache { enable: true }`" in server.log
        assert not any(name.startswith("nv_cache") for name, _ in metrics(server))


def test_c15_the_older_flag_and_the_last_size(repository):
    repository.onnx("m", plus(1), config=ON)
    for flags, size in (
        (["--response-cache-byte-size=1048576"], MIB),
        (["--cache-config=local,size=4096", f"--cache-config=local,size={2 * MIB}"], 2 * MIB),
    ):
        with Server(repository, *flags, "--cache-directory=/opt/tritonserver/caches") as server:
            assert [value(server, 1) for _ in range(2)] == [2, 2]
            assert counts(server) == (1, 1, 1)
            assert figure(server, "skep_response_cache_memory_bytes", kind="limit") == size
            assert server.log.count("accepted without effect: --cache-directory") == 1


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--cache-config=redis,host=h"], "there is no cache `redis`"),
        (["--cache-config=local,size=4096", "--cache-config=redis,host=h"], "there is no cache `redis`"),
        (["--cache-config=local,size=1"], "expected a number of bytes of at least 1024"),
        (["--cache-config=local"], "expected local,size=BYTES"),
        (["--cache-config=local,sise=4096"], "`local` has no setting `sise`"),
        (["--response-cache-byte-size=many"], "expected a number of bytes of at least 1024"),
        (["--cache-config=local,size=4096", "--response-cache-byte-size=4096"], "incompatible flags"),
    ],
)
def test_c15_what_is_no_cache_is_refused(repository, flags, text):
    repository.onnx("m", plus(1), config=ON)
    code, log = serve_and_fail(repository, *flags)
    assert code == 1 and text in log, log


def test_worker_processes_answer_once_as_well(repository):
    repository.onnx("m", plus(1), config=ON + parameter("isolation", "process"))
    with Server(repository, CACHE) as server:
        assert [value(server, 1) for _ in range(3)] == [2] * 3
        assert counts(server) == (1, 2, 1)


def test_the_responses_of_a_batch_are_found_one_by_one(repository):
    repository.onnx("m", plus(1), config=f"max_batch_size: 8 dynamic_batching {{ }} {ON}")
    with Server(repository, CACHE, env={"TRITONSERVER_DELAY_SCHEDULER": "4"}) as server, ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(lambda asked: value(server, asked), range(4))) == [1, 2, 3, 4]
        assert counts(server) == (1, 0, 4)
        assert [value(server, asked) for asked in range(4)] == [1, 2, 3, 4]
        assert counts(server) == (1, 4, 4)
        assert figure(server, "skep_response_cache_entries", **MODEL) == 4


def test_the_page_of_the_documentation_is_served(server):
    answer = request(server.http, "GET", "/docs/response-cache.md")
    assert answer.status == 200 and b"--cache-config=local,size=" in answer.body
