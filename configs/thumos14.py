"""THUMOS14 (20 classes, sparse, 200 / 213 videos): flow teacher → Augmented-RGB student, softmax with background.

Data:      python -m data_prep.build --dataset=thumos14 --annotations=thumos14.json \\
               --features=rgb+flow=I3D_DIR --output=data/thumos14
           I3D features [T, 2048] = rgb ‖ flow of 16 frames, one snippet every 4 frames (ActionFormer, OpenTAD)
Command:   python -m kd_jax.main --config=configs/thumos14.py
Time:      35 s per epoch of plain training, without scoring (2 busy CPU cores, noise features of the real size); GPU
           not yet measured
Protocols: detection mAP at tIoU 0.3:0.1:0.7, and at 0.1:0.1:0.5 as in the challenge's kit; frame mAP
Reported:  no result of this method was found
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="thumos14", data_dir="data/thumos14")
    config.training.batch_size = 4
    config.evaluation.proposals = "classes"  # detections of each class, which may overlap
    config.evaluation.convention = "start"  # data_prep.build centres snippet i at i strides
    schema.set_runs(config, teacher="flow", student="rgb")
    return schema.with_variant(config, variant, {"published": schema.use_published_weights})
