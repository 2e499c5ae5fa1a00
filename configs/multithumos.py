"""MultiTHUMOS (65 classes, dense, 200 / 213 videos): flow teacher → Augmented-RGB student.

Data:      python -m data_prep.build --dataset=multithumos --annotations=multithumos.json \\
               --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/multithumos
           I3D features, any snippet stride (the public ones: 8 or 16 frames); see data_prep/README.md
Command:   python -m kd_jax.main --config=configs/multithumos.py
Time:      11 s per epoch of plain training, without scoring (2 busy CPU cores, noise features of the real size); GPU
           not yet measured
Protocols: frame mAP
Reported:  44.6 with Augmented-RGB, 37.8 without (frame mAP, the paper's own I3D features)
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="multithumos", data_dir="data/multithumos")
    config.training.update(batch_size=8, learning_rate=5e-4)
    schema.set_runs(config, teacher="flow", student="rgb")
    return schema.with_variant(config, variant, {"published": schema.use_published_weights})
