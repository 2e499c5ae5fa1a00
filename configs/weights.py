"""A study of term weights: every form of the three levels with published, tuned and balanced weights, 5 seeds.

The word after the colon names the file that gives data, teachers, filter and budget. Without one it is the demo.

Command:   python -m kd_jax.main --config=configs/weights.py:sphere
Data:      as in the other file
Rows:      FORM_published: the weight of the paper. FORM_tuned: the published weight times the factor of FACTORS with
           the best validation score, mean over seeds. all_tuned: the three published weights times one factor.
           LEVEL_pulls_SHARE: `balance='gradient'`, where the term's gradient at the student's features is SHARE times
           that of the task; all three levels together share it equally.
Smoke:     the first factor and share, and the last form of each level; balanced only for all three levels
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
