"""A run's folder from elsewhere is loaded unchanged or refused in one sentence, quickly and in little memory.

PYTHONPATH=. python tests/run_folders_test.py 20000 7     # number of mutants, seed
"""

import copy
import json
import math
import random
import resource
import shutil
import sys
import tempfile
from pathlib import Path

import chex
import jax
import pytest
from etils import epath

from kd_jax import config as schema
from kd_jax.files import read_json
from kd_jax.training import teachers
from kd_jax.training.checkpoints import load_run
from kd_jax.training.experiment import seeded_run
from kd_jax.training.plan import prepare
from kd_jax.training.run import train_runs

BYTES = 2**29  # the most memory that a refusal may take
VALUES = (
    *(None, True, False, -1, 0, 1, 1.5, 3, 70, 10**6, 10**9, 2**31, 10**30, -1e300, 1e-300, 1e30),
    *(math.nan, math.inf, "", "1", "x" * 10**5, "../..", "float16", "pdan", "sparse", [], [[]], {}, {"a": {"b": [1]}}),
    *([1], ["a"], ["a", "a"], [None], {"": None}),
)
TEXTS = (
    *(b"", b"\0", b"[1]", b"null", b'"run"', b"7", b"{}", b"\xff\xfe{}", b"\xef\xbb\xbf{}", b"{" * 10**5),
    *(b'{"a":' * 10**5, b'{"model": 1' + b"0" * 5000 + b"}"),
)


def train(workdir):
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4})
    config.model.update({"hidden": 8, "num_layers": 2, "standardize": True})
    config.training.update({"epochs": 1, "length_buckets": 1})
    config.runs = schema.make_runs(flow=schema.make_run("flow"))
    config.baseline = ""
    source = prepare(config, workdir)
    run = seeded_run(config, epath.Path(workdir), "flow", 0, source)
    train_runs(config, [run], source)
    return Path(run.directory), source


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("run_folders"))


def places(content, prefix=()):
    """Yield the paths of all values in JSON content."""
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


def mutate_json(text, rng):
    """Change, delete or add one value."""
    content = copy.deepcopy(json.loads(text))
    *parents, key = rng.choice(list(places(content)))
    part = content
    for parent in parents:
        part = part[parent]
    action = rng.randrange(4)
    if action == 0:
        del part[key]
    elif action == 1 and isinstance(part, dict):
        part[rng.choice(["", "x", "name", "entry", "parent"])] = part.pop(key)
    else:
        part[key] = rng.choice(VALUES)
    return json.dumps(content).encode()


def mutate_bytes(content, rng):
    """Cut, flip or overwrite a part."""
    if not content:
        return b"x"
    at, changed = rng.randrange(len(content)), bytearray(content)
    action = rng.randrange(3)
    if action == 0:
        return content[:at]
    if action == 1:
        changed[at] ^= 1 << rng.randrange(8)
    else:
        changed[at : at + 8] = rng.randbytes(rng.choice([1, 8, 300]))
    return bytes(changed)


def mutate(folder, rng):
    """Change one file of a run; return it and its former content."""
    checkpoint, kind = folder / "checkpoints" / "1", rng.random()
    file = folder / ("config.json" if kind < 0.5 else "results.json")
    if kind > 0.6:
        file = rng.choice(sorted(path for path in checkpoint.rglob("*") if path.is_file()))
    content = file.read_bytes()
    is_json = file.parent == folder or file.name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding", "process_0")
    if rng.random() < 0.05:
        file.write_bytes(rng.choice(TEXTS))
    elif is_json and rng.random() < 0.8:
        text = {k: v for k, v in json.loads(content).items() if k != "sha256"}  # as of an older version
        file.write_bytes(mutate_json(json.dumps(text), rng))
    else:
        file.write_bytes(mutate_bytes(content, rng))
    return file, content


