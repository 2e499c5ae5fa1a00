"""How much should a term weigh? Every form of the three levels at the published weights, tuned, and balanced; 5 seeds.

Data, teachers, filter and budget are those of another file, named after the colon; without one, the demo's.

Command:   python -m kd_jax.main --config=configs/weights.py:sphere
Data:      that of the other file
Rows:      FORM_published: the weight of the paper. FORM_tuned: the published weight times the one of FACTORS with the
           best validation score, mean over the seeds; all_tuned: the three published weights times one of them.
           LEVEL_pulls_SHARE: `balance='gradient'`, the term pulls SHARE
           times as strongly at the student's features as the task; all three levels share it in equal parts.
Smoke:     the first factor and share, the last form of each level, and balanced only all three
"""

from kd_jax import config as schema

FORMS = {
    "atomic_nce": ("atomic", {}),
    "atomic_infonce": ("atomic", {"form": "infonce"}),
    "atomic_margin": ("atomic", {"form": "margin"}),
    "atomic_margin_normalized": ("atomic", {"form": "margin", "normalize": True}),
    "global_context_channel": ("global_context", {}),
    "global_context_snippet": ("global_context", {"relation": "snippet"}),
    "boundary_curve": ("boundary", {}),
    "boundary_vector": ("boundary", {"form": "vector"}),
}
FACTORS = (1 / 3000, 1 / 300, 1 / 30)
SHARES = (0.1, 0.3, 1.0)
LEVELS = {**{level: (level,) for level in schema.WEIGHTS}, "all": tuple(schema.WEIGHTS)}


def get_config(variant=""):
    config, teachers, plain, variant = schema.from_other(variant)
    smoke = variant == "smoke"
    forms = {level: form for form, (level, _) in FORMS.items()}.values() if smoke else FORMS
    factors, shares, balanced = (FACTORS[:1], SHARES[:1], ["all"]) if smoke else (FACTORS, SHARES, LEVELS)

    def add(name, weights, **changes):
        schema.add_run(config, name, schema.make_like(plain, teachers=teachers, weights=weights, **changes))

    published = {form: {level: schema.PUBLISHED_WEIGHTS[level]} for form, (level, _) in FORMS.items() if form in forms}
    for form, weights in {**published, "all": schema.PUBLISHED_WEIGHTS}.items():
        options = dict([FORMS[form]]) if form in FORMS else {}
        add(f"{form}_published", weights, options=options)
        tried = {f"{form}_published_over_{round(1 / factor)}": factor for factor in factors}
        for name, factor in tried.items():
            add(name, {level: weight * factor for level, weight in weights.items()}, options=options)
        config.choices[f"{form}_tuned"] = tuple(tried)
    for share in shares:
        for name in balanced:
            weights = dict.fromkeys(LEVELS[name], share / len(LEVELS[name]))
            add(f"{name}_pulls_{share:g}".replace(".", "p"), weights, balance="gradient")
    config.seeds = 5
    config.training.gradient_norms = True
    return schema.with_variant(config, variant)
