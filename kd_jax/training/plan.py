"""What is checked before anything is trained: the config, the data, given teachers, the workdir."""

import functools
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from kd_jax.config import teaching_runs
from kd_jax.data.source import Source, open_source
from kd_jax.files import read_json
from kd_jax.models import FILTERS
from kd_jax.training.checkpoints import build_model
from kd_jax.training.run import run_config, scoring_of
from kd_jax.training.step import BALANCES, losses_of
from kd_jax.training.teachers import describe_given, given_folders, given_run
from kd_jax.training.terms import MODULES, READS_LOGITS, TASKS, TERMS, make_modules
from kd_jax.types import Batch, Outputs


def training_order(config: ConfigDict) -> list[str]:
    """The names of the runs, every teacher before its students.

    Raises:
      ValueError: for a teacher that is not there, or runs that wait for each other.
    """
    runs, order = config.runs, []
    for name, run in runs.items():
        for teacher in run.teachers:
            if teacher not in (known := [*runs, *config.fusions, *config.teachers]):
                raise ValueError(
                    f"runs.{name}.teachers names {teacher!r}, but no run, fusion or entry of config.teachers has that "
                    f"name; there are {', '.join(known)}"
                )
    while len(order) < len(runs):
        ready = [name for name in runs if name not in order and teaching_runs(config, name) <= set(order)]
        if not ready:
            waiting = [n for n in runs if n not in order]
            raise ValueError(
                f"the runs {', '.join(waiting)} wait for each other, or for themselves, as teachers or by starts_from; "
                "break the circle"
            )
        order += ready
    return order


def check_config(config: ConfigDict) -> None:
    """Raises ValueError, naming field, value and remedy, for names that do not exist and numbers out of range."""
    if not config.runs:
        raise ValueError("config.runs is empty; add at least one run with kd_jax.config.make_run")
    training_order(config)
    for name, run in config.runs.items():
        if not name or name in (".", "..") or epath.Path(name).name != name:
            raise ValueError(f"the run name {name!r} cannot be a folder name; use letters, digits and _")
        if run.filter not in FILTERS:
            raise ValueError(f"runs.{name}.filter={run.filter!r} is unknown; known filters: {', '.join(FILTERS)}")
        for term, weight in run.weights.items():
            if not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0:
                raise ValueError(f"runs.{name}.weights.{term}={weight!r}; a weight is a finite number of at least 0")
        for field in ("hidden", "num_layers"):
            if run[field] is not None and run[field] < 1:
                raise ValueError(f"runs.{name}.{field}={run[field]}; it must be at least 1, or unset")
        if run.learning_rate is not None and not run.learning_rate > 0:
            raise ValueError(f"runs.{name}.learning_rate={run.learning_rate}; it must be above 0, or unset")
        for term, options in run.options.items():
            _check_options(f"runs.{name}.options.{term}", term, options.to_dict())
        if run.starts_from is not None:
            start = config.runs.get(run.starts_from)
            same = ("modality", "filter", "hidden", "num_layers")
            if start is None or any(start[field] != run[field] for field in same):
                raise ValueError(
                    f"runs.{name}.starts_from={run.starts_from!r}; it must be a run that reads the same modality with "
                    "the same filter, hidden and num_layers"
                )
        if not math.isfinite(run.task_weight) or run.task_weight < 0 or (not run.task_weight and not run.teachers):
            raise ValueError(
                f"runs.{name}.task_weight={run.task_weight}; it must be a finite number of at least 0, and above 0 "
                "without teachers"
            )
        if not run.task_weight and run.balance == "gradient":
            raise ValueError(f"runs.{name} has task_weight 0, so that balance='gradient' has no task to compare with")
        if run.balance not in BALANCES:
            raise ValueError(f"runs.{name}.balance={run.balance!r}; choose one of {', '.join(BALANCES)}")
        active = [term for term, weight in run.weights.items() if weight]
        if active and not run.teachers:
            raise ValueError(
                f"runs.{name} weighs {active[0]!r} but has no teachers; name a run in runs.{name}.teachers"
            )
        if twice := [teacher for teacher, count in Counter(run.teachers).items() if count > 1]:
            raise ValueError(
                f"runs.{name}.teachers names {twice[0]!r} twice; name it once, with a larger weight it counts more"
            )
        if run.teachers and not active:
            raise ValueError(f"runs.{name} has teachers but no term with a weight above 0; set runs.{name}.weights")
        if run.baseline is not None and run.baseline not in config.runs:
            raise ValueError(f"runs.{name}.baseline={run.baseline!r}, but no run has that name; name one, or unset it")
    for section in ("fusions", "choices"):
        for name, runs in config[section].items():
            if isinstance(runs, str):
                raise ValueError(f"{section}.{name}={runs!r} is a text; write a tuple of runs, ({runs!r},)")
    for name, entry in config.teachers.items():
        try:
            given_folders(entry)
        except ValueError as error:
            raise ValueError(f"teachers.{name}={entry!r}; {error}") from None
    for name, streams in config.fusions.items():
        unknown = [stream for stream in streams if stream not in config.runs]
        if unknown:
            raise ValueError(
                f"fusions.{name} names {unknown[0]!r}, but no run has that name; the runs are {', '.join(config.runs)}"
            )
        if name in config.runs or len(streams) < 2:
            raise ValueError(f"fusions.{name} needs a name that no run has and at least two runs to average")
    for name, among in config.choices.items():
        unknown = [run for run in among if run not in config.runs]
        if unknown or not among or name in (*config.runs, *config.fusions):
            raise ValueError(
                f"choices.{name} needs a name that no run has and the names of runs; "
                + (f"no run is called {unknown[0]!r}" if unknown else f"it has {', '.join(among) or 'none'}")
            )
        if not config.dataset.validation_fraction:
            raise ValueError(
                f"choices.{name} chooses by the validation videos; dataset.validation_fraction must be above 0"
            )
    for name in config.teachers:
        if name in config.runs or name in config.fusions:
            raise ValueError(f"teachers.{name} needs a name that no run and no fusion has")
    rows = [*config.runs, *config.fusions, *config.choices]
    if unknown := [name for name in config.published if name not in rows]:
        raise ValueError(f"published.{unknown[0]} is of no row; those are runs, fusions and choices: {', '.join(rows)}")
    if config.baseline and config.baseline not in config.runs:
        raise ValueError(
            f"baseline={config.baseline!r}, but no run has that name; name one of {', '.join(config.runs)}, or none"
        )
    _check_numbers(config)


