"""The schema of an experiment: every field with its meaning and its only default.

The files of `configs/` start from `get_config` and set what differs. The command line overrides any field, e.g.
`--config.training.epochs=80 --config.runs.augmented_rgb.weights.atomic=3`. A misspelt field raises an error.
`--config=configs/NAME.py:smoke` shrinks an experiment to a minute or less.
"""

import ast
import difflib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from kd_jax.files import checked_path, is_address
from kd_jax.training.terms import TERMS

# The folder of the configs that kd_jax ships: inside an installed package, next to the package in a clone.
FOLDER = next(path for parent in Path(__file__).parents[:2] if (path := parent / "configs").is_dir())
# The weights of the paper (supplementary material), α1 to α3, for its I3D features and its reading of the formulas.
PUBLISHED_WEIGHTS = {"atomic": 300.0, "global_context": 100.0, "boundary": 5.0}
# The published weights divided by 300: those of the three levels in DISTILLATION (docs/weights.md).
WEIGHTS = {term: weight / 300 for term, weight in PUBLISHED_WEIGHTS.items()}


def _options(term: str) -> dict:
    """List the options of a term's loss, all unset; an unset option takes the default of the loss."""
    defaults = TERMS[term].options()
    return {name: placeholder(float if default is None else type(default)) for name, default in defaults.items()}


def make_run(modality: str, teachers: tuple[str, ...] | str = (), weights: dict | None = None, **changes) -> ConfigDict:
    """Make a run (one training) from its modality, its teachers and the weights of its distillation terms.

    `changes` sets any other field, e.g. `options={'atomic': {'form': 'margin'}}`. A misspelt field raises an error.
    """
    teachers = (teachers,) if isinstance(teachers, str) else tuple(teachers)
    fields = {
        "modality": modality,  # the features this run reads, in training and at inference
        "filter": "ss_tcn",  # temporal filter: a key of kd_jax.models.FILTERS
        "hidden": placeholder(int),  # channels of the filter; unset = model.hidden
        "num_layers": placeholder(int),  # layers of the filter; unset = model.num_layers
        "learning_rate": placeholder(float),  # unset = training.learning_rate
        "teachers": teachers,  # names of runs, of fusions (an ensemble: the mean of their outputs) or of
        #                        config.teachers; losses are summed over teachers; none = only the task loss
        "baseline": placeholder(str),  # the run that the gain is measured against; unset = config.baseline
        "weights": dict.fromkeys(TERMS, 0.0),  # a weight of 0 skips the term
        "task_weight": 1.0,  # of the task loss; 0 = only distil, and keep the last epoch
        "starts_from": placeholder(str),  # a run of the same modality, filter and size; it gives initial parameters
        "balance": "loss",  # meaning of a weight: 'loss' = it multiplies the term; 'gradient' = the norm of the
        #                     term's gradient at the student's features, relative to that of the task; 'competence' =
        #                     as 'loss', but terms count less if the teacher explains the labels less, and those of
        #                     features alone only where it is better than the student; each of these pulls at most
        #                     half as hard as the unweighted task loss
        "options": {term: _options(term) for term in TERMS},  # keyword options of each term's loss
    }
    run = _section(fields).lock()
    run.update({"weights": weights or {}, **changes})
    return run


def soft_labels(weight: float, weights: dict | None = None) -> dict:
    """Make the fields of a run that learns from `(1 - weight) · labels + weight · probabilities of the teacher`.

        make_run("rgb", teachers=("flow_teacher",), **soft_labels(0.5, WEIGHTS))  # the same as **DISTILLATION

    Snippets in which the input of the teacher is 0 keep their labels (`kd_jax.losses.soft_labels`). `weights` are those
    of other terms. All count less if the teacher explains the labels less (`kd_jax.losses.competence`); those that
    compare features alone count only where it is better than the student, and each pulls at most half as hard as the
    unweighted task loss.
    """
    terms = {**(weights or {}), "soft_labels": weight}
    return {"task_weight": round(1 - weight, 6), "weights": terms, "balance": "competence"}


# The default: soft labels and the three levels. docs/evidence.md shows what it gains.
SHARE = 0.5  # of the teacher's probabilities in the labels
DISTILLATION = soft_labels(SHARE, WEIGHTS)


