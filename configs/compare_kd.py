"""The paper's comparison (supplementary, Table 1): each distillation method, tuned on the validation videos, 5 seeds.

Data, teachers, filter and budget are those of another file, named after the colon; without one, the demo's.

Command:   python -m kd_jax.main --config=configs/compare_kd.py:sphere
Data:      that of the other file
Tuning:    every method with each of GRID; the table shows the one with the best validation score, mean over the seeds.
           A weight is what `balance='gradient'` makes it: how strongly the method pulls at the student's features, as a
           multiple of what the task does. Methods of several terms share it in equal parts.
CRD:       in two steps as in the paper, distil (`crd_distil`, no task loss), then classify, each with the whole budget;
           it has no weight to tune, and draws NUM_NEGATIVES of the snippets
Smoke:     the first weight of the grid, and the methods of SMOKE
"""

from configs import default

GRID = (0.03, 0.1, 0.3, 1.0, 3.0)
METHODS = {
    "rkd": ("rkd_distance", "rkd_angle"),
    "similarity_preserving": ("similarity_preserving",),
    "skd": ("pairwise_similarity", "soft_cross_entropy", "holistic"),
    "chen": ("soft_cross_entropy", "hint"),
    "logit_distillation": ("logit_distillation",),
    "mars": ("hint",),
    "graph_distillation": ("graph_distillation",),
    "ours": ("atomic", "global_context", "boundary"),
}
SMOKE = ("rkd", "ours")
NUM_NEGATIVES = 1024
OPTIONS = {"skd": {"soft_cross_entropy": {"background_weight": 1.0}}}
PUBLISHED_FOR = "Charades, frame mAP / PKU-MMD, event mAP at 0.1"
PUBLISHED = {
    "rkd": "22.9 / 82.4",
    "similarity_preserving": "22.8 / 81.7",
    "skd": "22.6 / 81.6",
    "chen": "23.4 / 82.2",
    "crd": "23.1 / 82.0",
    "ours": "24.6 / 85.5",
}
PUBLISHED_BASELINE = "22.3 / 79.6 (from its gains)"


def get_config(variant=""):
    config, teachers, plain, variant = default.from_other(variant)
    grid, methods = (GRID[:1], SMOKE) if variant == "smoke" else (GRID, METHODS)
    for method in methods:
        for weight in grid:
            config.runs[run_name(method, weight)] = default.make_like(
                plain,
                teachers=teachers,
                weights=dict.fromkeys(METHODS[method], weight / len(METHODS[method])),
                options=OPTIONS.get(method, {}),
                balance="gradient",
            )
        config.choices[method] = tuple(run_name(method, weight) for weight in grid)
    config.runs.crd_distil = default.make_like(
        plain,
        teachers=teachers,
        weights={"crd": 0.8},
        options={"crd": {"num_negatives": NUM_NEGATIVES}},
        task_weight=0.0,
    )
    config.runs.crd = default.make_like(plain, starts_from="crd_distil")
    default.publish(config, PUBLISHED, PUBLISHED_BASELINE, PUBLISHED_FOR)
    config.seeds = 5
    return default.with_variant(config, variant)


def run_name(method, weight):
    return f"{method}_{weight:g}".replace(".", "p")
