"""The code of README.md and docs/ and the notebook run, commands are accepted, and files, modules and fields exist."""

import contextlib
import importlib
import io
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest

from kd_jax import config as schema
from kd_jax.__main__ import COMMANDS
from kd_jax.data import records, synthetic
from kd_jax.evaluation.proposals import PROPOSALS
from kd_jax.evaluation.protocols import PROTOCOLS
from kd_jax.main import read_options
from kd_jax.models import FILTERS
from kd_jax.training.state import OPTIMIZERS, SCHEDULES
from kd_jax.training.terms import TASKS, TERMS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / "data_prep/README.md", ROOT / "benchmarks/README.md", ROOT / "CONTRIBUTING.md"]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text() for page in [*PAGES, *OTHERS]}
PYTHON = [  # (page, line, block)
    (name, TEXT[name].count("\n", 0, block.start(1)) + 1, block[1])
    for name in (page.relative_to(ROOT).as_posix() for page in PAGES)
    for block in re.finditer(r"```python\n(.*?)```", TEXT[name], re.DOTALL)
]
MODULES = {module: name for name, (module, _) in COMMANDS.items()}


def run_blocks(blocks: list) -> None:
    """Run blocks in one process, each in a namespace of its own. A traceback has the page and the line there."""
    code = [(name, "\n" * (line - 1) + block) for name, line, block in blocks]
    program = f"for n, c in {code!r}: exec(compile(c, n, 'exec'), {{'__name__': '__main__'}})"
    result = subprocess.run([sys.executable], input=program, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_python_blocks_run():
    assert any("losses." in block for name, _, block in PYTHON if name == "README.md")
    assert all(any(f"import {library}" in block for _, _, block in PYTHON) for library in ("equinox", "haiku"))
    run_blocks(PYTHON)


def test_the_python_blocks_on_features_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train", "valid"):
        with h5py.File(f"{name}.h5", "w") as file:
            file[name] = np.ones((3, 2))
    info, splits = synthetic.make(num_train=2, num_test=1)
    records.write(tmp_path / "data" / "mine", info, splits)
    for block in re.findall(r"```python\n(.*?)```", TEXT["data_prep/README.md"], re.DOTALL):
        exec(block, names := {"h5py": h5py})
    assert len(names["videos"]) == 2
    with h5py.File("tsp.h5") as joined:
        assert sorted(joined) == ["train", "valid"]


@pytest.mark.parametrize("page", TEXT)
def test_commands_are_accepted(page, capsys):
    """The commands in bash blocks use only options that exist; `…` stands for omitted ones."""
    for block in re.findall(r"```bash\n(.*?)```", TEXT[page], re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.replace("…", ""), comments=True)
            if words[:1] == ["kd-jax"]:
                module, arguments = COMMANDS[words[1]][0], words[2:]
            elif words[:2] == ["python", "-m"] and words[2].startswith(("kd_jax", "data_prep")):
                module, arguments = words[2], words[3:]
            else:
                continue
            options = importlib.import_module(module).parser()
            try:
                read_options(options, arguments) if module == "kd_jax.main" else options.parse_args(arguments)
            except SystemExit:
                pytest.fail(f"{line}: {capsys.readouterr().err}")


@pytest.mark.slow
def test_the_cells_of_the_notebook_run():
    cells = json.loads((ROOT / "docs/quickstart.ipynb").read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] for cell in code), "outputs are not committed"
    program = "\n".join(["import matplotlib", "matplotlib.use('agg')", *("".join(cell["source"]) for cell in code)])
    run_blocks([("docs/quickstart.ipynb", 1, program)])


def test_the_method_has_every_loss_filter_and_rule():
    losses = [loss.__name__ for term in TERMS.values() for loss in (term.functions().values())]
    filters = [getattr(entry.make, "func", entry.make).__name__ for entry in FILTERS.values()]
    rules = [rule.__name__ for rule in PROPOSALS.values()]
    names = [*losses, *filters, *rules, *(task.loss.__name__ for task in TASKS.values())]
    assert [name for name in names if f"`{name}`" not in TEXT["docs/method.md"]] == []


def test_the_first_screen_has_one_picture_and_the_readme_stays_short():
    lines = TEXT["README.md"].splitlines()
    assert sum("![" in line for line in lines[:10]) == 1 and len(lines) <= 160


@pytest.mark.parametrize("page", TEXT)
def test_named_files_and_folders_exist(page):
    named = set(re.findall(r"`((?:kd_jax|configs|data_prep|tests|benchmarks|docs)/[\w./]*)`", TEXT[page]))
    assert named or page not in ("README.md", "docs/code.md")
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", TEXT)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXT[page]):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if heading else []
        slugs = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}
        assert not heading or heading in slugs, target


@pytest.mark.parametrize("page", TEXT)
def test_named_modules_and_commands_exist(page):
    for module in set(re.findall(r"python -m ([\w.]+)", TEXT[page])) - {"venv"}:
        assert (ROOT / (module.replace(".", "/") + ".py")).exists(), module
    for command in re.findall(r"kd-jax ([a-z][a-z-]*)", TEXT[page]):
        assert command in COMMANDS, command


@cache
def help_of(module: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    return printed.getvalue()


def calls_of(page: str, module: str) -> list[str]:
    """The arguments of every call of a module on a page, up to the end of the line."""
    names = rf"(?:python -m {re.escape(module)}|kd-jax {MODULES[module]})"
    return re.findall(rf"{names}((?:.*\\\n)*.*)", TEXT[page])


@pytest.mark.parametrize("page", TEXT)
def test_named_flags_exist(page):
    for module in MODULES:
        for command in calls_of(page, module):
            for flag in re.findall(r"--([a-z_]+)(?=[=\s\]])", command):
                known = help_of(module)
                assert f"--{flag}" in known or f"--[no]{flag}" in known, f"{module} --{flag}"


@pytest.mark.parametrize("page", TEXT)
def test_named_experiments_exist(page):
    for name in re.findall(r"--config=([\w/.]+)", TEXT[page]):
        if name not in ("FILE", "mydata.py", "films.py", "clips.py", "configs/mine.py"):
            assert schema.find_file(name), name


@pytest.mark.parametrize("page", TEXT)
def test_named_config_fields_exist(page):
    config, run = schema.get_config(), schema.make_run("rgb")
    for field in set(re.findall(r"--config\.([\w.]*\w)=", TEXT[page])) - {"FIELD"}:
        section, names = config, field.split(".")
        if names[0] == "runs":
            section, names = run, names[2:]
        for name in names:
            assert name in section, field
            section = section[name]


def test_every_name_of_a_config_is_documented():
    assert f"{len(FILTERS)} temporal filters and {len(TERMS)} distillation terms" in TEXT["README.md"]
    options = {option for term in TERMS.values() for option in term.options()}
    for page, names in {
        "docs/training.md": {*FILTERS, *TERMS, *options, *OPTIMIZERS, *SCHEDULES},
        "docs/datasets.md": set(PROTOCOLS),
    }.items():
        assert sorted(name for name in names if f"`{name}`" not in TEXT[page]) == []


def test_every_shipped_experiment_is_in_the_readme():
    table = TEXT["README.md"].partition("## Experiments")[2].partition("\n## ")[0]
    shipped = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert sorted(name for name in shipped if not re.search(rf"`{name}(:NAME)?`", table)) == []
