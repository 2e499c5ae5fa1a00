"""SPHERE: wrist accelerometer teacher → video student, 20 dense actions, ten half-hour recordings, 5 seeds.

Data:      the SPHERE Challenge training data as one .npy per recording and modality (data_prep/README.md)
           python -m data_prep.build --dataset=custom --annotations=sphere/annotations.json \\
               --classes=sphere/classes.txt --features=video=sphere/video \\
               --features=accelerometer=sphere/accelerometer --output=data/sphere
Command:   python -m kd_jax.main --config=configs/sphere.py         the default; the levels, published and tuned
           python -m kd_jax.main --config=configs/sphere.py:tune    the grid from which TUNED was chosen
"""

from kd_jax import config as schema

TEACHER = "accelerometer_teacher"
# The best of each term's grid (`:tune`) by validation frame mAP, mean of two seeds. Test videos were not used.
TUNED = {"atomic": 1.0, "global_context": 0.1, "boundary": 0.002}
GRID = {
    "atomic": (0.1, 0.3, 1.0, 3.0, 10.0),
    "global_context": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
    "boundary": (0.0005, 0.002, 0.005, 0.02, 0.05, 0.2),
}


def student(weights):
    return schema.make_run("video", teachers=(TEACHER,), weights=weights)


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(data_dir="data/sphere", validation_fraction=0.3)
    config.model.hidden = 64
    config.training.update(epochs=80, batch_size=1, learning_rate=3e-3, length_buckets=1, checkpoint_every=20)
    config.seeds = 5
    schema.set_runs(config, teacher="accelerometer", student="video")
    for kind, weights in {"tuned": TUNED, "published": schema.PUBLISHED_WEIGHTS}.items():
        for term, weight in weights.items():
            config.runs[f"{term}_{kind}"] = student({term: weight})
        config.runs[f"all_{kind}"] = student(weights)
    return schema.with_variant(config, variant, {"tune": tune})


def tune(config):
    """Make one run for each term and weight of GRID, to choose by the validation column."""
    config.seeds = 2
    config.runs = schema.make_runs(**{name: config.runs[name] for name in (TEACHER, config.baseline)})
    for term, weights in GRID.items():
        for weight in weights:
            config.runs[f"{term}_{weight:g}".replace(".", "p")] = student({term: weight})
    return config
