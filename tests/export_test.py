"""An exported detector computes what kd_jax computes, in a program that has jax alone, and damage is reported."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import kd_jax
from kd_jax import config as schema
from kd_jax import export
from kd_jax.files import read_json, write_json
from kd_jax.inference import exports, onnx_program
from kd_jax.inference.trained_detector import TrainedDetector
from kd_jax.lock import held
from kd_jax.models import FILTERS, Detector, Filter
from kd_jax.models.bottleneck import Bottleneck
from kd_jax.training import experiment
from kd_jax.training.checkpoints import TrainedRun
from kd_jax.training.plan import prepare


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Two runs with two seeds and their fusion; features are standardised."""
    config = schema.get_config()
    config.dataset.update({"name": "synthetic", "max_videos": 4, "validation_fraction": 0.3})
    config.model.update({"hidden": 8, "num_layers": 2, "standardize": True})
    config.training.update({"epochs": 2, "length_buckets": 1, "checkpoint_every": 2, "learning_rate": 1e-2})
    config.runs = schema.make_runs(
        flow=schema.make_run("flow", filter="bottleneck"),
        rgb=schema.make_run("rgb", ("flow",), {"global_context": 1.0}),
    )
    config.fusions.both = ("flow", "rgb")
    config.update({"baseline": "", "seeds": 2})
    workdir = tmp_path_factory.mktemp("work") / "work"
    experiment.perform(config, workdir, prepare(config, workdir))
    return workdir


def export_to(folder, run, *options):
    """Export with the command line; returns the lines for the user."""
    return export.export(export.parser().parse_args([f"--run={run}", f"--output={folder}", *options]))


@pytest.fixture(scope="module")
def exported(workdir, tmp_path_factory):
    """The exported student, and the lines that its export printed."""
    folder = tmp_path_factory.mktemp("exported") / "student"
    return folder, export_to(folder, workdir / "rgb", "--license=cc-by-4.0")


def features_of(detector, length, seed=0):
    """Features that float16 would round, of one video for each modality."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((length, size), np.float32) for name, size in detector.inputs.items()}


ALONE = "jax jaxlib ml_dtypes numpy numpy.libs opt_einsum scipy scipy.libs"  # jax and what it requires


def test_jax_alone_calls_an_exported_detector(workdir, exported, tmp_path):
    """The program imports from the standard library, jax and what jax requires."""
    for name in ALONE.split():
        (tmp_path / name).symlink_to(Path(jax.__file__).parents[1] / name)
    folder, run = exported[0], kd_jax.load(workdir / "rgb")
    long, short = (features_of(run, length)["rgb"] for length in (70, 5))
    batch, mask = np.full((2, 70, long.shape[1]), np.nan, np.float32), np.arange(70) < np.array([[70], [5]])
    batch[0], batch[1, :5] = long, short
    np.savez(tmp_path / "in.npz", long=long, short=short, batch=batch, mask=mask)
    program = f"""
import sys
sys.path[:0] = [{str(tmp_path)!r}, {str(folder)!r}]
import numpy as np, detector
given = np.load({str(tmp_path / "in.npz")!r})
long = given["long"]
found = dict(long=detector.predict(given["long"]), short=detector.predict(given["short"].astype(np.float64)))
np.savez({str(tmp_path / "out.npz")!r}, **found, batch=detector.predict(given["batch"], given["mask"]))
for wrong in ([given["batch"]], [long[:, 1:]], [long[0]], [long[:0]], [given["batch"], given["mask"][:, 1:]]):
    try: detector.predict(*wrong)
    except ValueError as error: print(error)
