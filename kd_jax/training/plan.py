"""The plan of an experiment: its order, its folders, and everything that is checked before anything is trained."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import sysconfig
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from etils import epath
from ml_collections import ConfigDict

from kd_jax.config import check_complete, get_config, teaching_runs
from kd_jax.data.source import Source, open_source
from kd_jax.evaluation.protocols import check_frames
from kd_jax.evaluation.scoring import try_own_protocols
from kd_jax.files import checked_path, read_json
from kd_jax.models import FILTERS
from kd_jax.models.cpu_kernels import one_platform
from kd_jax.training import memory
from kd_jax.training.run_config import build_model, read_run_config
from kd_jax.training.scores import scoring_of
from kd_jax.training.state import OPTIMIZERS, SCHEDULES, Optimization
from kd_jax.training.step import BALANCES, Program, loss_parts
from kd_jax.training.teachers import describe_given, fingerprint, given_folders, given_run
from kd_jax.training.terms import TASKS, TERMS, choose_term
from kd_jax.types import Batch, Outputs


def prepare(config: ConfigDict, workdir: epath.PathLike, resume: bool = True) -> Source:
    """Checks the config, opens the data and the workdir, a folder or gs://bucket/folder; trains nothing.

    Raises ValueError or OSError, one sentence that names field, value and remedy.
    """
    check_config(config)
    workdir = open_workdir(workdir)
    given = {name: given_folders(entry) for name, entry in config.teachers.items()}
    modalities = {run.modality for run in config.runs.values()}
    for name, folders in given.items():
        with _naming(f"teachers.{name}"):
            modalities |= {found["modality"] for folder in folders if (found := given_run(folder))}
    streamed = config.training.data == "streamed"
    source = open_source(modalities=sorted(modalities), streamed=streamed, **config.dataset.to_dict())
    with _naming("evaluation"):
        scoring = scoring_of(config, source.info.head)
        scoring.check(source.info.head)
        if "frame_map_upsampled" in scoring.protocols:
            tested = source.videos("test", sorted(modalities)[:1]) if source.scored_videos("test") else []
            num_frames = {video.id: source.info.num_frames(video) for video in tested}
            check_frames(num_frames, source.num_snippets)
        if tested := source.scored_videos("test"):
            with _naming_user_code():
                try_own_protocols(tested, source.num_snippets, source.info, scoring)
    with _naming("training"):
        optimization = make_optimization(config.training, len(source.videos("train", [])))
        steps = optimization.epochs * optimization.steps_per_epoch
        _require(steps < 2**31, f"epochs={optimization.epochs} are {steps} steps; there must be below 2147483648")
    widths = _teacher_widths(config, source, given)
    for name in config.runs:
        with _naming(f"runs.{name}"):
            _check_shapes(config, name, source, widths)
        _check_run_folder(workdir / name, name)
    if resume:
        for name in config.runs:
            for seed in seeds(config):
                _check_unchanged(run_directory(config, workdir, name, seed), make_manifest(config, name, seed, source))
    return source


def open_workdir(workdir: epath.PathLike) -> epath.Path:
    """Makes the workdir, a folder or gs://bucket/folder, and writes a file into it.

    Raises ValueError for another address, and OSError if it cannot be written.
    """
    with _naming("workdir"):
        workdir = epath.Path(checked_path(workdir))
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / f".writable.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except Exception as error:  # a bucket's library has its own errors
        reason = " ".join((getattr(error, "strerror", None) or f"{type(error).__name__}: {error}").split())
        raise OSError(f"the workdir {workdir} cannot be written ({reason}); choose another with --workdir") from None
    return workdir


def seeds(config: ConfigDict) -> range:
    """The seeds of every run."""
    return range(config.seed, config.seed + config.seeds)


def run_directory(config: ConfigDict, workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """workdir/<run> for the first seed and workdir/<run>/seed_<n> for the others, so that seeds can be added later."""
    return workdir / name if seed == config.seed else workdir / name / f"seed_{seed}"


def training_order(config: ConfigDict) -> list[str]:
    """The names of the runs, teachers first; ValueError for an unknown teacher, or runs that wait for each other."""
    runs, order = config.runs, list[str]()
    known = [*runs, *config.fusions, *config.teachers]
    for name, run in runs.items():
        for teacher in run.teachers:
            lacking = f"runs.{name}.teachers names {teacher!r}, but no run, fusion or entry of config.teachers has that"
            _require(teacher in known, f"{lacking} name; there are {', '.join(known)}")
    while len(order) < len(runs):
        ready = [name for name in runs if name not in order and teaching_runs(config, name) <= set(order)]
        waiting = f"the runs {', '.join(name for name in runs if name not in order)} wait for each other"
        _require(ready, f"{waiting}, or for themselves, as teachers or by starts_from; remove one of these links")
        order += ready
    return order


def make_manifest(config: ConfigDict, name: str, seed: int, source: Source) -> dict:
    """Everything that decides the result of a run and that rebuilds its model, as plain JSON.

    What changes no result is left out: where records and batches are, how often a checkpoint is written.
    """
    info, training, dataset = source.info, config.training.to_dict(), config.dataset.to_dict()
    for field in ("checkpoint_every", "data", "gradient_norms"):
        del training[field]
    del dataset["data_dir"], dataset["synthetic_fallback"]
    run = _describe_run(config, name)
    model = {"num_outputs": TASKS[info.head].num_outputs(len(info.classes)), **config.model.to_dict()}
    model |= {field: run.pop(field) for field in ("hidden", "num_layers") if field in run}
    if config.runs[name].learning_rate is not None:
        training["learning_rate"] = config.runs[name].learning_rate
    manifest = {
        "run": name,
        "seed": seed,
        **run,
        "model": model,
        "training": training,
        "dataset": {**dataset, "fingerprint": source.fingerprint},
        "input_size": info.modalities[run["modality"]],
        "head": info.head,
        "classes": info.classes,
        "seconds_per_snippet": info.seconds_per_snippet,
        "first_snippet": info.first_snippet,
        "label_at": info.label_at,
        "extraction": info.extraction.get(run["modality"]),
        "features_dtype": info.dtype(run["modality"]).name,
    }
    return json.loads(json.dumps(manifest))


def _describe_run(config: ConfigDict, name: str) -> dict:
    """What the config says about a run, its teachers and the run that it starts from."""
    run = config.runs[name]
    weights = {term: weight for term, weight in run.weights.items() if weight}
    options = {term: _set_options(run, term) for term in weights}
    return {
        **{field: run[field] for field in ("modality", "filter", "hidden", "num_layers") if run[field] is not None},
        "teachers": {teacher: _describe_teacher(config, teacher) for teacher in run.teachers},
        "weights": weights,
        "balance": run.balance,
        **({"task_weight": run.task_weight} if run.task_weight != 1 else {}),
        **({"starts_from": _describe_run(config, run.starts_from)} if run.starts_from else {}),
        "options": {term: chosen for term, chosen in options.items() if chosen},
    }


def _set_options(run: ConfigDict, term: str) -> dict:
    return {option: value for option, value in run.options[term].items() if value is not None}


def _describe_teacher(config: ConfigDict, teacher: str) -> dict:
    if teacher in config.runs:
        return _describe_run(config, teacher)
    if teacher in config.fusions:
        return {member: _describe_run(config, member) for member in config.fusions[teacher]}
    folders = given_folders(config.teachers[teacher])
    members = [{"folder": os.fspath(folder), "fingerprint": fingerprint(folder)} for folder in folders]
    return members[0] if len(members) == 1 else {"members": members}


def make_program(training: ConfigDict, manifests: Sequence[Mapping], num_videos: int, num_snippets: int) -> Program:
    """The program of runs that share one. It has the terms of all of them; the numbers count their training data."""
    first = manifests[0]
    options = {term: chosen for manifest in manifests for term, chosen in manifest["options"].items()}
    terms = dict.fromkeys(term for manifest in manifests for term in manifest["weights"])
    chosen = tuple(choose_term(term, options.get(term), num_snippets) for term in terms)
    optimization, measured = make_optimization(training, num_videos), training.gradient_norms
    return Program(build_model(first), first["head"], chosen, optimization, first["balance"], measured)


def make_optimization(training: ConfigDict, num_videos: int) -> Optimization:
    """The optimisation that the fields of `config.training` describe."""
    fields = {field.name for field in dataclasses.fields(Optimization)} - {"steps_per_epoch"}
    steps_per_epoch = -(-num_videos // training.batch_size)
    return Optimization(**{field: training[field] for field in fields}, steps_per_epoch=steps_per_epoch)


def _require(condition: object, message: str) -> None:
    if not condition:
        raise ValueError(message)


@contextlib.contextmanager
def _naming(field: str):
    """Puts the field of the config before the message of an error."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: {error}") from None


