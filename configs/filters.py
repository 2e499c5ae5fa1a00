"""The gain of distillation with each temporal filter: teachers, plain and distilled student share it, 5 seeds.

The word after the colon names the file that gives data, modalities and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/filters.py:sphere
Data:      as in the other file
Students:  schema.DISTILLATION, which needs the logits of the teachers
Smoke:     the first two filters
"""

from kd_jax import config as schema
from kd_jax.models import FILTERS


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    others, fusions = dict(config.runs), dict(config.fusions)
    config.runs, config.fusions = schema.make_runs(), schema.make_runs()
    for name in list(FILTERS)[: 2 if variant == "smoke" else None]:
        own = {other: f"{name}_{other}" for other in (*others, *fusions)} | {config.baseline: f"{name}_vanilla"}
        changes = {"filter": name, "num_layers": None, "baseline": own[config.baseline]}
        for other, run in others.items():
            schema.add_run(config, own[other], renamed(run, own, changes))
        for fusion, streams in fusions.items():
            config.fusions[own[fusion]] = tuple(own[stream] for stream in streams)
        taught = [own.get(teacher, teacher) for teacher in teachers]  # a folder keeps its name
        augmented = schema.make_like(plain, teachers=taught, **schema.DISTILLATION, **changes)
        schema.add_run(config, f"{name}_augmented", augmented)
    config.baseline = ""
    config.seeds = 5
    return schema.with_variant(config, variant)


def renamed(run, names, changes):
    """Copy a run, with new names for its teachers and for the run it starts from."""
    run = run.copy_and_resolve_references()
    teachers = tuple(names.get(teacher, teacher) for teacher in run.teachers)
    run.update({"teachers": teachers, "starts_from": names.get(run.starts_from), **changes})
    return run