def _check_options(field: str, term: str, options: dict) -> None:
    for name, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field}.{name}={value}; it must be finite")
    try:
        kind = TERMS.get(term) or MODULES[term]
        _look_at_options(kind, term, json.dumps(options, sort_keys=True))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{field}: {error}") from None


@functools.lru_cache(maxsize=256)  # runs differ in few of their options
def _look_at_options(_: tuple | type, term: str, options: str) -> None:
    """Lets the loss itself look at its options, on shapes alone; the first argument tells terms of one name apart."""
    options = json.loads(options)
    array, mask = jax.ShapeDtypeStruct((1, 4, 8), jnp.float32), jax.ShapeDtypeStruct((1, 4), jnp.bool_)
    outputs, batch = Outputs(array, array), Batch(array, array, mask, jax.ShapeDtypeStruct((1,), jnp.int32))

    def look(outputs, batch):
        if term in TERMS:
            return TERMS[term][0](outputs, outputs, batch, jax.random.key(0), **options)
        module, key = make_modules({term: options}, 4)[term], jax.random.key(0)
        return module.init({"params": key, "sample": key}, outputs, [outputs], batch)

    jax.eval_shape(look, outputs, batch)


def _check_numbers(config: ConfigDict) -> None:
    at_least = {
        "training": {"epochs": 1, "batch_size": 1, "plateau_patience": 0, "length_buckets": 1, "checkpoint_every": 1},
        "model": {"hidden": 1, "num_layers": 1},
        "evaluation": {"batch_size": 1},
        "dataset": {"max_videos": 0, "validation_seed": 0},
    }
    for section, fields in at_least.items():
        for field, lowest in fields.items():
            if config[section][field] is not None and config[section][field] < lowest:
                raise ValueError(f"{section}.{field}={config[section][field]}; it must be at least {lowest}")
    if config.seeds < 1 or config.seed < 0:
        raise ValueError(f"seeds={config.seeds}, seed={config.seed}; there must be at least 1 seed, from 0 on")
    if not 0 <= config.model.dropout < 1:
        raise ValueError(f"model.dropout={config.model.dropout}; it must be at least 0 and below 1")
    if not 0 <= config.dataset.validation_fraction < 1:
        raise ValueError(
            f"dataset.validation_fraction={config.dataset.validation_fraction}; it must be at least 0 and below 1"
        )
    if not config.training.learning_rate > 0:
        raise ValueError(f"training.learning_rate={config.training.learning_rate}; it must be above 0")
    threshold = config.evaluation.threshold
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"evaluation.threshold={threshold}; it must be from 0 to 1, or unset")
    if config.training.data not in ("auto", "resident", "streamed"):
        raise ValueError(f"training.data={config.training.data!r}; choose 'auto', 'resident' or 'streamed'")
    if config.model.dtype not in ("float32", "bfloat16"):
        raise ValueError(f"model.dtype={config.model.dtype!r}; choose 'float32' or 'bfloat16'")