def wrong(folder, expected, changed, load):
    """Say what is wrong with the outcome of loading a folder with one changed file; None if nothing is."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        loaded = load(folder)
        if loaded is not None:
            chex.assert_trees_all_equal(loaded.variables, expected.variables)
    except AssertionError:
        return "other parameters without a word"
    except (ValueError, OSError) as error:
        name = changed.name if changed.parent == Path(folder) else "checkpoints"
        if "\n" in str(error) or len(str(error)) > 700 or not (name in str(error) or str(folder) in str(error)):
            return f"not one sentence on {name}: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return f"{grown / 2**20:.0f} MiB" if grown > BYTES else None


def fuzz(folder, count, seed, load=load_run):
    """Load `count` mutants of a run; yield what is wrong."""
    expected, rng = load_run(folder), random.Random(seed)
    for i in range(count):
        file, content = mutate(folder, rng)
        found = wrong(folder, expected, file, load)
        if found:
            yield f"mutant {i}, {file.relative_to(folder)} = {file.read_bytes()[:300]!r}: {found}"
        file.write_bytes(content)


@pytest.mark.parametrize("count", [30, pytest.param(800, marks=(pytest.mark.slow, pytest.mark.exhaustive))])
def test_a_mutated_run_is_loaded_unchanged_or_refused(finished, tmp_path, count):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    assert list(fuzz(folder, count, seed=0)) == []


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=(pytest.mark.slow, pytest.mark.exhaustive))])
def test_a_mutated_teacher_is_refused(finished, tmp_path, count):
    folder, source = Path(shutil.copytree(finished[0], tmp_path / "run")), finished[1]

    def describe(folder):
        teachers._of_run.cache_clear()
        teachers.describe_given(epath.Path(folder), source.videos("train", []), source.info)

    assert list(fuzz(folder, count, seed=1, load=describe)) == []


CONFIGS = {
    "negative": ({"model.hidden": -8}, r"config\.json: model\.hidden is -8, but must be a whole number from 1"),
    "not a number": ({"seconds_per_snippet": math.nan}, r"seconds_per_snippet is NaN, but must be a finite number"),
    "beyond a float": ({"model.dropout": 10**400}, r"model\.dropout is 1000.*, but must be at least 0 and below 1"),
    "wide": ({"model.hidden": 10**9}, r"config\.json describes another model .* head is \(8, 12\), by config.json"),
    "deep": ({"model.num_layers": 10**6}, r"config\.json describes another model .* by config.json 1000000 layers"),
    "one more layer": ({"model.num_layers": 3}, r"config\.json describes another model .*layers.*\[2, .*\[3, "),
    "stages": ({"model.num_stages": 10**9}, r"config\.json describes another model .* head_1000000000 is missing"),
    "input": ({"input_size": 10**9}, r"config\.json describes another model .*\[48.*\[1000000000"),
    "filter": ({"filter": "pdan"}, r"config\.json describes another model than the checkpoint holds"),
    "unknown option": ({"model.widths": 3}, r"config\.json: model\.widths is unknown; it has dropout, "),
    "classes": ({"classes": "abc"}, r'config\.json: classes is "abc", but must be a list of different texts'),
    "class": ({"classes": ["a"]}, r"config\.json: model\.num_outputs is 12, but must be 1 for 1 classes"),
    "dtype": ({"model.dtype": "float64"}, r"model\.dtype is .float64., but must be float32 or bfloat16"),
    "missing": ({"head": None}, r"config\.json: the field head is missing"),
}


@pytest.mark.parametrize("changes, message", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_does_not_fit_is_named(finished, tmp_path, changes, message):
    folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
    config = read_json(folder / "config.json")
    for field, value in changes.items():
        *section, name = field.split(".")
        (config[section[0]] if section else config)[name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{message}.*; copy all of the run again, or train it anew"):
        load_run(folder)


def main(count, seed):
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory() as workdir:
        folder, _ = train(Path(workdir))
        found = 0
        for text in fuzz(folder, count, seed):
            found += 1
            print(text, flush=True)
    print(f"{count} mutants, {found} wrong")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