def make_like(run: ConfigDict, **changes) -> ConfigDict:
    """Make another run with the modality, filter, size and learning rate of `run`; `changes` as in `make_run`."""
    same = {field: run[field] for field in ("filter", "hidden", "num_layers", "learning_rate")}
    return make_run(run.modality, **{**same, **changes})


def make_runs(**runs: ConfigDict) -> ConfigDict:
    """Name the runs of an experiment. The table of results keeps their order."""
    return _section(runs)


def add_run(config: ConfigDict, name: str, run: ConfigDict) -> None:
    """Add a run to an experiment; ValueError if a run, fusion or teacher already has this name."""
    if name in config.runs or name in config.fusions or name in config.teachers:
        raise ValueError(f"two runs, fusions or teachers would be named {name!r}; rename that of the other file")
    config.runs[name] = run


def set_runs(config: ConfigDict, teacher: str, student: str) -> ConfigDict:
    """Set the usual runs: a teacher, a plain student, a distilled student, and the fusion of the first two.

    The teacher reads the modality `teacher`, and the students read `student`. For 'flow' and 'rgb' the runs are named
    flow_teacher, vanilla_rgb and augmented_rgb. `--config.runs.augmented_rgb.teachers="('two_stream',)"` distils from
    the fusion instead. The distilled student learns with DISTILLATION.
    """
    first, plain = f"{teacher}_teacher", f"vanilla_{student}"
    augmented = make_run(student, teachers=(first,), **DISTILLATION)
    config.runs = _section({first: make_run(teacher), plain: make_run(student), f"augmented_{student}": augmented})
    config.fusions.two_stream = (first, plain)
    config.baseline = plain
    return config


def teaching_runs(config: ConfigDict, name: str) -> set[str]:
    """Find the runs that a run needs first: its teachers, the members of its ensembles, and the run it starts from."""
    run = config.runs[name]
    members = [config.fusions.get(teacher, (teacher,)) for teacher in run.teachers]
    members += [(run.starts_from,)] if run.starts_from else []
    return {run for each in members for run in each if run in config.runs}


def load(name: str, variant: str = "") -> ConfigDict:
    """Load the config of a file; `name` as in `find_file`."""
    path = find_file(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader  # every .py file has them
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config(variant) if variant else module.get_config()


def as_json(config: ConfigDict) -> dict:
    """Make plain JSON of a config, for `from_json`. Folders become absolute."""
    content = json.loads(json.dumps(config.to_dict(), default=os.fspath))
    content["dataset"]["data_dir"] = _absolute(content["dataset"]["data_dir"])
    for name, entry in content["teachers"].items():
        content["teachers"][name] = list(map(_absolute, entry)) if isinstance(entry, list) else _absolute(entry)
    return content


def _absolute(folder: str) -> str:
    return os.path.abspath(checked_path(folder)) if folder and not is_address(folder) else folder


def from_json(content: dict) -> ConfigDict:
    """Make the config that `as_json` was given; a field that it does not know keeps its default.

    Raises KeyError or TypeError for a field that does not exist or has another type.
    """

    def with_tuples(value):
        if isinstance(value, dict):
            return {name: with_tuples(entry) for name, entry in value.items()}
        return tuple(map(with_tuples, value)) if isinstance(value, list) else value

    config, content = get_config(), with_tuples(content)
    config.runs = make_runs(**{name: make_run(**run) for name, run in content.pop("runs").items()})
    for name in _ENTRIES:
        config[name].update(content.pop(name))
    config.update(content)
    return config.lock()


def check_complete(config: Any) -> None:
    """Check that a config has every field of `get_config`, and each of its runs every field of `make_run`.

    Raises ValueError that names what is missing.
    """
    _require_fields("config", config, get_config(), "get_config")
    for name, run in config.runs.items():
        _require_fields(f"config.runs.{name}", run, make_run(""), "make_run")


def _require_fields(place: str, section: Any, like: ConfigDict, maker: str) -> None:
    if not isinstance(section, ConfigDict):
        raise ValueError(f"{place} is {section!r}; make it with kd_jax.config.{maker}")
    for name, field in like.items():
        if name not in section:
            raise ValueError(f"{place} has no field {name!r}; make it with kd_jax.config.{maker}")
        if isinstance(field, ConfigDict):
            _require_fields(f"{place}.{name}", section[name], field, maker)


def find_file(name: str) -> Path:
    """Find a config file by its path, or by the name of one that kd_jax ships; FileNotFoundError if there is none."""
    if (path := Path(checked_path(name))).suffix == ".py" and path.is_file():
        return path
    shipped = {path.stem: path for path in FOLDER.glob("*.py")}
    if path.parent in (Path("."), Path("configs")) and path.stem in shipped:
        return shipped[path.stem]
    known = ", ".join(sorted(shipped))
    raise FileNotFoundError(f"there is no config file {name}; give a PATH.py, or the name of a shipped one: {known}")


# Sections with free names, and an example of an entry. An option cannot add an entry, so it replaces the section.
_ENTRIES = {"teachers": "'DIR'", "reported": "'32.8'", "fusions": "('RUN', 'RUN')", "choices": "('RUN', 'RUN')"}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    tuple: "a tuple, e.g. \"('a', 'b')\"",
    ConfigDict: "a dict, e.g. \"{'name': 1}\"",
}


