"""Charades (157 classes, dense, 7,985 / 1,863 videos): flow teacher → Augmented-RGB student.

Data:      python -m data_prep.build --dataset=charades --annotations=charades.json \\
               --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/charades
           or --annotations=Charades_v1_train.csv --annotations=Charades_v1_test.csv; see data_prep/README.md
           I3D features, one snippet every 8 frames (the public ones) or 16, at 24 frames per second
Command:   python -m kd_jax.main --config=configs/charades.py
Time:      75 s per epoch of plain training, without scoring (2 busy CPU cores, noise features of the real size); GPU
           not yet measured
Protocols: Charades v1 localize (25 instants per video), frame mAP
Reported:  24.6 with Augmented-RGB, 22.3 without (localize mAP, the paper's own I3D features)
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="charades", data_dir="data/charades")
    config.training.update(epochs=100, batch_size=32, learning_rate=1e-4)
    config.evaluation.batch_size = 32
    schema.set_runs(config, teacher="flow", student="rgb")
    return schema.with_variant(config, variant, {"published": schema.use_published_weights})
