"""Every field of an experiment with its meaning and its only default.

The other files of this folder start from `get_config` here and state their differences. Override anything on the
command line, e.g. `--config.training.epochs=80 --config.runs.augmented_rgb.weights.atomic=3`; a misspelt field is
refused. `--config=configs/NAME.py:smoke` shrinks any of them to a minute or less.
"""

import ast
import difflib
import importlib.util
from pathlib import Path

from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import placeholder

from kd_jax.training.terms import TERMS

# The configs that kd_jax ships: in the package once installed, next to it in a clone.
FOLDER = next(
    path for path in (Path(__file__).parent / "configs", Path(__file__).parents[1] / "configs") if path.is_dir()
)
# The weights of the paper (supplementary material): {alpha1, alpha2, alpha3}, for its I3D features and its own reading.
PUBLISHED_WEIGHTS = {"atomic": 300.0, "global_context": 100.0, "boundary": 5.0}
# A three-hundredth of them: under the formulas as this library reads them, that gains where the teacher is much better
# than the student, and costs little where it is not (docs/weights.md: three data sets, every form of each loss).
WEIGHTS = {term: weight / 300 for term, weight in PUBLISHED_WEIGHTS.items()}


def _options(term: str) -> dict:
    """The options of a term's loss, all unset: an unset option has the loss's own default."""
    defaults = TERMS[term].options()
    return {name: placeholder(float if default is None else type(default)) for name, default in defaults.items()}


def make_run(modality: str, teachers: tuple[str, ...] | str = (), weights: dict | None = None, **changes) -> ConfigDict:
    """One training: what it reads, whom it learns from, and how much each distillation term counts.

    `changes` set any other field, e.g. `options={'atomic': {'form': 'margin'}}`; a misspelt one is refused.
    """
    teachers = (teachers,) if isinstance(teachers, str) else tuple(teachers)
    run = ConfigDict(
        {
            "modality": modality,  # the features this run reads, in training and at inference
            "filter": "ss_tcn",  # temporal filter: a key of kd_jax.models.FILTERS
            "hidden": placeholder(int),  # its channels; unset = model.hidden
            "num_layers": placeholder(int),  # its layers; unset = model.num_layers
            "learning_rate": placeholder(float),  # of this run; unset = training.learning_rate
            "teachers": teachers,  # names of other runs, of fusions (an ensemble: the mean of their outputs) or
            #                        of config.teachers; losses are summed over them; none = the task loss alone
            "baseline": placeholder(str),  # the run that its gain is measured against; unset = config.baseline
            "weights": dict.fromkeys(TERMS, 0.0),  # a weight of 0 skips the term
            "task_weight": 1.0,  # of the task loss; 0 = distil alone, which keeps the last epoch, for a run that starts
            #                      from this one to learn the classes
            "starts_from": placeholder(str),  # a run of the same filter, whose trained parameters this one begins with
            "balance": "loss",  # what a weight counts: 'loss', it multiplies the term; 'gradient', the norm of the
            #                     term's gradient at the student's features, as a multiple of the task's
            "options": {term: _options(term) for term in TERMS},  # the keyword options of each term's loss
        },
        sort_keys=False,
    ).lock()
    run.update({"weights": weights or {}, **changes})
    return run


def make_like(run: ConfigDict, **changes) -> ConfigDict:
    """Another run of the same modality, filter, size and learning rate; `changes` as in `make_run`."""
    same = {field: run[field] for field in ("filter", "hidden", "num_layers", "learning_rate")}
    return make_run(run.modality, **{**same, **changes})


def make_runs(**runs: ConfigDict) -> ConfigDict:
    """Names the runs of an experiment; the table of results keeps their order."""
    return ConfigDict(runs, sort_keys=False)


def add_run(config: ConfigDict, name: str, run: ConfigDict) -> None:
    """Another run of an experiment whose first runs are from another file; ValueError if that has one of this name."""
    if name in config.runs or name in config.fusions or name in config.teachers:
        raise ValueError(f"two runs, fusions or teachers would be named {name!r}; rename that of the other file")
    config.runs[name] = run


def set_runs(config: ConfigDict, teacher: str, student: str) -> ConfigDict:
    """The usual experiment: a teacher, a plain student, a distilled student, and the fusion of the first two.

    The teacher reads the modality `teacher`, the students `student`; for 'flow' and 'rgb' the runs are flow_teacher,
    vanilla_rgb and augmented_rgb. With `--config.runs.augmented_rgb.teachers="('two_stream',)"` the student learns from
    the fusion, which gained more (docs/weights.md).
    """
    first, plain = f"{teacher}_teacher", f"vanilla_{student}"
    config.runs = make_runs(
        **{
            first: make_run(teacher),
            plain: make_run(student),
            f"augmented_{student}": make_run(student, teachers=(first,), weights=WEIGHTS),
        }
    )
    config.fusions.two_stream = (first, plain)
    config.baseline = plain
    return config