def override(config: ConfigDict, path: str, text: str) -> None:
    """Set one field of a config to a value given as text, as on the command line.

    Args:
      config, path: changed in place at the path of the field, e.g. `runs.augmented_rgb.weights.atomic`.
      text: a number, true or false, or plain text; a Python literal for a tuple; a Python dict for a section. 'None'
        unsets a field that may be unset. A dict replaces the whole of teachers, reported, fusions or choices. In any
        other section it sets only the fields that it contains.

    Raises ValueError if the field does not exist (with the closest name), or the value has another type.
    """
    section, place, entry = config, "", config
    for name in path.split("."):
        if not isinstance(entry, ConfigDict):
            raise ValueError(f"--config.{path}: {place!r} is a value, it has no field {name!r}")
        if name not in entry:
            raise ValueError(f"--config.{path}: {_missing(entry, place, name)}")
        section, place, entry = entry, name, entry[name]
    kind = section.get_type(name)
    optional = isinstance(dict(section.items(preserve_field_references=True))[name], FieldReference)
    try:
        value = None if optional and text == "None" else _convert(text, kind)
    except (ValueError, SyntaxError, KeyError):
        raise ValueError(f"--config.{path}={text}: expected {_EXPECTED.get(kind, kind.__name__)}") from None
    if not isinstance(value, dict):
        section[name] = value
    elif section is config and name in _ENTRIES:
        config[name] = _section(value).lock()
    else:
        for key, entry in value.items():
            override(config, f"{path}.{key}", entry if isinstance(entry, str) else repr(entry))


