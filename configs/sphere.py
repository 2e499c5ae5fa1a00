"""SPHERE: wrist accelerometer teacher → video student, 20 dense actions, ten half-hour recordings, 5 seeds.

Data:      the SPHERE Challenge training data as one .npy per recording and modality (data_prep/README.md)
           python -m data_prep.build --dataset=custom --annotations=sphere/annotations.json \\
               --classes=sphere/classes.txt --features=video=sphere/video \\
               --features=accelerometer=sphere/accelerometer --output=data/sphere
Command:   python -m kd_jax.main --config=configs/sphere.py
"""

from configs import default

TERMS = ("atomic", "global_context", "boundary")


def get_config(variant=""):
    config = default.get_config()
    config.dataset.data_dir = "data/sphere"
    config.dataset.validation_fraction = 0.3
    config.model.hidden = 64
    config.model.standardize = True
    config.training.epochs = 60
    config.training.batch_size = 2
    config.training.learning_rate = 1e-3
    config.training.length_buckets = 1
    config.training.checkpoint_every = 20
    config.seeds = 5
    config.runs = default.make_runs(
        accelerometer_teacher=default.make_run("accelerometer"),
        vanilla_video=default.make_run("video"),
    )
    config.baseline = "vanilla_video"
    config.fusions.two_stream = ("accelerometer_teacher", "vanilla_video")
    return default.with_variant(config, variant)