@contextlib.contextmanager
def _naming_user_code():
    """Names the function and the line, outside of libraries, in which an error of the user's code was raised."""
    try:
        yield
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the caller
        libraries = str(Path(__file__).parents[1]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), "<"
        own = [frame for frame in frames if not frame.filename.startswith(libraries)]
        if not own:
            raise
        reason = " ".join(str(error).split("\n\n")[0].split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        frame = own[-1]
        place = f"{frame.filename}, line {frame.lineno}, in {frame.name} (`{frame.line}`)"
        raise ValueError(f"{place}: {kind}{reason}") from error


_ABOVE_0 = lambda value: 0 < value < math.inf, "finite and above 0"
_FROM_0 = lambda value: 0 <= value < math.inf, "finite and at least 0"
_SMALL, _LARGE = 1e-37, 1e37  # float32 holds these, and a factor of 10 beyond
_FLOAT32 = lambda value: not value or _SMALL <= abs(value) <= _LARGE, f"0, or from {_SMALL:g} to {_LARGE:g}"
_INT32 = lambda value: value < 2**31, "below 2147483648"
_WIDTH = lambda value: value <= 2**20, "at most 1048576"
_DEPTH = lambda value: value <= 1000, "at most 1000"
# What a number must be, where it is set: (condition, description, fields). Then the values that a text may have.
_NUMBERS = (
    (*_ABOVE_0, "training.learning_rate training.standardize_limit"),
    (*_FROM_0, "training.weight_decay training.clip_norm"),
    (
        lambda value: 0 <= value < 1,
        "at least 0 and below 1",
        "dataset.validation_fraction model.dropout training.ema_decay",
    ),
    (lambda value: 0 <= value <= 1, "from 0 to 1", "evaluation.threshold"),
    (
        lambda value: value >= 0,
        "at least 0",
        "seed dataset.max_videos dataset.validation_seed training.warmup_epochs training.plateau_patience",
    ),
    (
        lambda value: value >= 1,
        "at least 1",
        "seeds model.hidden model.num_layers training.epochs training.batch_size training.length_buckets "
        "training.checkpoint_every evaluation.batch_size",
    ),
    (*_FLOAT32, "training.learning_rate training.weight_decay training.clip_norm training.standardize_limit"),
    (
        *_INT32,
        "dataset.max_videos training.warmup_epochs training.plateau_patience training.epochs training.batch_size "
        "training.length_buckets training.checkpoint_every evaluation.batch_size",
    ),
    (*_WIDTH, "model.hidden"),
    (*_DEPTH, "model.num_layers"),
    (lambda value: value <= 10_000, "at most 10000", "seeds"),
    (lambda value: value < 2**32 - 10_000, "below 4294957296", "seed"),  # JAX ignores higher bits
)
_TEXTS = {
    "model.dtype": ("float32", "bfloat16"),
    "training.optimizer": OPTIMIZERS,
    "training.schedule": SCHEDULES,
    "training.standardize_by": ("modality", "channel"),
    "training.data": ("auto", "resident", "streamed"),
}
_RUN_NUMBERS = (
    (*_ABOVE_0, "learning_rate"),
    (*_FROM_0, "task_weight"),
    (lambda value: value >= 1, "at least 1", "hidden num_layers"),
    (*_FLOAT32, "learning_rate task_weight"),
    (*_WIDTH, "hidden"),
    (*_DEPTH, "num_layers"),
)
_RUN_TEXTS = {"filter": FILTERS, "balance": BALANCES}


def _check_fields(prefix: str, section: ConfigDict, numbers: Sequence[tuple], texts: Mapping) -> None:
    rules = [(field, holds, must_be) for holds, must_be, fields in numbers for field in fields.split()]
    rules += [(field, known.__contains__, f"one of {', '.join(known)}") for field, known in texts.items()]
    for field, holds, must_be in rules:
        value = functools.reduce(lambda part, name: part[name], field.split("."), section)
        _require(value is None or holds(value), f"{prefix}{field}={value!r}; it must be {must_be}")


def _check_whole_numbers(prefix: str, section: ConfigDict) -> None:
    """Raises ValueError for a whole number of many digits, which a message cannot show."""
    for name, value in section.items():
        if isinstance(value, ConfigDict):
            _check_whole_numbers(f"{prefix}{name}.", value)
        elif isinstance(value, int) and value.bit_length() > 63:
            digits = int(value.bit_length() * math.log10(2))
            raise ValueError(f"{prefix}{name} is a whole number of about {digits} digits; it must be below {2**63}")


def check_config(config: ConfigDict) -> None:
    """Raises ValueError, naming field, value and remedy, for unknown names and numbers out of range."""
    check_complete(config)
    _check_whole_numbers("", config)
    _require(config.runs, "config.runs is empty; add at least one run with kd_jax.config.make_run")
    _check_fields("", config, _NUMBERS, _TEXTS)
    idle = "dataset.validation_seed has no effect, because dataset.validation_fraction is 0; leave it out"
    _require(config.dataset.validation_fraction or not config.dataset.validation_seed, idle)
    idle = "dataset.validation_groups has no effect, because dataset.validation_fraction is 0; leave it out"
    _require(config.dataset.validation_fraction or not config.dataset.validation_groups, idle)
    training_order(config)
    for name in config.runs:
        _check_run(config, name)
    _check_rows(config)
    for name, entry in config.teachers.items():
        is_free = name not in config.runs and name not in config.fusions
        _require(is_free, f"teachers.{name} needs a name that no run and no fusion has")
        with _naming(f"teachers.{name}={entry!r}"):
            given_folders(entry)


def _check_run(config: ConfigDict, name: str) -> None:
    run, field = config.runs[name], f"runs.{name}"
    is_folder_name = name and name not in (".", "..") and epath.Path(name).name == name
    _require(is_folder_name, f"the run name {name!r} cannot be a folder name; use letters, digits and _")
    _check_fields(f"{field}.", run, _RUN_NUMBERS, _RUN_TEXTS)
    for term, weight in run.weights.items():
        is_weight = isinstance(weight, (int, float)) and 0 <= weight < math.inf
        _require(is_weight, f"{field}.weights.{term}={weight!r}; a weight is a finite number of at least 0")
        in_float32, must_be = _FLOAT32
        _require(in_float32(weight), f"{field}.weights.{term}={weight!r}; it must be {must_be}")
        _check_options(f"{field}.options.{term}", term, _set_options(run, term), weight)
    active = [term for term, weight in run.weights.items() if weight]
    weighs = f"{field} weighs {', '.join(active)}"
    _require(run.teachers or not active, f"{weighs} but has no teachers; name a run in {field}.teachers")
    _require(active or not run.teachers, f"{field} has teachers but no term with a weight above 0; set {field}.weights")
    twice = [teacher for teacher, count in Counter(run.teachers).items() if count > 1]
    _require(not twice, f"{field}.teachers names {', '.join(twice)} twice; name it once, and raise the weights instead")
    _require(run.task_weight or run.teachers, f"{field}.task_weight=0; it must be above 0 without teachers")
    by_norm = [term for term in active if run.balance == "gradient" or not TERMS[term].needs_logits]
    no_task = f"{field} has task_weight 0, so that balance={run.balance!r} has no task to compare with; use 'loss'"
    _require(run.task_weight or run.balance == "loss" or not by_norm, no_task)
    if run.starts_from is not None:
        start, same = config.runs.get(run.starts_from), ("modality", "filter", "hidden", "num_layers")
        must_be = "it must be a run that reads the same modality with the same filter, hidden and num_layers"
        fits = start is not None and all(start[part] == run[part] for part in same)
        _require(fits, f"{field}.starts_from={run.starts_from!r}; {must_be}")
    unknown = f"{field}.baseline={run.baseline!r}, but no run has that name; name one, or unset it"
    _require(run.baseline is None or run.baseline in config.runs, unknown)


def _check_options(field: str, term: str, options: Mapping, weight: float) -> None:
    for option, value in options.items():
        is_finite = not isinstance(value, float) or math.isfinite(value)
        _require(is_finite, f"{field}.{option}={value}; it must be finite")
        fits, must_be = _FLOAT32 if isinstance(value, float) else _INT32
        _require(isinstance(value, str) or fits(value), f"{field}.{option}={value}; it must be {must_be}")
    _require(weight or not options, f"{field} has no effect, because the weight of {term} is 0; leave it out")
    with _naming(field):
        choose_term(term, options)


def _check_rows(config: ConfigDict) -> None:
    """Checks the rows of the table that are not runs, and what refers to rows."""
    for section in ("fusions", "choices"):
        for name, runs in config[section].items():
            row = f"{section}.{name}"
            _require(not isinstance(runs, str), f"{row}={runs!r} is a text; write a tuple of runs, ({runs!r},)")
            unknown, known = ", ".join(run for run in runs if run not in config.runs), ", ".join(config.runs)
            _require(not unknown, f"{row} names {unknown}, but no run has that name; the runs are {known}")
    for name, streams in config.fusions.items():
        needs = f"fusions.{name} needs a name that no run has and at least two runs to average"
        _require(name not in config.runs and len(streams) > 1, needs)
    for name, among in config.choices.items():
        is_free = name not in config.runs and name not in config.fusions
        _require(is_free and among, f"choices.{name} needs a name that no run and no fusion has, and at least one run")
        needs = f"choices.{name} chooses by the validation videos; dataset.validation_fraction must be above 0"
        _require(config.dataset.validation_fraction, needs)
    rows = [*config.runs, *config.fusions, *config.choices]
    for name in config.reported:
        _require(name in rows, f"reported.{name} is not a row; rows are runs, fusions and choices: {', '.join(rows)}")
    remedy = f"name one of {', '.join(config.runs)}, or none"
    is_known = not config.baseline or config.baseline in config.runs
    _require(is_known, f"baseline={config.baseline!r}, but no run has that name; {remedy}")


def _teacher_widths(config: ConfigDict, source: Source, given: Mapping) -> dict[str, tuple[int, int]]:
    """{run, fusion or given teacher: widths of its features and of its logits}; 0 logits for a folder of features."""
    info, modality = source.info, next(iter(config.runs.values())).modality
    num_outputs = TASKS[info.head].num_outputs(len(info.classes))
    widths = {name: (run.hidden or config.model.hidden, num_outputs) for name, run in config.runs.items()}
    for name, streams in config.fusions.items():
        is_teacher = any(name in run.teachers for run in config.runs.values())
        differs = f"fusions.{name} is a teacher, but its runs differ in `hidden`: their outputs have no mean"
        _require(not is_teacher or len({widths[stream] for stream in streams}) == 1, differs)
        widths[name] = widths[streams[0]]
    videos = source.videos("train", [modality]) if given else []  # their lengths are compared with those of features
    for name, folders in given.items():
        with _naming(f"teachers.{name}"):
            members = {folder: describe_given(folder, videos, info) for folder in folders}
            shown = ", ".join(f"{folder}: {width} and {logits}" for folder, (width, logits) in members.items())
            same = len(set(members.values())) == 1
            _require(same, f"features and logits of several folders must have equal widths; {shown}")
            widths[name] = members[folders[0]]
    return widths


def _check_shapes(config: ConfigDict, name: str, source: Source, widths: Mapping[str, tuple[int, int]]) -> None:
    """Traces the run's model and terms on the shapes of its data and teachers, without computing anything.

    Compares the memory that they need with what there is.
    """
    manifest = make_manifest(config, name, config.seed, source)
    lengths = [source.num_snippets[video.id] for video in source.videos("train", [])]
    program = make_program(config.training, [manifest], len(lengths), sum(lengths))
    for teacher in manifest["teachers"]:
        unserved = [chosen.name for chosen in program.terms if chosen.term.needs_logits and not widths[teacher][1]]
        lacking = f"compares logits, but the teacher {teacher!r} is a folder of features and has none"
        remedy = "give a finished run, or weigh terms that compare features"
        _require(not unserved, f"{', '.join(unserved)} {lacking}; {remedy}")
    taught = tuple(widths[teacher] for teacher in manifest["teachers"])
    sizes = manifest["input_size"], len(source.info.classes), taught
    with _naming_user_code():
        memory.check_run(program, memory.Shapes(*sizes, lengths, config.training.batch_size))
        _trace(program, *sizes)


@functools.lru_cache(maxsize=256)  # many runs have the same shapes
def _trace(program: Program, input_size: int, num_classes: int, taught: tuple[tuple[int, int], ...]) -> None:
    key, mask = jax.random.key(0), jnp.ones((1, 4), bool)
    batch = Batch(jnp.zeros((1, 4, input_size)), jnp.zeros((1, 4, num_classes)), mask, jnp.zeros(1, jnp.int32))

    @one_platform()
    def compute(teachers):
        student, _ = program.model.init_with_output(key, batch.features, mask)
        owning = [chosen for chosen in program.terms if chosen.term.owns]
        rngs = {"params": key, "sample": key}
        owned = {chosen.name: chosen.module().init(rngs, student, teachers, batch) for chosen in owning}
        weights = {"task": 1.0, **{chosen.name: 1.0 for chosen in program.terms}}
        losses = loss_parts(program, teachers, batch, key, weights, owned)
        return {name: loss(student)[0] for name, loss in losses.items()}

    def shape(size):
        return jax.ShapeDtypeStruct((1, 4, size), jnp.float32)

    jax.eval_shape(compute, [Outputs(shape(width), shape(logits)) for width, logits in taught])


def _check_run_folder(directory: epath.Path, name: str) -> None:
    """Refuses to train into, or with --noresume to delete, a folder that is not this run's own."""
    if not directory.exists():
        return
    if directory.is_dir() and all(file.startswith(".") for _, _, files in directory.walk() for file in files):
        return  # killed before its config.json was written
    folders = [directory, *(f for f in directory.iterdir() if f.name.startswith("seed_"))] if directory.is_dir() else []
    manifests = [_read_manifest(folder) for folder in folders]
    is_own = any(isinstance(found, dict) and found.get("run") == name for found in manifests)
    _require(is_own, f"{directory} does not hold the run {name}, so it is left alone; choose another --workdir")


def _read_manifest(directory: epath.Path) -> dict | None:
    """Reads the config.json of a run; None without one."""
    remedy = f"restore it from a copy, or delete {directory} to train this run anew"
    return read_json(directory / "config.json", remedy)


_FORMER = {"ema_decay": 0.0, "standardize_by": "channel", "standardize_limit": 1e9}  # before these fields existed


def _check_unchanged(directory: epath.Path, wanted: dict) -> None:
    """Refuses to continue a run that was trained with other settings.

    How features were made and stored is not a setting: the fingerprint of the data set covers their values and times.
    A field that did not exist when the run was trained had its value in _FORMER, or else its present default.
    """
    remedy = f"restore it from a copy, or delete {directory} to train this run anew"
    found, defaults = read_run_config(directory, remedy), get_config()
    if found is None:
        kept = [name for name in ("results.json", "checkpoints") if (directory / name).exists()]
        missing = f"{directory / 'config.json'} is missing, which says how its {' and '.join(kept)} were made"
        _require(not kept, f"{missing}; {remedy}")
        return
    for section in ("dataset", "model", "training"):
        known = {f: _FORMER.get(f, value) for f, value in defaults[section].to_dict().items() if f in wanted[section]}
        found[section] = known | found.get(section, {})
    made = ("extraction", "features_dtype", "first_snippet", "label_at")
    found, wanted = ({k: v for k, v in manifest.items() if k not in made} for manifest in (found, wanted))
    changed = _differences(found, wanted)
    shown = [f"{key}: {json.dumps(old)} there, {json.dumps(new)} now" for key, old, new in changed]
    remedy = "choose another --workdir, or train its runs anew with --noresume"
    _require(not shown, f"{directory} was trained with other settings ({'; '.join(shown[:3])}): {remedy}")


def _differences(old, new, prefix=""):
    """Yields (field, old value, new value) of the fields in which two nested dicts differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else key)
    elif old != new:
        yield prefix, old, new