def _convert(text: str, kind: type):
    """Parse a value of the type `kind`; ValueError, SyntaxError or KeyError if `text` is not one."""
    if kind is bool:
        return _BOOLEANS[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    if kind in (tuple, list) and text.isidentifier():
        return kind([text])
    value = ast.literal_eval(text)
    if kind in (tuple, list) and not isinstance(value, dict):
        return kind(value if isinstance(value, (tuple, list)) else [value])
    if kind is ConfigDict and isinstance(value, dict):
        return value
    raise ValueError


def _missing(section: ConfigDict, place: str, name: str) -> str:
    """Explain that the section called `place` has no field `name`."""
    if place in _ENTRIES:
        whole = f"{{{name!r}: {_ENTRIES[place]}}}"
        return f'there is no entry {name!r} to change; give the whole, e.g. --config.{place}="{whole}"'
    if place == "runs":
        return f"there is no run {name!r} to change; the config file names the runs: {', '.join(section)}"
    if closest := difflib.get_close_matches(name, section, 1, 0.75):
        return f"there is no field {name!r}; did you mean {closest[0]!r}? (kd_jax/config.py lists them all)"
    if place in ("weights", "options"):
        return f"there is no distillation term {name!r}; known terms: {', '.join(section)}"
    return f"there is no field {name!r} (kd_jax/config.py lists them all)"


def from_other(variant: str) -> tuple[ConfigDict, tuple[str, ...], ConfigDict, str]:
    """Load another file's experiment, to which the caller adds its runs.

    `variant` is `FILE[:ITS_VARIANT][,VARIANT]`, such as `sphere`, `utd_mhad:inertial`, `sphere,smoke` or
    `/home/me/mine.py`; VARIANT is the caller's. Without a file, it is the demo.

    Raises ValueError if the file does not exist, or has no distilled run or no baseline.

    Returns:
      The config with only the baseline, the teachers of the first distilled student, and the runs that these need; the
      names of the teachers; the run of the baseline; and the variant of the caller.
    """
    name, _, rest = re.sub(":smoke$", ",smoke", variant).partition(",")  # smoke shrinks the runs of the caller, too
    if name in ("", "smoke"):
        name, rest = "demo", variant
    try:
        config = load(*re.split(r":(?=\w+$)", name)).unlock()  # a folder may have a colon
    except FileNotFoundError as error:
        known = "this file knows smoke, and the data of other files, each also with ':ITS_VARIANT' and ',smoke'"
        raise ValueError(f"unknown config variant {variant!r}: {known}; {error}") from None
    _, distilled = remove_students(config, name)
    return config, distilled.teachers, config.runs[config.baseline], rest


def remove_students(config: ConfigDict, name: str) -> tuple[str, ConfigDict]:
    """Remove every run but the baseline, the teachers of the first distilled student, and the runs that these need.

    Fusions stay if they teach; choices and reported scores are removed. The config is changed in place and must be
    unlocked; errors call it `name`. ValueError if it has no baseline, or no distilled run that reads the same modality.

    Returns the name of that student, and the student, which is removed, too.
    """
    if (plain := config.runs.get(config.baseline or "")) is None:
        raise ValueError(f"{name} has no baseline; name its plain student in config.baseline")
    others = {run: made for run, made in config.runs.items() if run != config.baseline}
    student = next((run for run, made in others.items() if made.teachers and made.modality == plain.modality), None)
    if student is None:
        raise ValueError(f"{name} has no run that reads {plain.modality} and has teachers; add a distilled student")
    distilled, kept = config.runs[student], {config.baseline, student}
    while more := {run for each in kept for run in teaching_runs(config, each)} - kept:
        kept |= more
    kept -= {student}
    needed = {teacher for run in kept for teacher in config.runs[run].teachers} | set(distilled.teachers)
    config.runs = make_runs(**{run: made for run, made in config.runs.items() if run in kept})
    config.fusions = _section({name: streams for name, streams in config.fusions.items() if name in needed})
    config.choices, config.reported = _section({}), _section({})
    return student, distilled


def add_reported(config: ConfigDict, scores: dict, baseline: str, reported_for: str) -> None:
    """Add the scores that a paper reports for rows of this experiment, and the one for its baseline."""
    rows = (*config.runs, *config.choices)
    config.reported.update({row: score for row, score in scores.items() if row in rows})
    config.reported[config.baseline] = baseline
    config.reported_for = reported_for


def _section(entries: dict) -> ConfigDict:
    return ConfigDict(entries, sort_keys=False)


def get_config() -> ConfigDict:
    """Make the default config without runs, which each file of `configs/` adds. Locked: a misspelt field raises."""
    fields = {
        "dataset": {
            "name": "custom",  # a key of kd_jax.data.annotations.DATASETS
            "data_dir": "",  # records from `kd-jax build`; the synthetic set needs none
            # Validation videos are training videos that are held out to choose the best epoch. They are drawn, unless
            # the records name them (data_prep.build).
            "validation_fraction": 0.2,  # of training videos, or of their groups; 0 = keep the last epoch
            "validation_seed": 0,  # selects the held-out videos
            "validation_groups": "",  # regular expression whose match in a video's name is its group, e.g. '^S\d+';
            #                           whole groups are held out, so that no person is in both parts
            "max_videos": 0,  # maximum number of videos read from each split; 0 = all
            "synthetic_fallback": False,  # use the synthetic set if data_dir has no records (smoke variant)
        },
        "model": {
            "hidden": 256,  # channels of the temporal filter
            "num_layers": placeholder(int),  # unset = the filter's own (SS-TCN: 5 see 63 snippets, 6 see 127)
            "dropout": 0.5,
            "dtype": "float32",  # of activations: 'float32' or 'bfloat16'; parameters and losses stay float32
            "standardize": True,  # scale the input by its mean and deviation (training.standardize_by and _limit)
        },
        "training": {
            "epochs": 140,
            "batch_size": 2,  # whole videos per step, over all devices
            "learning_rate": 2e-4,  # a run can set another
            "optimizer": "adam",  # optax name: adam, adamw, nadamw, lamb, lion, rmsprop, sgd
            "weight_decay": 0.0,  # for adamw, nadamw, lamb and lion
            "clip_norm": 0.0,  # maximum global norm of the gradient; 0 = no clipping
            "schedule": "constant",  # of the learning rate: 'constant', or 'cosine' or 'linear' decay to 0;
            #                        the plateau rule multiplies it by its own factor
            "warmup_epochs": 0,  # first epochs, in which the learning rate rises linearly
            "standardize_by": "modality",  # one scale for all channels of a modality, which keeps channels of noise
            #                                small; or 'channel', for channels of different units (g and degrees/s)
            "standardize_limit": 128.0,  # D channels get the deviation min(1, limit / D): one step of Adam changes a
            #                              projection of many channels more than one of few
            "ema_decay": 0.98,  # of a moving average of the parameters, which is evaluated and kept; 0 = no average
            "plateau_patience": 8,  # epochs without a lower loss before the learning rate is halved; 0 = never
            "gradient_norms": False,  # log the norm of each term's gradient at the student's features
            "length_buckets": 4,  # number of lengths that videos are padded to; each is compiled once
            "data": "auto",  # 'resident': training videos stay on the device, an epoch is one program;
            #                  'streamed': the host reads each batch from the records shortly before its step;
            #                  'auto': resident if they fit half of a device; else sent from host memory if the
            #                  features of all runs fit half of it; else streamed
            "checkpoint_every": 5,  # epochs between checkpoints; a resumed run repeats at most this many
        },
        "evaluation": {
            "batch_size": 8,  # whole videos per forward pass
            "protocols": (),  # keys of evaluation.protocols.PROTOCOLS; () = those of the data set's benchmark
            "proposals": "",  # scores → detections: a key of evaluation.proposals.PROPOSALS; "" = by the head
            "threshold": placeholder(float),  # of the proposals; unset = classes 0.1, background 0.4
            "convention": "centre",  # a snippet's instant: 'centre' or 'start' (kd_jax/evaluation/proposals.py)
        },
        "runs": _section({}),  # {name: make_run(...)}
        "fusions": _section({}),  # {name: runs whose logits are averaged}, e.g. two_stream
        "teachers": _section({}),  # {name: folder} from outside the experiment: a finished run, or features
        #                        <video>.npy [T, D] of every training video; a tuple of folders is an ensemble
        "choices": _section({}),  # {row of the table: runs}; the row shows the run with the best mean validation score
        "reported": _section({}),  # {row of the table: the score that a paper reports, as text}
        "reported_for": "",  # the data and metric of these scores, for the column title
        "baseline": "vanilla_rgb",  # the run that gains are measured against
        "seed": 0,  # of initialisation, shuffling, dropout and negatives
        "seeds": 1,  # number of seeds: seed, seed + 1, …; the table shows mean ± standard deviation
    }
    config = _section(fields).lock()
    for section in (config.fusions, config.choices, config.reported, config.teachers):
        section.unlock()  # so that the experiment's file can add entries
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """Shrink an experiment to the smoke variant: a few videos, two epochs, a small filter.

    It reads the records if they exist, and otherwise the synthetic set (with a message), so that it runs anywhere.
    """
    config.dataset.update({"max_videos": 8, "synthetic_fallback": True, "validation_groups": ""})
    config.training.update({"epochs": 2, "batch_size": 2, "length_buckets": 1, "checkpoint_every": 1})
    config.model.hidden, config.seeds = 16, 1
    return config


def use_published_weights(config: ConfigDict) -> ConfigDict:
    """Give every student the published method. With the formulas of this library it outweighs the task loss."""
    for run in config.runs.values():
        if run.teachers:
            run.update({"weights": {**PUBLISHED_WEIGHTS, "soft_labels": 0.0}, "task_weight": 1.0, "balance": "loss"})
    return config


def with_variant(config: ConfigDict, variant: str, variants: dict | None = None) -> ConfigDict:
    """Apply the variant, the word after the colon of `--config=FILE.py:VARIANT`. Every file has 'smoke'."""
    variants = {"": lambda config: config, "smoke": shrink, **(variants or {})}
    if variant not in variants:
        known = ", ".join(sorted(name for name in variants if name))
        raise ValueError(f"unknown config variant {variant!r}: this file knows {known}, or none")
    return variants[variant](config).lock()
