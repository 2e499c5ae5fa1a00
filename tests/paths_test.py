"""Options that are paths, the folder of compiled programs, and the number of processors."""

import importlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import pytest
from jax._src import compilation_cache

import kd_jax
from data_prep import build, convert_weights, extract, stickfigures
from kd_jax import __main__, analyse, main, predict, report, runtime
from kd_jax.data.source import open_source
from kd_jax.training import plan

COMMANDS = [module for module, _ in __main__.COMMANDS.values()] + ["data_prep.stickfigures"]
NO_PATHS = {"coordinator", "encoder", "channels_first", "runner", "beam_options", "label_from", "license", "modality"}


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_without_a_type_is_no_path(command):
    """Options that are paths have a type of kd_jax.command_line; other texts are listed here."""
    for action in importlib.import_module(command).parser()._actions:
        if action.nargs != 0 and action.choices is None and action.type in (None, str, Path):
            assert action.dest in NO_PATHS, f"--{action.dest}: if it is a path, see kd_jax.command_line for its type"


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
        assert "is not a path on a disk" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        build.main(["--dataset=custom", "--features=rgb=gs://bucket/rgb"])
    assert "--features: gs://bucket/rgb is not a path on a disk" in str(stopped.value)
    build.main(["--dataset=synthetic", "--output=~/mine"])
    assert (tmp_path / "home" / "mine" / "kd_jax.json").exists() and [p.name for p in tmp_path.iterdir()] == ["home"]


def test_buckets_are_those_of_google(tmp_path, monkeypatch):
    """An address of another kind ends in one sentence, and none becomes a folder such as ./gs:."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", {}.get)  # as without gcsfs
    wrong = ["s3://bucket/x", "file:///x", "hdfs://x/y", "gs:/bucket/x", "gs:///x"]
    for command, options in {
        main: ["--config=demo", "--workdir="],
        predict: ["--features=x", "--output=x", "--run="],
        report: ["--output="],
        analyse: [""],
    }.items():
        for address in wrong:
            with pytest.raises(SystemExit) as stopped:
                command.main([*options[:-1], options[-1] + address])
            assert f"{address} must be a path on a disk or gs://BUCKET/PATH" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        predict.main(["--features=x", "--output=x", "--run=gs://bucket/run"])
    assert "gs://bucket/run is in a bucket, which needs `pip install 'kd_jax[gcs]'`" in str(stopped.value)
    with pytest.raises(SystemExit) as stopped:
        stickfigures.main(["--output=gs:/bucket/x"])
    assert "--output: gs:/bucket/x is not a path on a disk" in str(stopped.value)
    with pytest.raises(ValueError, match=r"^workdir: gs:/b/x must be a path on a disk or gs://BUCKET/PATH"):
        plan.open_workdir(Path("gs://b/x"))  # pathlib drops a slash
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["gs://b/records", "file:///records", "~nobody-here/records"])
def test_the_synthetic_set_does_not_replace_records_that_cannot_be_there(folder):
    with pytest.raises(ValueError, match="records are read from a disk|the home folder ~nobody-here is not known"):
        open_source("tsu", folder, ["rgb"], validation_fraction=0, validation_seed=0, synthetic_fallback=True)


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
    groups.write_text("4:cpuacct,cpu:/batch\n")  # a mount of both, without a link to it
    (tmp_path / "cpu").rename(tmp_path / "gone")
    (tmp_path / "cpu,cpuacct" / "batch").mkdir(parents=True)
    (tmp_path / "cpu,cpuacct" / "batch" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu,cpuacct" / "batch" / "cpu.cfs_period_us").write_text("100000\n")
    assert runtime.num_processors(groups, tmp_path) == 2


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


def test_without_any_folder_that_can_be_written_programs_are_not_kept(monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError("no usable folder")))
    assert runtime._cache_folder() is None
    assert "compiled programs are not kept, because /proc/cache cannot be written" in caplog.text


def test_a_cache_that_the_user_names_may_be_in_the_home_folder(tmp_path):
    lines = "import jax", "from kd_jax import runtime", "runtime.start()"
    command = [sys.executable, "-c", "\n".join([*lines, "print(jax.config.values['jax_compilation_cache_dir'])"])]
    environment = os.environ | {"HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": "~/programs"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == str(tmp_path / "programs")


@pytest.mark.parametrize(("mode", "said"), [(0o700, False), (0o755, False), (0o775, True), (0o777, True)])
def test_an_open_folder_of_programs_is_closed(tmp_path, monkeypatch, caplog, mode, said):
    """Who can write a compiled program can run code as the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "kd_jax"
    folder.mkdir()
    folder.chmod(mode)
    assert runtime._cache_folder() == folder and folder.stat().st_mode & 0o777 == 0o700
    assert (f"other users could write {folder} (mode {mode:o})" in caplog.text) == said
    assert len(caplog.records) == said


