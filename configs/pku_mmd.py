"""PKU-MMD (51 classes, sparse, cross-subject 944 / 132 videos): flow teacher → Augmented-RGB student.

Data:      python -m data_prep.build --dataset=pku_mmd --annotations=Train_Label_PKU_final \\
               --annotations=cross-subject.txt --features=rgb=RGB_DIR --features=flow=FLOW_DIR \\
               --features=pose=POSE_DIR --output=data/pku_mmd
           I3D (1024-d) and AGCN (256-d) features, one snippet every 16 frames at 30 frames per second
Command:   python -m kd_jax.main --config=configs/pku_mmd.py          flow teacher
           python -m kd_jax.main --config=configs/pku_mmd.py:pose     3D pose teacher
Time:      43 s per epoch of plain training, without scoring (2 busy CPU cores, noise features of the real size); GPU
           not yet measured
Protocols: event mAP at 0.1, 0.3, 0.5 (as the official script, including its quirks); frame mAP
Reported:  event mAP@0.1 85.5 with Augmented-RGB, 79.6 without (the paper's own features)
"""

from kd_jax import config as schema


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="pku_mmd", data_dir="data/pku_mmd")
    config.training.update(batch_size=8, epochs=100)
    schema.set_runs(config, teacher="flow", student="rgb")
    pose = {"pose": lambda config: schema.set_runs(config, teacher="pose", student="rgb")}
    return schema.with_variant(config, variant, {**pose, "published": schema.use_published_weights})
