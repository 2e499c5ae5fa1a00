"""The layers of the package, checked on its import statements, and the libraries that an import may load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A file imports from its own row or an earlier one. A folder names all of its files that are not listed themselves.
ROWS = [
    [
        "types",
        "masking",
        "segments",
        "files",
        "lock",
        "sharding",
        "checked_cache",
        "runtime",
        "command_line",
        "interrupts",
    ],
    ["losses", "models", "data.base", "evaluation.metrics"],
    ["training.terms", "data", "video"],
    [
        *("config", "training.state", "training.step", "training.fields"),
        *("training.run_config", "training.results_file", "training.checkpoints"),
    ],
    ["inference", "evaluation"],
    ["training"],
    ["training.experiment", "analysis"],
    ["main", "advise", "predict", "export", "evaluate", "analyse", "report", "verify", "__main__"],
]
FORBIDDEN = {  # {part of the package: what it must not import}
    "losses": ["kd_jax.models"],
    "models": ["kd_jax.losses"],
    "command_line": ["jax", "flax"],
    "files": ["jax", "flax"],
    "interrupts": ["jax", "flax"],
    "lock": ["jax", "flax"],
    "segments": ["jax", "flax"],
    "data.annotations": ["jax", "flax"],
    "data.base": ["jax", "flax"],
    "data.records": ["jax", "flax"],
    "data.shards": ["jax", "flax"],
    "data.feature_files": ["jax", "flax"],
    "data.feature_folders": ["jax", "flax"],
    "data.feature_tables": ["jax", "flax"],
    "data.precision": ["jax", "flax"],
    "data.checks": ["jax", "flax"],
    "data.synthetic": ["jax", "flax"],
    "evaluation": ["jax", "flax"],
    "evaluate": ["jax", "flax"],
    "video.videos": ["jax", "flax"],
    "video.skeletons": ["jax", "flax"],
    "video.folders": ["jax", "flax"],
    "video.timeline": ["jax", "flax"],
}


def row_of(module: str) -> int:
    matches = [(len(p), i) for i, row in enumerate(ROWS) for p in row if module == p or module.startswith(p + ".")]
    assert matches, f"{module} is not in ROWS; add it to its layer"
    return max(matches)[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:  # `from package import module` depends on the module
                path = ROOT / f"{node.module}.{alias.name}".replace(".", "/")
                is_module = path.with_suffix(".py").exists() or path.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


def modules() -> dict[str, Path]:
    paths = {p: ".".join(p.relative_to(ROOT / "kd_jax").with_suffix("").parts) for p in ROOT.glob("kd_jax/**/*.py")}
    return {name.removesuffix(".__init__"): path for path, name in paths.items() if name != "__init__"}


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_only_from_its_own_layer_or_below(module):
    known = modules()
    for name in imports(known[module]):
        target = name.removeprefix("kd_jax.")
        if name.startswith("kd_jax.") and target in known:
            assert row_of(target) <= row_of(module), f"{module} reaches up to {target}"


@pytest.mark.parametrize("part", FORBIDDEN)
def test_walls(part):
    inside = {m: p for m, p in modules().items() if m == part or m.startswith(part + ".")}
    assert inside
    for module, path in inside.items():
        for name in imports(path):
            for forbidden in FORBIDDEN[part]:
                assert name != forbidden and not name.startswith(forbidden + "."), f"{module} imports {name}"


def test_no_import_cycle():
    known = modules()
    edges = {
        module: {n.removeprefix("kd_jax.") for n in imports(path)} & known.keys() - {module}
        for module, path in known.items()
    }
    while edges:
        free = [module for module, targets in edges.items() if not targets & edges.keys()]
        assert free, f"a cycle among {sorted(edges)}"
        for module in free:
            del edges[module]


def test_nothing_below_training_runs_sees_a_config():
    for module, path in modules().items():
        if row_of(module) < row_of("training.run") and module != "config":
            assert not {n for n in imports(path) if n.startswith(("ml_collections", "kd_jax.config"))}, module


@pytest.mark.parametrize(
    "modules, forbidden",
    [
        (
            ("kd_jax.segments", "kd_jax.evaluation.proposals", "kd_jax.evaluation.formats", "kd_jax.evaluate"),
            ("jax", "flax", "orbax"),
        ),
        (("kd_jax", "kd_jax.losses", "kd_jax.main", "kd_jax.predict", "data_prep.build"), ("tensorflow", "torch")),
    ],
)
def test_libraries_that_an_import_must_not_load(modules, forbidden):
    """Import the modules one after another in a new process."""
    lines = [f"import {m}; print('{m}', sorted({set(forbidden)} & sys.modules.keys()))" for m in modules]
    command = [sys.executable, "-c", "\n".join(["import sys", *lines])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"{module} []" for module in modules]
