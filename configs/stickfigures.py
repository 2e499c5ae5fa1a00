"""Flow and pose teachers → RGB student on videos of stick figures that the project draws pixel by pixel.

Command:   ./run.sh demo-video      draws the videos, extracts the features, trains, predicts from one of the videos
           python -m kd_jax.main --config=configs/stickfigures.py         trains from existing records
Data:      data/stickfigures/records, from `python -m data_prep.stickfigures`, `.extract` and `.build` (as in run.sh)
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(data_dir="data/stickfigures/records", validation_fraction=0.25)
    config.model.hidden = 64
    config.training.update(epochs=200, batch_size=4, learning_rate=1e-3, length_buckets=1, checkpoint_every=50)
    schema.set_runs(config, teacher="flow", student="rgb")
    config.runs.pose_teacher = schema.make_run("pose")
    config.runs.augmented_rgb.teachers = ("flow_teacher", "pose_teacher")
    config.seeds = 3
    return schema.with_variant(config, variant)