print(sys.modules["flatbuffers"].__file__, *{{name.partition(".")[0] for name in sys.modules}})
"""
    result = subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    *refused, imported = result.stdout.splitlines()
    size = long.shape[1]
    shapes = [70, size - 1], [size], [0, size]
    assert refused == [
        "the features hold values that are not finite, or too large",
        *(f"features are rgb {shape}; expected rgb [T, {size}] or [B, T, {size}]" for shape in shapes),
        "mask is [2, 69]; expected [2, 70]",
    ]
    assert imported.startswith(f"{folder / 'flatbuffers.zip'}/flatbuffers/__init__.py ")
    assert not {"flax", "kd_jax", "orbax", "etils", "safetensors"} & {*imported.split()}
    found = np.load(tmp_path / "out.npz")
    for name, features in {"long": long, "short": short}.items():
        np.testing.assert_allclose(found[name], run(features), atol=1e-6)
    np.testing.assert_allclose(found["batch"][0], found["long"], atol=1e-6)
    np.testing.assert_allclose(found["batch"][1, :5], found["short"], atol=1e-6)
    np.testing.assert_array_equal(found["batch"][1, 5:], 0)


def test_an_export_is_verified_and_described(workdir, exported):
    folder, (first, scores, difference) = exported
    recorded = read_json(epath.Path(workdir / "rgb" / "results.json"))["test"]["frame_map/present_classes"]
    assert first.startswith(f"Exported rgb to {folder}: detector.stablehlo, model.safetensors, ")
    value = f"{recorded:.2f} (in results.md {recorded:.2f})"
    assert scores.startswith(f"Verified on the 4 test videos: frame mAP {value}, all classes ")
    assert difference.startswith("The probabilities of detector.stablehlo differ from those of kd_jax by at most ")
    assert float(difference.rstrip(".").split()[-1]) < 1e-6
    card = (folder / "README.md").read_text()
    for text in (
        "---\nlibrary_name: kd_jax\nlicense: cc-by-4.0\n",
        f"| frame mAP | {recorded:.2f} ± ",
        "rgb, seed 0: rgb → ss_tcn, hidden 8, ",
        "teachers: flow (global_context 1).",
        "Mean of 2 seeds of rgb, 95 % interval:",
        f"- {scores}\n- {difference}\n",
        'kd_jax.load("FOLDER")',
        "detector.predict(features)  # [T, 64] -> [T, C]",
    ):
        assert text in card
    assert str(workdir) not in card + (folder / "config.json").read_text()  # no folder of this machine


@pytest.mark.parametrize(
    "name, options",
    [
        pytest.param("rgb/seed_1", (), marks=pytest.mark.slow),
        pytest.param("rgb", ("--seeds=all",), marks=pytest.mark.slow),
        ("both", ("--seeds=all",)),
    ],
)
def test_seeds_and_fusions_are_exported_and_read_back(workdir, tmp_path, name, options):
    run = kd_jax.load(workdir / name, seeds="all" if options else "one")
    lines = export_to(tmp_path / "out", workdir / name, *options)
    assert lines[1].startswith("Verified on the 4 test videos: frame mAP ")
    features = features_of(run, 30)
    given = features if len(features) > 1 else features["rgb"]
    expected = run(given)
    call = exports.read_program((tmp_path / "out" / "detector.stablehlo").read_bytes())
    for more in (0, 13):
        padded = {m: np.pad(x, ((0, more), (0, 0)), constant_values=np.nan)[None] for m, x in features.items()}
        found = np.asarray(call(padded if len(padded) > 1 else padded["rgb"], (np.arange(30 + more) < 30)[None]))
        np.testing.assert_allclose(found[0, :30], expected, atol=1e-6)
        np.testing.assert_array_equal(found[0, 30:], 0)
    for path in (tmp_path / "out", tmp_path / "out" / "detector.stablehlo", tmp_path / "out" / "config.json"):
        again = kd_jax.load(path)
        assert len(again.members) == len(run.members) and again.inputs == run.inputs
        np.testing.assert_array_equal(again(given), expected)
    assert again.detect(given, threshold=0.3) == run.detect(given, threshold=0.3)
    with pytest.raises(ValueError, match="is an exported folder, which has the seeds it was made of; leave out seeds"):
        kd_jax.load(tmp_path / "out", seeds="all")
    if name == "rgb/seed_1":
        (_, unverified) = export_to(tmp_path / "again", tmp_path / "out")
        assert unverified.startswith("Not verified: the experiment that trained it was not found")
        assert unverified in (tmp_path / "again" / "README.md").read_text()
        np.testing.assert_array_equal(kd_jax.load(tmp_path / "again")(given), expected)


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change, chosen, message",
    [
        (lambda f: damage(f / "detector.stablehlo"), "detector.stablehlo", "is not what kd-jax export wrote; copy the"),
        (lambda f: damage(f / "model.safetensors"), "", "model.safetensors is not what kd-jax export wrote; copy the"),
        (lambda f: (f / "model.safetensors").unlink(), "detector.stablehlo", "model.safetensors is missing; copy the"),
        (lambda f: damage(f / "config.json"), "", "config.json is damaged"),
        (
            lambda f: (f / "config.json").unlink(),
            "",
            "config.json is missing; copy the folder again, or export it anew",
        ),
        (lambda f: (f / "config.json").write_text("{}"), "", "config.json is not what kd-jax export writes; give a"),
        (
            lambda f: (f.parent / "a.bin").write_text("x"),
            "../a.bin",
            "a.bin is not a file of an exported folder; name a f",
        ),
        (lambda f: _set(f, filter="mine"), "", "the filter 'mine' is unknown"),
        (lambda f: _set(f, classes=["a"]), "", "model.num_outputs is 12, but must be 1 for 1 classes; copy the folder"),
        (lambda f: _set(f, input_size=7), "", "config.json describes another model than the checkpoint holds"),
        (lambda f: _foreign(f), "", "model.safetensors cannot be read"),
    ],
)
def test_damaged_and_foreign_files_are_named_in_one_sentence(exported, tmp_path, change, chosen, message):
    folder = tmp_path / "student"
    shutil.copytree(exported[0], folder)
    change(folder)
    with pytest.raises(ValueError) as refused:
        kd_jax.load(os.path.normpath(folder / chosen))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def _set(folder, **fields):
    config = read_json(epath.Path(folder / "config.json"))
    config["members"] = [{**member, **fields} for member in config["members"]]
    write_json(epath.Path(folder / "config.json"), config)


def _foreign(folder):
    """A file of another program, with the checksum that config.json states."""
    (folder / "model.safetensors").write_bytes(b"GGUF" + bytes(60))
    config = read_json(epath.Path(folder / "config.json"))
    config["files"].pop("model.safetensors")
    write_json(epath.Path(folder / "config.json"), config)


def test_the_loader_refuses_a_damaged_program(exported, tmp_path):
    folder = tmp_path / "student"
    shutil.copytree(exported[0], folder)
    damage(folder / "detector.stablehlo")
    code = "import detector; detector.predict(__import__('numpy').zeros((3, 64)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert f"ValueError: {folder / 'detector.stablehlo'} is damaged; copy the folder again" in result.stderr


def test_an_export_replaces_only_its_own_files(workdir, exported, tmp_path, capsys):
    folder = tmp_path / "student"
    shutil.copytree(exported[0], folder)
    (folder / ".gitattributes").write_text("kept")
    export_to(folder, workdir / "rgb")
    assert "license: other" in (folder / "README.md").read_text() and (folder / ".gitattributes").exists()
    (folder / "README.md").write_text("with a licence that a person filled in")
    for output, message in (
        (folder, f"{folder / 'README.md'} was changed after its export; choose another folder, or delete this file"),
        (workdir / "rgb", f"--output={workdir / 'rgb'} holds a config.json of something else; choose another folder"),
    ):
        before = {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
        with pytest.raises(SystemExit) as ended:
            export.main([f"--run={workdir / 'rgb'}", f"--output={output}"])
        assert ended.value.code == f"kd_jax.export: {message}"
        assert before == {path: path.read_bytes() for path in output.iterdir() if path.is_file()}
    with pytest.raises(SystemExit, match="kd_jax.export: --output must be given; for instance --run=workdir/demo"):
        export.main([f"--run={workdir / 'rgb'}"])


def test_a_difference_ends_the_export_and_writes_nothing(workdir, tmp_path, monkeypatch):
    call = exports.read_program
    monkeypatch.setattr(
        exports, "read_program", lambda program: lambda *given: np.asarray(call(program)(*given)) + 2e-4
    )
    with pytest.raises(
        ValueError, match="detector.stablehlo differ from those of kd_jax by 0.0002, more than 0.0001, so"
    ):
        export_to(tmp_path / "out", workdir / "rgb")
    assert not (tmp_path / "out").exists()


def test_an_exported_folder_has_one_writer(workdir, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "verify", lambda *_: export.Verified([]))
    with held(tmp_path), pytest.raises(BlockingIOError, match=f"{tmp_path} is in use by process {os.getpid()} on "):
        export_to(tmp_path, workdir / "flow")


def made(filter, head="dense", **fields):
    """A detector of random parameters that reads 6 features."""
    model = Detector(filter, 4, hidden=8, standardize=True, **fields)
    example = np.zeros((1, 1, 6), np.float32), np.ones((1, 1), bool)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), *example))
    names = ["a", "b", "c", "d"][: 4 if head == "dense" else 3]
    config = {"run": filter, "modality": "rgb", "input_size": 6, "head": head, "classes": names, "filter": filter}
    config |= {"seconds_per_snippet": 0.5, "model": {"num_outputs": 4, "dtype": "float32", "hidden": 8}}
    return TrainedDetector(filter, (TrainedRun(model, variables, config),))


def make_onnx_call(detector):
    return onnx_program.read(onnx_program.make(detector))


def make_call(detector):
    return exports.read_program(exports.make_program(detector))


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_call, make_onnx_call])
@pytest.mark.parametrize("filter", FILTERS)
def test_every_filter_is_exported_for_any_length(filter, make):
    if make is make_onnx_call:
        pytest.importorskip("jax2onnx")
        if filter == "pdan":  # jax2onnx 0.17.1 has no slices of a length that is not known
            with pytest.raises(ValueError, match="jax2onnx cannot convert the filter 'pdan' .*; leave out --onnx"):
                make(made(filter))
            return
    call = make(detector := made(filter))
    for length in (1, 9, 50):
        features = features_of(detector, length)["rgb"]
        batch, mask = np.full((2, length + 3, 6), np.nan, np.float32), np.zeros((2, length + 3), bool)
        batch[0, :length], mask[0, :length] = features, True
        found = np.asarray(call(batch, mask))
        np.testing.assert_allclose(found[0, :length], detector(features), atol=1e-5)
        np.testing.assert_array_equal(found[~mask], 0)


def test_the_sparse_head_has_a_softmax():
    detector = made("bottleneck", head="sparse")
    features = features_of(detector, 9)["rgb"]
    found = np.asarray(make_call(detector)(features[None], np.ones((1, 9), bool)))
    np.testing.assert_allclose(found[0], detector(features), atol=1e-6)
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


def test_a_filter_that_needs_a_known_length_is_refused(monkeypatch):
    class Known(Bottleneck):
        def __call__(self, x, mask, *, train=False):
            return super().__call__(x, mask, train=train)[:, np.arange(int(x.shape[1]))]

    monkeypatch.setitem(FILTERS, "known", Filter(Known))
    with pytest.raises(
        ValueError, match=r"the filter 'known' cannot be exported for any length \(.*\); its operations"
    ):
        exports.make_program(made("known"))


def test_features_are_rounded_as_records_store_them():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(20_000) * 10 ** rng.uniform(-9, 4, 20_000)).astype(np.float32)
    x = np.concatenate([x, np.float32([0, -0.0, 2.0**-14, 2.0**-25, 65504])])
    expected = x.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(exports._round_to_float16)(x), expected)


def test_onnx_without_its_libraries_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        ValueError, match=r"--onnx needs jax2onnx .*; pip install 'kd_jax\[onnx\]' in a separate environment"
    ):
        onnx_program.make(made("bottleneck"))
