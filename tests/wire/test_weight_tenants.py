"""A tenant's baked models lie in a part of the cache that is the tenant's alone, and answer as everybody's."""

import json

import pytest

from process import workers
from repository import Repository
from server import Server, run
from weights import config, files, outputs

KIND = "bert-tiny"


def tenant(name):
    return f'parameters {{ key: "tenant" value {{ string_value: "{name}" }} }}'


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_each_tenant_has_a_part_of_the_cache(tmp_path, isolation):
    cache = tmp_path / "weights"
    repository = Repository(tmp_path / "models")
    for name, more in (("m", ""), ("one", tenant("one")), ("two", tenant("two"))):
        repository.generate(KIND, name, config=f"{config(isolation)} {more}")
    flags = [f"--weight-cache={cache}", "--weight-bake=foreground"]
    with Server(repository, *flags) as server:
        expected = outputs(server, KIND)
        assert outputs(server, KIND, model="one") == outputs(server, KIND, model="two") == expected
        if isolation == "process":
            assert len(workers(server)) == 3
    parts = [cache, *sorted((cache / "v1/tenants").iterdir())]
    assert sorted((part / "tenant").read_text() for part in parts[1:]) == ["one\n", "two\n"]
    for part in parts:
        assert len(list((part / "v1/models").iterdir())) == 1
        assert part.stat().st_mode & 0o077 == 0
    # The same model three times, and no file of it twice in use.
    own = [{path: content for path, content in files(part).items() if path.startswith("tensors")} for part in parts]
    assert own[1] == own[2]
    inodes = [path.stat().st_nlink for part in parts for path in (part / "v1/tensors").glob("*/*")]
    assert set(inodes) == {1}

    outcome = run("bake", "--json", f"--weight-cache={cache}", repository)
    assert {row["state"] for row in json.loads(outcome.stdout)} == {"known"}
    # One budget: what was used longest ago goes, whoever has it.
    form = sum(path.stat().st_size for path in (cache / "v1").rglob("*") if path.is_file() and "tenants" not in path.parts)
    repository.generate(KIND, "three", config=f"{config(isolation)} {tenant('three')}")
    outcome = run("bake", "--json", f"--weight-cache={cache}", f"--weight-cache-bytes={3 * form}", repository.path / "three")
    assert [row["state"] for row in json.loads(outcome.stdout)] == ["baked"], outcome.stderr
    forms = list((cache / "v1").glob("models/*")) + list((cache / "v1/tenants").glob("*/v1/models/*"))
    assert len(forms) == 3
