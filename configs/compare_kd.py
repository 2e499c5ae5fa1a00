"""The paper's comparison (supplementary, Table 1): each distillation method, tuned on the validation videos, 5 seeds.

The word after the colon names the file that gives data, teachers, filter and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/compare_kd.py:sphere
Data:      as in the other file
Tuning:    each method runs with its published weights (METHODS) and with each weight of GRID. The weights of GRID use
           `balance='gradient'`: the gradient norm at the student's features as a multiple of the task's. The terms of
           a method share the weight equally. The table shows the run with the best validation score, mean over seeds.
CRD:       two steps as in the paper: distil (`crd_distil`, no task loss), then classify, each with the whole budget.
           It has no weight to tune, and draws NUM_NEGATIVES of the snippets.
Default:   schema.DISTILLATION, not tuned
Left out:  methods that compare logits, if a teacher is a folder of features, which has no logits
Smoke:     the first weight of the grid, and the methods of SMOKE
"""

from kd_jax import config as schema
from kd_jax.training.teachers import given_folders, given_run
from kd_jax.training.terms import TERMS

GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
METHODS = {  # {term: published weight}; none is published for logit distillation; graph distillation has its own
    "rkd": {"rkd_distance": 25.0, "rkd_angle": 50.0},
    "similarity_preserving": {"similarity_preserving": 3000.0},
    "skd": {"pairwise_similarity": 0.5, "soft_cross_entropy": 10.0, "holistic": 0.1},
    "chen": {"soft_cross_entropy": 0.5, "hint": 0.5},
    "logit_distillation": {"logit_distillation": 1.0},
    "mars": {"hint": 50.0},
    "graph_distillation": {"graph_distillation": 1.0},
    "ours": schema.PUBLISHED_WEIGHTS,
}
PUBLISHED_TASK_WEIGHT = {"chen": 0.5}
SMOKE = ("rkd", "ours")
NUM_NEGATIVES = 1024
OPTIONS = {"skd": {"soft_cross_entropy": {"background_weight": 1.0}}}
REPORTED_FOR = "Charades, frame mAP / PKU-MMD, event mAP at 0.1"
REPORTED = {"rkd": "22.9 / 82.4", "similarity_preserving": "22.8 / 81.7", "skd": "22.6 / 81.6"}
REPORTED |= {"chen": "23.4 / 82.2", "crd": "23.1 / 82.0", "ours": "24.6 / 85.5"}
REPORTED_BASELINE = "22.3 / 79.6 (from its gains)"


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    grid, methods = (GRID[:1], SMOKE) if variant == "smoke" else (GRID, METHODS)
    logits = all(map(has_logits, (config.teachers[name] for name in teachers if name in config.teachers)))
    for method in methods:
        weights, options = METHODS[method], OPTIONS.get(method, {})
        if not logits and any(TERMS[term].needs_logits for term in weights):
            continue
        like = {"teachers": teachers, "options": options}
        tried = {}
        for weight in grid:
            shares = dict.fromkeys(weights, weight / len(weights))
            name = f"{method}_{weight:g}".replace(".", "p")
            tried[name] = schema.make_like(plain, weights=shares, balance="gradient", **like)
        if variant != "smoke":
            task_weight = PUBLISHED_TASK_WEIGHT.get(method, 1.0)
            tried[f"{method}_published"] = schema.make_like(plain, weights=weights, task_weight=task_weight, **like)
        for name, run in tried.items():
            schema.add_run(config, name, run)
        config.choices[method] = tuple(tried)
    if logits:
        schema.add_run(config, "default", schema.make_like(plain, teachers=teachers, **schema.DISTILLATION))
    crd = {"weights": {"crd": 0.8}, "options": {"crd": {"num_negatives": NUM_NEGATIVES}}, "task_weight": 0.0}
    schema.add_run(config, "crd_distil", schema.make_like(plain, teachers=teachers, **crd))
    schema.add_run(config, "crd", schema.make_like(plain, starts_from="crd_distil"))
    schema.add_reported(config, REPORTED, REPORTED_BASELINE, REPORTED_FOR)
    config.seeds = 5
    return schema.with_variant(config, variant)


def has_logits(entry):
    return all(given_run(folder) for folder in given_folders(entry))