def teaching_runs(config: ConfigDict, name: str) -> set[str]:
    """The runs of the experiment that a run needs: its teachers, members of ensembles one by one, and its beginning."""
    run = config.runs[name]
    members = [config.fusions.get(teacher, (teacher,)) for teacher in run.teachers]
    members += [(run.starts_from,)] if run.starts_from else []
    return {run for each in members for run in each if run in config.runs}


def load(name: str, variant: str = "") -> ConfigDict:
    """The config that a file makes; `name` as in `find_file`."""
    path = find_file(name)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.get_config(variant) if variant else module.get_config()


def find_file(name: str) -> Path:
    """The config file that `name` means: a path, or the name of one that kd_jax ships (`tsu`, `configs/tsu.py`).

    Raises:
      FileNotFoundError: if there is no such file.
    """
    if (path := Path(name)).is_file():
        return path
    shipped = {path.stem: path for path in FOLDER.glob("*.py")}
    if path.parent in (Path("."), Path("configs")) and path.stem in shipped:
        return shipped[path.stem]
    known = ", ".join(sorted(shipped))
    raise FileNotFoundError(f"there is no config file {name}; give a PATH.py, or the name of a shipped one: {known}")


# What an entry of these sections is. An option cannot add one, so it replaces the section.
_ENTRIES = {"teachers": "'DIR'", "published": "'32.8'", "fusions": "('RUN', 'RUN')", "choices": "('RUN', 'RUN')"}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    tuple: "a tuple, e.g. \"('a', 'b')\"",
    ConfigDict: "a dict, e.g. \"{'name': 1}\"",
}


