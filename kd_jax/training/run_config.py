"""config.json and results.json of a run: what was trained, how its model is built, and its scores.

    config = read_run_config(Path("workdir/demo/flow_teacher"), "copy all of the run again")
    model = build_model(config)

The files may come from elsewhere, so every field that is read later is checked here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from kd_jax.data.base import STORED
from kd_jax.files import DamagedFileError, read_json
from kd_jax.models import Detector
from kd_jax.models.cpu_kernels import one_platform
from kd_jax.training.fields import (
    Rule,
    are_scores,
    check_fields,
    is_count,
    is_index,
    is_mapping,
    is_name,
    is_number,
    is_positive,
    is_text,
    list_of,
    mapping_to,
)
from kd_jax.training.terms import TASKS


def _is_share(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _are_classes(value: Any) -> bool:
    return bool(value) and list_of(is_name)(value) and len({*value}) == len(value)


def _is_extraction(value: Any) -> bool:
    return is_mapping(value) and value.keys() >= {"dtype", "sampling", "sampled_fps"}


def _is_scoring(value: Any) -> bool:
    known = {"protocols", "proposals", "threshold", "convention"}
    return is_mapping(value) and value.keys() <= known and value.get("protocols") is not None


def _is_suggestion(value: Any) -> bool:
    return is_mapping(value) and all(is_number(value.get(field)) for field in ("threshold", "f1", "default_f1"))


_RULES: tuple[Rule, ...] = (
    ("a text that is not empty", is_name, "run modality filter"),
    ("a whole number from 1 to 2147483647", is_count, "input_size model.num_outputs"),
    ("a whole number from 1 to 2147483647", is_count, "model.hidden? model.num_layers? model.num_stages?"),
    ("one of " + ", ".join(TASKS), lambda value: value in [*TASKS], "head"),
    ("a list of different texts", _are_classes, "classes"),
    ("a finite number above 0", is_positive, "seconds_per_snippet"),
    ("a finite number above 0", is_positive, "extraction.seconds_per_snippet? extraction.sampled_fps?"),
    ("a finite number", is_number, "first_snippet? label_at?"),
    ("float32 or bfloat16", lambda value: value in ("float32", "bfloat16"), "model.dtype"),
    ("true or false", lambda value: isinstance(value, bool), "model.standardize?"),
    (" or ".join(STORED), lambda value: value in STORED, "features_dtype?"),
    ("what data_prep.extract writes", _is_extraction, "extraction?"),
    ("a text that is not empty", is_name, "extraction.dtype? extraction.weights_sha256?"),
    ("numbers and texts by name", mapping_to(lambda value: is_number(value) or is_name(value)), "extraction.sampling?"),
    ("fields and their values", is_mapping, "model"),
    ("a text", is_text, "dataset.name? dataset.fingerprint? dataset.validation_groups?"),
    ("a whole number from 0 to 2147483647", is_index, "dataset.max_videos?"),
    ("at least 0 and below 1", _is_share, "model.dropout? dataset.validation_fraction?"),
    ("fields and their values", is_mapping, "dataset? training? options? teachers?"),
)
_RESULTS: tuple[Rule, ...] = (
    ("a whole number from 0 to 2147483647", is_index, "best_epoch"),
    ("a list of different texts", _are_classes, "scoring.protocols?"),
    ("a text", is_text, "scoring.proposals? scoring.convention?"),
    ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1, "scoring.threshold? competence?"),
    ("fields of Scoring", _is_scoring, "scoring?"),
    ("a threshold and its F1", _is_suggestion, "threshold?"),
    ("percentages or null, by measure and per_class", are_scores, "validation? test?"),
)
COPY_AGAIN = "copy all of the run again, or train it anew"  # the remedy for a run that is only read
_MODEL = {field.name for field in dataclasses.fields(Detector)} - {"filter", "entry", "parent", "name"}


def read_run_config(directory: epath.Path, remedy: str) -> dict | None:
    """Reads the config.json of a run; returns None without one.

    Raises DamagedFileError, which ends with the remedy, if it cannot be read or a field is missing or out of range.
    """
    path = directory / "config.json"
    config = read_json(path, remedy)
    if config is not None:
        check_run_config(path, config, remedy)
    return config


def check_run_config(path: epath.Path, config: Mapping, remedy: str) -> None:
    """Raises DamagedFileError, as `read_run_config` does, for a config that was read from `path`."""
    check_fields(path, config, _RULES, remedy)
    if problem := _find_contradiction(config):
        raise DamagedFileError(f"{path}: {problem}; {remedy}")


def read_run_results(directory: epath.Path, remedy: str) -> dict | None:
    """Reads the results.json of a run, without fields that are null; returns None for a run that has not finished.

    Raises DamagedFileError, which ends with the remedy, if it cannot be read or a field is missing or out of range.
    """
    path = directory / "results.json"
    results = read_json(path, remedy)
    return None if results is None else check_fields(path, results, _RESULTS, remedy)


def require_run_results(directory: epath.Path, remedy: str) -> dict:
    """Reads the results.json of a run as `read_run_results` does; raises DamagedFileError also if there is none."""
    if (results := read_run_results(directory, remedy)) is None:
        raise DamagedFileError(f"{directory / 'results.json'} is missing; {remedy}")
    return results


def _find_contradiction(config: Mapping) -> str | None:
    """What does not fit together in the content of a config.json; None if nothing."""
    if unknown := config["model"].keys() - _MODEL:
        return f"model.{min(unknown)} is unknown; it has {', '.join(sorted(_MODEL))}"
    found, expected = config["model"]["num_outputs"], TASKS[config["head"]].num_outputs(len(config["classes"]))
    if found != expected:
        return f"model.num_outputs is {found}, but must be {expected} for {len(config['classes'])} classes"
    return None


def build_model(config: Mapping) -> Detector:
    """The detector that a run's config.json describes."""
    return Detector(config["filter"], **{**config["model"], "dtype": jnp.dtype(config["model"]["dtype"]).type})


