"""The paper's sensitivity (supplementary, Figure 6): each weight α on a grid and the number of negatives N, 5 seeds.

The word after the colon names the file that gives data, teachers, filter and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/sensitivity.py:sphere
           kd-jax analyse --workdir=workdir/sensitivity_sphere --figures=sensitivity
Data:      as in the other file
Rows:      all: the three levels with schema.WEIGHTS and N = 1. LEVEL_FACTOR: the same, but this level has its published
           weight times a factor of FACTORS. negatives_N: the same as `all`, but with N negatives per snippet.
Result:    on the demo with 3 seeds, 10 minutes on 2 CPU cores: docs/analysis.md
Smoke:     the smallest and the largest factor of the first level, and the largest N
"""

from kd_jax import config as schema

FACTORS = {0.0: "0", 1 / 3000: "1_over_3000", 1 / 1000: "1_over_1000", 1 / 300: "", 1 / 100: "1_over_100"}
FACTORS |= {1 / 30: "1_over_30", 1 / 10: "1_over_10", 1.0: "published"}  # "" is the factor of schema.WEIGHTS
NEGATIVES = (2, 4, 8, 16)


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    smoke = variant == "smoke"
    levels = list(schema.WEIGHTS)[: 1 if smoke else None]
    factors = [factor for factor, name in FACTORS.items() if name]
    factors, negatives = (factors[:: len(factors) - 1], NEGATIVES[-1:]) if smoke else (factors, NEGATIVES)

    def add(name, **changes):
        schema.add_run(config, name, schema.make_like(plain, teachers=teachers, **changes))

    add("all", weights=schema.WEIGHTS)
    for level in levels:
        for factor in factors:
            weights = {**schema.WEIGHTS, level: schema.PUBLISHED_WEIGHTS[level] * factor}
            add(f"{level}_{FACTORS[factor]}", weights=weights)
    for count in negatives:
        add(f"negatives_{count}", weights=schema.WEIGHTS, options={"atomic": {"num_negatives": count}})
    config.seeds = 5
    return schema.with_variant(config, variant)
