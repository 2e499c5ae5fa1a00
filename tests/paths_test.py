"""Options that are paths, the folder of compiled programs, and the number of processors."""

import os
import re
import subprocess
import sys

import pytest

from data_prep import build, convert_annotations, convert_weights, extract, stickfigures
from kd_jax import analyse, evaluate, main, predict, report, runtime

COMMANDS = (
    analyse,
    evaluate,
    main,
    predict,
    report,
    build,
    convert_annotations,
    convert_weights,
    extract,
    stickfigures,
)
NO_PATHS = {"channels_first", "label_from", "encoder"}  # their help names files or folders


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_every_option_that_is_a_path_has_the_type_of_one(command):
    """A word in the help, or the name of the option, shows that it is one."""
    for action in command.parser()._actions:
        named = re.search(r"\b([Ff]older|[Ff]iles?|FILE|FOLDER|DIR|gs://)\b", f"{action.help} {action.metavar}")
        if named and action.nargs != 0 and action.choices is None and action.type is None:
            assert action.dest in NO_PATHS, f"{action.dest} needs a type, see kd_jax.command_line"


def test_addresses_are_refused_where_a_disk_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for command, options in {
        build: ["--output=gs://bucket/mine"],
        extract: ["--output=s3://bucket/rgb"],
        convert_weights: ["--output=gs://bucket/x.npz"],
        stickfigures: ["--output=gs://bucket/x"],
    }.items():
        with pytest.raises(SystemExit) as stopped:
            command.main(options)
        assert "is not on a disk" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        build.main(["--dataset=custom", "--features=rgb=gs://bucket/rgb"])
    assert "--features: gs://bucket/rgb is not on a disk" in str(stopped.value)
    build.main(["--dataset=synthetic", "--output=~/mine"])
    assert (tmp_path / "home" / "mine" / "kd_jax.json").exists() and [p.name for p in tmp_path.iterdir()] == ["home"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_processors_are_those_that_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    groups = tmp_path / "cgroup"
    assert runtime.num_processors(groups, tmp_path) == 12
    groups.write_text("0::/job/step\n")
    (tmp_path / "job" / "step").mkdir(parents=True)
    (tmp_path / "job" / "cpu.max").write_text("350000 100000\n")
    assert runtime.num_processors(groups, tmp_path) == 3
    (tmp_path / "job" / "step" / "cpu.max").write_text("max 100000\n")
    assert runtime.num_processors(groups, tmp_path) == 3
    (tmp_path / "job" / "cpu.max").write_text("50000 100000\n")
    assert runtime.num_processors(groups, tmp_path) == 1
    groups.write_text("5:memory:/x\n4:cpu,cpuacct:/slurm\n")
    (tmp_path / "cpu" / "slurm").mkdir(parents=True)
    (tmp_path / "cpu" / "slurm" / "cpu.cfs_quota_us").write_text("400000\n")
    (tmp_path / "cpu" / "slurm" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert runtime.num_processors(groups, tmp_path) == 4


@pytest.mark.parametrize("home", [None, "/proc"], ids=["none", "read-only"])
def test_without_a_home_folder_programs_are_kept_elsewhere(tmp_path, home):
    """Without HOME, a user who has no entry in passwd has no home folder."""
    lines = ["import jax, pwd", "from kd_jax import runtime", "runtime.start()"]
    lines += ["print(jax.config.values['jax_compilation_cache_dir'])"]
    if home is None:
        lines.insert(1, "pwd.getpwuid = {}.__getitem__")
    names = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"TMPDIR": str(tmp_path)} | ({"HOME": home} if home else {})
    command = [sys.executable, "-c", "\n".join(lines)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = tmp_path / f"kd_jax_{os.getuid()}"
    assert result.stdout.strip() == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    assert f"compiled programs are kept in {folder}, because" in result.stderr