def describe_variables(model: Detector, input_size: int) -> dict:
    """The shapes and dtypes of a model's parameters and constants, {collection: tree}; nothing is allocated."""
    x = jax.ShapeDtypeStruct((1, 1, input_size), jnp.float32)
    with one_platform():
        return dict(jax.eval_shape(lambda x: model.init(jax.random.key(0), x, jnp.ones((1, 1), bool)), x))


def build_fitting_model(
    directory: epath.Path, config: Mapping, params: Mapping, constants: Mapping, remedy: str = COPY_AGAIN
) -> Detector:
    """The detector that the config.json of a run describes, if its checkpoint holds exactly the arrays of this model.

    Nothing of the sizes that config.json states is allocated. Sizes that would make tracing slow are compared first.
    """
    try:
        model = build_model(config)
        _check_sizes(model, params)
        own = _shapes(describe_variables(model, config["input_size"]))
        found = _shapes({"params": params, **constants})
        if wrong := min((name for name in own.keys() | found.keys() if own.get(name) != found.get(name)), default=""):
            raise ValueError(
                f"{wrong} is {found.get(wrong, 'missing')}, and by config.json {own.get(wrong, 'unknown')}"
            )
    except Exception as error:  # a filter may raise anything for sizes that it cannot have
        described = f"{directory / 'config.json'} describes another model than the checkpoint holds"
        raise DamagedFileError(f"{described} ({one_line(error)}); {remedy}") from error
    return model


def _check_sizes(model: Detector, params: Mapping) -> None:
    """Raises ValueError for a classifier of another shape, or far more layers than there are arrays."""
    found, wanted = params.get(model.last_head, {}).get("kernel"), (model.hidden, model.num_outputs)
    if found is None or found.shape != wanted:
        raise ValueError(f"{model.last_head} is {'missing' if found is None else found.shape}, by config.json {wanted}")
    arrays, layers = jax.tree.leaves(params), model.num_layers or 0
    stacked = layers in (array.shape[0] for array in arrays if array.ndim)  # the layers of a filter may be one array
    if not stacked and layers > max(32, len(arrays)):
        raise ValueError(f"it has {len(arrays)} arrays, by config.json {layers} layers")


def _shapes(tree: Any) -> dict[str, str]:
    """{path of an array: its dtype and shape}."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype} {list(leaf.shape)}"
        for path, leaf in paths
    }


def one_line(error: Exception) -> str:
    """The type and message of an error of a library, at most 160 characters."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
