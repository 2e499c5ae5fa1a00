"""Loading of a finished run, all its seeds, a fusion or an exported folder, as one function.

run = load("workdir/demo/augmented_rgb")            # also "workdir/demo/two_stream", a fusion
probabilities = run(features)                       # see kd_jax.inference.trained_detector
"""

import re
from collections.abc import Mapping
from typing import Literal

from etils import epath

from kd_jax.files import checked_path
from kd_jax.inference import exports
from kd_jax.inference.trained_detector import TrainedDetector
from kd_jax.training.checkpoints import load_run
from kd_jax.training.results_file import read_table

Seeds = Literal["one", "all"]
_SEED = re.compile(r"seed_\d+")  # folder of a further seed of a run
_SHARED = ("classes", "head", "seconds_per_snippet", "first_snippet", "label_at")  # equal in all members of an ensemble


def load(path: epath.PathLike, *, seeds: Seeds = "one") -> TrainedDetector:
    """Loads a finished run, all its seeds, a fusion or an exported folder, from a disk or gs://….

    Args:
      path: WORKDIR/RUN; WORKDIR/RUN/seed_N, another seed of it; or WORKDIR/FUSION, where FUSION is a fusion of the
        experiment in WORKDIR, whose runs are loaded. A fusion averages the logits of its runs, as evaluation does.
        Also a folder that `kd-jax export` wrote, or a file in it; the parameters are read from its safetensors.
      seeds: 'all' also averages over every folder RUN/seed_N.

    Raises FileNotFoundError if there is no such run or fusion, or one of its runs has not finished, and ValueError if a
    file cannot be read or the runs do not belong together.
    """
    directory = epath.Path(checked_path(path))
    if seeds not in ("one", "all"):
        raise ValueError(f"seeds={seeds!r} is unknown; choose 'one' or 'all'")
    if (exported := exports.find(directory)) is not None:
        if seeds == "all":
            raise ValueError(f"{exported} is an exported folder, which has the seeds it was made of; leave out seeds")
        return TrainedDetector(str(exported), exports.read(exported, directory))
    if seeds == "all" and _SEED.fullmatch(directory.name):
        raise ValueError(f"{directory} is one seed; give {directory.parent} for all seeds")
    runs = [directory] if (directory / "config.json").exists() else _members(directory)
    seeded = [[run, *_further_seeds(run)] if seeds == "all" else [run] for run in runs]
    members = {folder: load_run(folder) for folders in seeded for folder in folders}
    if len({len(folders) for folders in seeded}) > 1:
        counts = ", ".join(f"{run.name} {len(folders)}" for run, folders in zip(runs, seeded, strict=True))
        raise ValueError(f"the runs of {directory} have different numbers of seeds: {counts}; complete the experiment")
    _check_alike({folder: member.config for folder, member in members.items()})
    return TrainedDetector(str(directory), tuple(members.values()))


def _check_alike(configs: Mapping[epath.Path, Mapping]) -> None:
    """Raises ValueError unless the runs of these folders can be averaged."""
    first, of_first = next(iter(configs.items()))
    readers: dict[str, epath.Path] = {}
    for folder, config in configs.items():
        reader = readers.setdefault(config["modality"], folder)
        pairs = [(first, of_first, field) for field in _SHARED] + [(reader, configs[reader], "input_size")]
        for other, of_other, field in pairs:
            if config.get(field) != of_other.get(field):
                raise ValueError(f"{other} and {folder} cannot be averaged: they differ in {field}; train both again")


def split_path(path: epath.Path) -> tuple[epath.Path, str, str]:
    """Splits WORKDIR/NAME or WORKDIR/NAME/seed_N into WORKDIR, NAME and 'seed_N' or ''."""
    if _SEED.fullmatch(path.name):
        return path.parent.parent, path.parent.name, path.name
    return path.parent, path.name, ""


def _further_seeds(run: epath.Path) -> list[epath.Path]:
    """The folders of the further seeds of a run, in the order of their numbers."""
    found = [folder for folder in run.iterdir() if _SEED.fullmatch(folder.name)]
    return sorted(found, key=lambda folder: int(folder.name.removeprefix("seed_")))


def _members(path: epath.Path) -> list[epath.Path]:
    """The folders of the runs of a fusion or a choice, which has no folder of its own.

    `path` is WORKDIR/NAME, or WORKDIR/NAME/seed_N. Raises FileNotFoundError if WORKDIR has none of this name.
    """
    workdir, name, seed = split_path(path)
    if inside := _read_rows(path):
        shown = ", ".join(str(path / of_row) for of_row in inside)
        raise FileNotFoundError(f"{path} is an experiment, not a run; name one of {shown}")
    rows = _read_rows(workdir)
    if name not in rows:
        known = (
            f"{workdir} has {', '.join(rows)}" if rows else "give a run of a workdir, e.g. workdir/demo/augmented_rgb"
        )
        raise FileNotFoundError(f"{path} is not a run (no config.json there); {known}")
    names, first = rows[name]
    return [workdir / member / (seed if seed != f"seed_{first}" else "") for member in names]


def _read_rows(workdir: epath.Path) -> dict[str, tuple[list[str], int]]:
    """{run, fusion or choice: (its runs, the seed in their own folders)} of an experiment; {} if it has not finished.

    Raises DamagedFileError if its results.json cannot be read.
    """
    content = read_table(workdir, "run its experiment again") if workdir.is_dir() else None
    if content is None:
        return {}
    names = {row["run"]: row.get("members") or [row.get("chosen") or row["run"]] for row in content["rows"]}
    return {name: (members, content["seeds"][0]) for name, members in names.items()}
