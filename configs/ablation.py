"""The three levels one by one, in pairs and together (the paper's ablation), 5 seeds.

The word after the colon names the file that gives data, teachers, filter and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/ablation.py:sphere
Data:      as in the other file
Weights:   schema.WEIGHTS
Smoke:     the first level, and all three
"""

import itertools

from kd_jax import config as schema

REPORTED_FOR = "PKU-MMD, event mAP at 0.1"
REPORTED = {"atomic": "82.7", "global_context": "83.7", "boundary": "83.1", "all": "85.5"}
REPORTED_BASELINE = "79.6 (from its gains)"


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    subsets = [terms for count in (1, 2, 3) for terms in itertools.combinations(schema.WEIGHTS, count)]
    for terms in subsets if variant != "smoke" else (subsets[0], subsets[-1]):
        name = "all" if len(terms) == 3 else "_and_".join(terms)
        weights = {term: schema.WEIGHTS[term] for term in terms}
        schema.add_run(config, name, schema.make_like(plain, teachers=teachers, weights=weights))
    schema.add_reported(config, REPORTED, REPORTED_BASELINE, REPORTED_FOR)
    config.seeds = 5
    return schema.with_variant(config, variant)
