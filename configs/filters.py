"""What distillation gains with each temporal filter: teachers, plain and distilled student of the same one, 5 seeds.

Data, modalities and budget are those of another file, named after the colon; without one, the demo's.

Command:   python -m kd_jax.main --config=configs/filters.py:sphere
Data:      that of the other file
Weights:   default.WEIGHTS
Smoke:     the first two filters
"""

from configs import default
from kd_jax.models import FILTERS


def get_config(variant=""):
    config, teachers, plain, variant = default.from_other(variant)
    fixed = {name: run for name, run in config.runs.items() if name not in (*teachers, config.baseline)}
    runs = {}
    for name in list(FILTERS)[: 2 if variant == "smoke" else None]:
        baseline = f"{name}_vanilla"
        changes = {"filter": name, "num_layers": None, "baseline": baseline}
        own = {teacher: f"{name}_{teacher}" for teacher in teachers if teacher in config.runs}
        for teacher, run in own.items():
            runs[run] = default.make_like(config.runs[teacher], **changes)
        runs[baseline] = default.make_like(plain, **changes)
        taught = [own.get(teacher, teacher) for teacher in teachers]  # folders and fusions stay what they are
        runs[f"{name}_augmented"] = default.make_like(plain, teachers=taught, weights=default.WEIGHTS, **changes)
    config.runs = default.make_runs(**fixed, **runs)
    config.baseline = ""
    config.seeds = 5
    return default.with_variant(config, variant)