def test_a_link_of_another_user_is_no_private_folder(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert runtime._is_private(tmp_path / "link")
    with mock.patch.object(Path, "lstat", return_value=mock.Mock(st_uid=os.getuid() + 1)):
        assert not runtime._is_private(tmp_path / "link")


def test_a_named_folder_of_programs(tmp_path, caplog):
    assert runtime._named_folder("gs://bucket/programs") == "gs://bucket/programs"
    folder = tmp_path / "new" / "programs"
    assert runtime._named_folder(str(folder)) == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o775)  # shared by a group
    assert runtime._named_folder(str(folder)) == str(folder) and folder.stat().st_mode & 0o777 == 0o775
    assert not caplog.records
    folder.chmod(0o777)
    assert runtime._named_folder(str(folder)) == str(folder)
    assert f"every user can write JAX_COMPILATION_CACHE_DIR={folder}" in caplog.records[0].message
    (tmp_path / "file").touch()
    assert runtime._named_folder(f"{tmp_path}/file/programs") is None
    assert f"JAX_COMPILATION_CACHE_DIR={tmp_path}/file/programs cannot be made (Not a dir" in caplog.records[1].message


def test_a_start_survives_damaged_programs(tmp_path):
    """The first start writes the programs, the second one finds them damaged, and the third one finds them replaced."""
    lines = ["import jax, jax.numpy as jnp", "from kd_jax import runtime", "runtime.start()"]
    lines += ["print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.arange(12.0)))"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}

    def start():
        command = [sys.executable, "-c", "\n".join(lines)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    first = start()
    paths = sorted(tmp_path.iterdir())
    assert paths and all(path.name.endswith("-sha256-cache") for path in paths)
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    second, third = start(), start()
    assert first.stdout == second.stdout == third.stdout
    outputs = [run.stderr.splitlines() for run in (first, second, third)]
    usual = "cpu_aot_loader", "CPU cores"  # jax 0.10.0 prints the first; versions and devices
    said = [[line for line in lines if not any(word in line for word in usual)] for lines in outputs]
    assert said[0] == said[2] == [] and len(said[1]) == 1
    assert "is damaged; it and others like it are deleted" in said[1][0]
    assert sorted(tmp_path.iterdir()) == paths


def test_a_jax_whose_programs_cannot_be_checked_keeps_none(monkeypatch, caplog):
    monkeypatch.delattr(compilation_cache, "LRUCache")
    monkeypatch.delattr(kd_jax, "checked_cache", raising=False)
    monkeypatch.delitem(sys.modules, "kd_jax.checked_cache", raising=False)
    with mock.patch.object(runtime, "_set_option") as set_option:
        runtime._open_cache()
    assert set_option.mock_calls == [mock.call("jax_enable_compilation_cache", False)]
    assert f"JAX {jax.__version__} is too new to check them; every start compiles anew" in caplog.text


@pytest.mark.parametrize("named", [False, True])
def test_files_of_xla_that_have_no_checksum_are_used_only_if_the_user_says_so(monkeypatch, named):
    if named:
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES", "all")
    with mock.patch.object(runtime, "_set_option") as set_option:
        runtime._open_cache()
    assert (mock.call("jax_persistent_cache_enable_xla_caches", "none") in set_option.mock_calls) != named
