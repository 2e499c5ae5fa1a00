"""Flow teacher → RGB student on the embedded synthetic data set: the whole method in about a minute.

Command:   ./run.sh            (or: python -m kd_jax.main --config=configs/demo.py)
Data:      generated from a seed (kd_jax/data/synthetic.py); no download
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.name = "synthetic"
    config.model.hidden = 64
    config.training.update(epochs=24, batch_size=2, learning_rate=2e-3, length_buckets=2, checkpoint_every=8)
    schema.set_runs(config, teacher="flow", student="rgb")
    return schema.with_variant(config, variant)