def run_directory(config: ConfigDict, workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """workdir/<run> for the first seed, workdir/<run>/seed_<n> for the others: seeds may be added and left out."""
    return workdir / name if seed == config.seed else workdir / name / f"seed_{seed}"


def seeds(config: ConfigDict) -> range:
    return range(config.seed, config.seed + config.seeds)


def prepare(config: ConfigDict, workdir: epath.PathLike, resume: bool = True) -> Source:
    """Checks the config, opens the data and the workdir, a folder or gs://bucket/folder; trains nothing.

    Raises:
      ValueError, OSError: one sentence that says what to do.
    """
    check_config(config)
    scheme, _, rest = os.fspath(workdir).partition("://")
    if rest and scheme not in ("gs", "file"):
        raise ValueError(f"the workdir {workdir} must be a folder or gs://BUCKET/FOLDER; choose another with --workdir")
    workdir = epath.Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except ImportError:
        raise OSError(f"the workdir {workdir} needs `pip install -e .[gcs]`") from None
    except Exception as error:  # a bucket's library raises errors of its own
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {str(error).strip()}"
        reason = " ".join(reason.split())
        raise OSError(f"the workdir {workdir} cannot be written ({reason}); choose another with --workdir") from None
    given = {name: given_folders(entry) for name, entry in config.teachers.items()}
    modalities = {run.modality for run in config.runs.values()}
    for name, folders in given.items():
        try:
            modalities |= {found["modality"] for folder in folders if (found := given_run(folder))}
        except ValueError as error:
            raise ValueError(f"teachers.{name}: {error}") from None
    modalities = sorted(modalities)
    streamed = config.training.data == "streamed"
    source = open_source(modalities=modalities, streamed=streamed, **config.dataset.to_dict())
    try:
        scoring_of(config).check(source.info.head)
    except ValueError as error:
        raise ValueError(f"evaluation: {error}") from None
    _check_teachers(config, source, given)
    for name in config.runs:
        _check_run_folder(workdir / name, name)
    if resume:
        for name in config.runs:
            for seed in seeds(config):
                _check_unchanged(run_directory(config, workdir, name, seed), run_config(config, name, seed, source))
    return source


def _check_teachers(config: ConfigDict, source: Source, given: Mapping[str, Sequence[epath.Path]]) -> None:
    """Lets each run's filter look at its sizes, and its terms at the shapes that student and teachers will have."""
    info, modality = source.info, next(iter(config.runs.values())).modality
    videos = source.videos("train", [modality]) if given else []  # one of them says how long the videos are
    num_outputs = TASKS[info.head][1](len(info.classes))
    widths = {}
    for name, folders in given.items():
        try:
            members = {folder: describe_given(folder, videos, info) for folder in folders}
        except (OSError, ValueError) as error:
            raise ValueError(f"teachers.{name}: {error}") from None
        if len(set(members.values())) > 1:
            said = ", ".join(f"{folder}: {width} and {logits}" for folder, (width, logits) in members.items())
            raise ValueError(f"teachers.{name}: features and logits of several folders must be equally many; {said}")
        widths[name] = members[folders[0]]
    own = {name: (run.hidden or config.model.hidden, num_outputs) for name, run in config.runs.items()}

    def outputs(width, logits):
        return Outputs(*(jax.ShapeDtypeStruct((1, 4, size), jnp.float32) for size in (width, logits)))

    for name, streams in config.fusions.items():
        widths[name] = own[streams[0]]
        if any(own[s] != own[streams[0]] for s in streams) and any(name in r.teachers for r in config.runs.values()):
            raise ValueError(
                f"fusions.{name} is a teacher, but its runs differ in `hidden`: their outputs have no mean"
            )
    looked = set()
    for name, run in config.runs.items():
        weighed = [term for term, weight in run.weights.items() if weight]
        taught = {teacher: {**own, **widths}[teacher] for teacher in run.teachers}
        for teacher, (_, logits) in taught.items():
            if not logits and (reads := [term for term in weighed if term in READS_LOGITS]):
                raise ValueError(
                    f"runs.{name} weighs {reads[0]!r}, which compares logits; the teacher {teacher!r} is a folder of "
                    "features and has none; give a finished run, or weigh terms of features alone"
                )
        options = {term: run.options[term].to_dict() for term in weighed}
        model = {"num_outputs": num_outputs, **config.model.to_dict()}
        model |= {field: run[field] for field in ("hidden", "num_layers") if run[field] is not None}
        about = {"filter": run.filter, "model": model, "reads": info.modalities[run.modality]}
        if (seen := json.dumps([about, list(taught.values()), options])) in looked:
            continue
        looked.add(seen)
        labels, mask = jnp.zeros((1, 4, len(info.classes))), jnp.ones((1, 4), bool)
        batch = Batch(jnp.zeros((1, 4, about["reads"])), labels, mask, jnp.zeros(1, jnp.int32))

        def look(teachers, about=about, options=options, batch=batch):
            key = jax.random.key(0)
            student, _ = build_model(about).init_with_output(key, batch.features, batch.mask)
            modules, rngs = make_modules(options, 4), {"params": key, "sample": key}
            owned = {term: module.init(rngs, student, teachers, batch) for term, module in modules.items()}
            given = {"head": info.head, "options": options, "modules": modules, "owned": owned}
            return losses_of(student, teachers, batch, key, options, **given)

        try:
            jax.eval_shape(look, [outputs(*width) for width in taught.values()])
        except ValueError as error:
            raise ValueError(f"runs.{name}: {error}") from None


def _check_run_folder(directory: epath.Path, name: str) -> None:
    """Refuses to train into, or with --noresume to delete, a folder that is not this run's own."""
    if not directory.exists():
        return
    if directory.is_dir() and all(name.startswith(".") for _, _, files in directory.walk() for name in files):
        return  # killed before its config.json was written
    folders = [directory, *(f for f in directory.iterdir() if f.name.startswith("seed_"))] if directory.is_dir() else []
    configs = [read_json(folder / "config.json") for folder in folders]
    if not any(isinstance(found, dict) and found.get("run") == name for found in configs):
        raise ValueError(f"{directory} is not a run of kd_jax, so it is left alone; choose another --workdir")


def _check_unchanged(directory: epath.Path, wanted: dict) -> None:
    found = read_json(directory / "config.json")
    if found is None:
        return
    found, wanted = ({k: v for k, v in config.items() if k != "extraction"} for config in (found, wanted))  # no setting
    if found == wanted:
        return
    changes = [
        f"{key}: {json.dumps(old)} there, {json.dumps(new)} now" for key, old, new in _differences(found, wanted)
    ]
    raise ValueError(
        f"{directory} was trained with other settings ({'; '.join(changes[:3])}): "
        "choose another --workdir, or train its runs anew with --noresume"
    )


def _differences(old, new, prefix=""):
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new
