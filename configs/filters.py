"""What distillation gains with each temporal filter: teacher, plain and distilled student of the same one, 5 seeds.

Data, modalities and budget are those of another file of this folder, named after the colon; without one, the demo's.

Command:   python -m kd_jax.main --config=configs/filters.py:sphere
Data:      that of the other file
Weights:   default.WEIGHTS
Smoke:     the first two filters
"""

from configs import default
from kd_jax.models import FILTERS


def get_config(variant=""):
    config, teacher, plain, variant = default.from_other(variant)
    reads, runs = config.runs[teacher].modality, {}
    for name in list(FILTERS)[: 2 if variant == "smoke" else None]:
        names = [f"{name}_{kind}" for kind in ("teacher", "vanilla", "augmented")]
        changes = {"filter": name, "baseline": names[1]}
        runs[names[0]] = default.make_run(reads, **changes)
        runs[names[1]] = default.make_run(plain.modality, **changes)
        runs[names[2]] = default.make_run(plain.modality, teachers=(names[0],), weights=default.WEIGHTS, **changes)
    config.runs = default.make_runs(**runs)
    config.baseline = ""
    config.seeds = 5
    return default.with_variant(config, variant)
