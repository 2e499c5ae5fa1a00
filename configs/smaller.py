"""Students of full, half and quarter width, plain and distilled, 3 seeds: what a smaller model costs.

The word after the colon names the file that gives data, teachers, filter and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/smaller.py:sphere
           python -m benchmarks.smaller --config=smaller:sphere     also measures the latency of each on this machine
Data:      as in the other file
Gain:      of each distilled student over the plain one of its width
Terms:     the teacher's probabilities and the boundary curves; both compare students with teachers of another width
Smoke:     quarter width
"""

from kd_jax import config as schema

WIDTHS = {"full": 1, "half": 2, "quarter": 4}  # {name: what the width is divided by}


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    hidden = plain.hidden or config.model.hidden
    for name, divisor in WIDTHS.items():
        if variant == "smoke" and name != "quarter":
            continue
        changes = {"hidden": max(2, hidden // divisor // 2 * 2)} if divisor > 1 else {}  # bilstm needs an even number
        baseline = f"{name}_plain" if changes else config.baseline
        if changes:
            schema.add_run(config, baseline, schema.make_like(plain, **changes))
        terms = schema.soft_labels(schema.SHARE, {"boundary": schema.WEIGHTS["boundary"]})
        distilled = {"teachers": teachers, "baseline": baseline, **terms}
        schema.add_run(config, f"{name}_distilled", schema.make_like(plain, **changes, **distilled))
    config.seeds = 3
    return schema.with_variant(config, variant)
