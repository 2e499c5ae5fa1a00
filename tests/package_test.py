"""The package as users get it: what `import kd_jax` offers, and the wheel in a fresh environment."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import kd_jax
from kd_jax import __main__ as dispatcher
from kd_jax.command_line import Parser

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "kd_jax/analysis/pages"


def test_the_public_names():
    from kd_jax.inference import loading, trained_detector
    from kd_jax.models import Detector

    names = {"Detection", "Detector", "TrainedDetector", "load", "losses", "__version__"}
    assert names == set(kd_jax.__all__) <= set(dir(kd_jax))
    from kd_jax.losses.atomic_level import atomic

    assert kd_jax.losses.atomic is atomic
    assert kd_jax.Detector is Detector and kd_jax.load is loading.load
    assert kd_jax.Detection is trained_detector.Detection
    with pytest.raises(AttributeError, match="module 'kd_jax' has no attribute 'teachers'"):
        _ = kd_jax.teachers


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_the_dispatcher_lists_its_commands(arguments, capsys):
    dispatcher.main(arguments)
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split()[0] for line in lines] == [
        "train",
        "advise",
        "predict",
        "export",
        "analyse",
        "evaluate",
        "report",
        "verify",
        "build",
        "convert-annotations",
        "extract",
        "convert-weights",
    ]
    assert all(len(line.split()) > 3 and len(line) < 80 for line in lines)


@pytest.mark.parametrize("command", dispatcher.COMMANDS)
def test_every_command_is_called_with_its_arguments(command, capsys, monkeypatch):
    module = importlib.import_module(dispatcher.COMMANDS[command][0])
    assert isinstance(module.parser(), Parser)
    with pytest.raises(SystemExit) as ended:
        dispatcher.main([command, "--help"])
    assert ended.value.code == 0 and f"usage: python -m {module.__name__} " in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["/bin/kd-jax", command, "--help"])
    with pytest.raises(SystemExit) as ended:
        dispatcher.main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: kd-jax {command} " in shown
    assert f"\n    kd-jax {command} " in shown  # an example


def test_the_dispatcher_prints_the_version(capsys):
    dispatcher.main(["--version"])
    assert capsys.readouterr().out == f"kd_jax {kd_jax.__version__}\n"


def test_the_dispatcher_refuses_other_commands():
    with pytest.raises(SystemExit, match=r"kd-jax: unknown command 'trian'; choose one of train, advise, predict, "):
        dispatcher.main(["trian"])


@pytest.mark.parametrize(
    "command, name",
    [
        ("kd_jax predict", "kd-jax predict"),
        ("kd_jax.evaluate --help", "kd_jax"),
        ("data_prep.build --help", "kd_jax"),
    ],
)
def test_ctrl_c_during_the_imports_ends_a_command_in_one_sentence(command, name, tmp_path):
    """NumPy, which all of them import, sends the signal; an exception within an import may be swallowed."""
    (tmp_path / "numpy.py").write_text("import signal\ntry: signal.raise_signal(signal.SIGINT)\nfinally: print('on')")
    result = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background it is ignored
    )
    assert (result.returncode, result.stdout) == (130, ""), result.stderr
    assert result.stderr == f"\n{name}: interrupted; run the same command again\n"


@pytest.mark.parametrize("name, code, how", [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "stopped by SIGTERM")])
def test_a_signal_ends_a_command_in_one_sentence_wherever_it_is(name, code, how, tmp_path):
    """An exception would be swallowed in a destructor, as in callbacks of JAX."""
    program = (
        "import signal\n"
        "from pathlib import Path\n"
        "from kd_jax import interrupts, lock\n"
        "class Swallowing:\n"
        f"    def __del__(self): signal.raise_signal(signal.{name})\n"
        "def main(folder):\n"
        "    with lock.held(Path(folder)), interrupts.temporary_folder(dir=folder):\n"
        "        print(len(list(Path(folder).iterdir())), flush=True)\n"
        "        Swallowing()\n"
        "        print('it continues')\n"
        f"interrupts.run('kd_jax.predict', lambda: main('{tmp_path}'))"
    )
    not_ignored = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}  # as in the background
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, **not_ignored)
    assert (result.returncode, result.stdout) == (code, "2\n"), result.stderr
    assert result.stderr == f"\nkd_jax.predict: {how}; run the same command again\n" and not any(tmp_path.iterdir())


def test_the_dispatcher_imports_the_chosen_command_alone():
    code = (
        "import sys; from kd_jax.__main__ import main\n"
        "others = {'jax', 'kd_jax.main', 'kd_jax.predict', 'data_prep'}\n"
        "try: main(['evaluate', '--help'])\n"
        "except SystemExit as ended: print(ended.code, sorted(others & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 []", result.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The programs of a fresh environment with the wheel and the dependencies of the tests; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("package")
    source, environment = folder / "source", folder / "environment"
    for name in ("kd_jax", "data_prep", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    wheel = [*pip, "wheel", source, "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}"]
    subprocess.run(wheel, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    own, of_tests = (sysconfig.get_path("purelib", vars={"base": base}) for base in (str(environment), sys.prefix))
    (Path(own) / "dependencies.pth").write_text(of_tests)  # after its own packages
    install = [*pip, f"--python={environment / 'bin' / 'python'}", "install", "--no-deps", "--no-index"]
    subprocess.run([*install, *folder.glob("*.whl")], check=True, capture_output=True)
    return environment / "bin"


@pytest.mark.slow
def test_the_wheel_has_everything_in_an_empty_folder(installed, tmp_path):
    def run(program, *arguments):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [installed / program, *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    where = run("python", "-c", "import kd_jax; print(kd_jax.__file__, kd_jax.losses.atomic.__name__)").split()
    assert where[0].startswith(str(installed.parent)) and where[1] == "atomic"
    package = Path(where[0]).parent
    assert (package / "py.typed").exists()
    assert {p.name for p in (package / "analysis/pages").iterdir()} >= {p.name for p in PAGES.iterdir()}
    assert {p.name for p in (package / "configs").iterdir()} >= {p.name for p in (ROOT / "configs").glob("*.py")}
    modules = {p.relative_to(ROOT) for folder in ("kd_jax", "data_prep") for p in (ROOT / folder).rglob("*.py")}
    assert {module for module in modules if not (package.parent / module).exists()} == set()
    assert "convert-weights" in run("kd-jax") and run("python", "-m", "kd_jax") == run("kd-jax", "--help")

    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ValueError('a folder of the user')")
    first = run("python", "-m", "kd_jax.main", "--config=configs/tsu.py:smoke", "--workdir=first", "--noreport")
    second = run("kd-jax", "train", "--config=tsu:smoke", "--workdir=second", "--noreport")
    lines = [text.replace("first", "second").splitlines() for text in (first, second)]
    (ours, theirs) = ([line for line in of if not line.startswith(("Time: ", "Next: "))] for of in lines)
    assert ours == theirs and len(lines[0]) == len(ours) + 2 and "gain over vanilla_rgb" in second
    code = "import kd_jax; run = kd_jax.load('first/augmented_rgb'); print(len(run.classes), *run.inputs)"
    assert run("python", "-c", code).split() == ["12", "rgb"]
