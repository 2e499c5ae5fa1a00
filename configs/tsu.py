"""Toyota Smarthome Untrimmed (51 classes, dense): flow teacher → Augmented-RGB student.

Data:      python -m data_prep.build --dataset=tsu --annotations=smarthome_CS_51.json \\
               --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/tsu
           or smarthome_CV_51.json; I3D features of 16 frames, one snippet every 16 frames
Command:   python -m kd_jax.main --config=configs/tsu.py
Time:      54 s per epoch of plain training, without scoring (2 busy CPU cores, noise features of the real size); GPU
           not yet measured
Protocols: frame mAP after up-sampling to frames (the benchmark's protocol), frame mAP at snippets, event mAP
Reported:  32.8 with Augmented-RGB (cross-subject, the paper's own I3D features)
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="tsu", data_dir="data/tsu")
    schema.set_runs(config, teacher="flow", student="rgb")
    return schema.with_variant(config, variant, {"published": schema.use_published_weights})