def override(config: ConfigDict, path: str, text: str) -> None:
    """Sets one field of a config to a value that is written as text, as on the command line.

    Args:
      config: changed in place.
      path: names of the sections and the field, e.g. `runs.augmented_rgb.weights.atomic`.
      text: a number, true or false, or plain text; a Python literal for a tuple; a Python dict for a section. 'None'
        unsets a field that may be unset. A dict replaces all of teachers, published, fusions or choices; in any other
        section it changes the fields that it names.

    Raises:
      ValueError: for a field that does not exist, naming the closest one, or a value of another type.
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
    """Reads a value of the type `kind`; ValueError, SyntaxError or KeyError if `text` is none."""
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
    """The sentence on a name that the section called `place` does not have."""
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
    """The experiment of another file, to put other runs into: `sphere`, `sphere,smoke` or `/home/me/mine.py`.

    Returns:
      Its config with its baseline, the teachers of its first distilled student and what those need; the teachers'
      names; the baseline's run; and the rest of the variant. Without a name it is the demo's.

    Raises:
      ValueError: if there is no such file, or no distilled run or no baseline in it.
    """
    name, _, rest = variant.partition(",")
    if name in ("", "smoke"):
        name, rest = "demo", variant
    try:
        config = load(name).unlock()
    except FileNotFoundError as error:
        raise ValueError(
            f"unknown config variant {variant!r}: this file knows smoke, and the data of other files, each also with "
            f"',smoke'; {error}"
        ) from None
    if (plain := config.runs.get(config.baseline)) is None:
        raise ValueError(f"{name} has no baseline, which this file needs")
    distilled = (run for run, made in config.runs.items() if made.teachers and made.modality == plain.modality)
    if (distilled := next(distilled, None)) is None:
        raise ValueError(f"{name} has no run that reads {plain.modality} and has teachers, which this file needs")
    teachers, kept = config.runs[distilled].teachers, {config.baseline, distilled}
    while more := {run for each in kept for run in teaching_runs(config, each)} - kept:
        kept |= more
    kept -= {distilled}
    needed = {teacher for run in kept for teacher in config.runs[run].teachers} | set(teachers)
    config.runs = make_runs(**{run: made for run, made in config.runs.items() if run in kept})
    config.fusions = _section({name: streams for name, streams in config.fusions.items() if name in needed})
    config.choices, config.published = _section({}), _section({})
    return config, teachers, plain, rest


def publish(config: ConfigDict, figures: dict, baseline: str, published_for: str) -> None:
    """What a paper reports for the rows that this experiment has, and for its baseline, whatever its name."""
    rows = (*config.runs, *config.choices)
    config.published.update({row: figure for row, figure in figures.items() if row in rows})
    config.published[config.baseline] = baseline
    config.published_for = published_for


def _section(entries: dict) -> ConfigDict:
    return ConfigDict(entries, sort_keys=False)


def get_config() -> ConfigDict:
    """The defaults, without runs: an experiment's file adds them. Locked: a misspelt field is refused."""
    config = ConfigDict(
        {
            "dataset": {
                "name": "custom",  # a key of kd_jax.data.annotations.DATASETS
                "data_dir": "",  # records written by `python -m data_prep.build`; the synthetic set needs none
                "validation_fraction": 0.2,  # part of the training videos held out to choose the best epoch;
                #                              0 = train on all of them and keep the last epoch
                "validation_seed": 0,  # which videos those are
                "max_videos": 0,  # read at most so many videos of each split; 0 = all
                "synthetic_fallback": False,  # no records in data_dir: use the synthetic set (smoke variant only)
            },
            "model": {
                "hidden": 256,  # channels of the temporal filter
                "num_layers": placeholder(int),  # of the temporal filter; unset = its own default (SS-TCN: 5, which
                #                                  see 63 snippets; every further layer doubles that)
                "dropout": 0.5,
                "dtype": "float32",  # of the computation: 'float32' or 'bfloat16'; parameters and losses stay float32
                "standardize": False,  # per-channel mean 0, std 1 of the inputs, fitted on the training videos
            },
            "training": {
                "epochs": 140,
                "batch_size": 2,  # whole videos a step, over all devices
                "learning_rate": 2e-4,  # a run may have its own
                "optimizer": "adam",  # of optax: adam, adamw, nadamw, lamb, lion, rmsprop, sgd
                "weight_decay": 0.0,  # of adamw, nadamw, lamb and lion
                "clip_norm": 0.0,  # gradients of a larger global norm are scaled down to it; 0 = never
                "schedule": "constant",  # of the learning rate: 'constant', or 'cosine' or 'linear' decay to 0
                "warmup_epochs": 0,  # epochs in which the learning rate rises linearly first
                "plateau_patience": 8,  # epochs without a lower loss until the learning rate is halved; 0 = never
                "gradient_norms": False,  # log the norm of each term's gradient at the student's features
                "length_buckets": 4,  # videos are padded to one of so many lengths, each compiled once
                "data": "auto",  # 'resident': the training videos lie on the device, an epoch is one program;
                #                  'streamed': the host reads every batch from the records when it comes near;
                #                  'auto': resident where they fit the device, else from the host's memory where the
                #                  features of all runs fit half of it, else streamed
                "checkpoint_every": 5,  # epochs between checkpoints; a killed run repeats at most so many
            },
            "evaluation": {
                "batch_size": 8,  # whole videos a forward pass
                "protocols": (),  # keys of evaluation.protocols.PROTOCOLS; () = those the data set is published with
                "proposals": "",  # scores → detections: a key of evaluation.proposals.PROPOSALS; "" = the head's own
                "threshold": placeholder(float),  # of the proposals; unset = the rule's own (dense 0.5, sparse 0.4)
                "convention": "centre",  # where a snippet is: 'centre' or 'start', see kd_jax/evaluation/proposals.py
            },
            "runs": _section({}),  # {name: make_run(...)}
            "fusions": _section({}),  # {name: runs whose logits are averaged}, e.g. two_stream
            "teachers": _section({}),  # {name: folder}, from elsewhere: a finished run, or the
            #                        features of any model, <video>.npy [T, D] for every training video;
            #                        several in a tuple are an ensemble
            "choices": _section({}),  # {row of the table: runs}, of which it shows the one with the
            #                        best validation score (mean over seeds): weights are tuned so
            "published": _section({}),  # {row of the table: what a paper reports, as text}
            "published_for": "",  # the data and metric of those, for the title of their column
            "baseline": "vanilla_rgb",  # the run that gains are measured against
            "seed": 0,  # of initialisation, shuffling, dropout and negatives
            "seeds": 1,  # number of seeds: seed, seed + 1, …; the table shows mean ± standard deviation
        },
        sort_keys=False,
    ).lock()
    for section in (config.fusions, config.choices, config.published, config.teachers):
        section.unlock()  # the experiment's file adds to them
    return config


def shrink(config: ConfigDict) -> ConfigDict:
    """The smoke variant: the same experiment on a few videos, for two epochs, with a small filter.

    Reads your records where they exist, otherwise the synthetic set (and says so), so that it runs anywhere.
    """
    config.dataset.max_videos = 8
    config.dataset.synthetic_fallback = True
    config.model.hidden = 16
    config.training.epochs = 2
    config.training.batch_size = 2
    config.training.length_buckets = 1
    config.training.checkpoint_every = 1
    config.seeds = 1
    return config


def published(config: ConfigDict) -> ConfigDict:
    """Every student with the weights of the paper; under our reading of its formulas they outweigh the task loss."""
    for run in config.runs.values():
        if run.teachers:
            run.weights.update(PUBLISHED_WEIGHTS)
    return config


def with_variant(config: ConfigDict, variant: str, variants: dict | None = None) -> ConfigDict:
    """Applies the word after the colon of `--config=FILE.py:VARIANT`; every file knows 'smoke'."""
    variants = {"": lambda config: config, "smoke": shrink, **(variants or {})}
    if variant not in variants:
        known = ", ".join(sorted(name for name in variants if name))
        raise ValueError(f"unknown config variant {variant!r}: this file knows {known}, or none")
    return variants[variant](config).lock()
