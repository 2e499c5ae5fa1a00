"""Toyota Smarthome Untrimmed (51 classes, dense): flow teacher → Augmented-RGB student.

Data:      python -m data_prep.build --dataset=tsu --annotations=smarthome_CS_51.json \\
               --features=rgb=RGB_DIR --features=flow=FLOW_DIR --output=data/tsu
Command:   python -m kd_jax.main --config=configs/tsu.py
Published: Augmented-RGB 32.8 frame mAP (TSU cross-subject, paper's I3D features; frame mAP up-sampled to frames)
"""

from configs import default


def get_config(variant=""):
    config = default.get_config()
    config.dataset.name = "tsu"
    config.dataset.data_dir = "data/tsu"
    config.runs = default.make_runs(
        flow_teacher=default.make_run("flow"),
        vanilla_rgb=default.make_run("rgb"),
        augmented_rgb=default.make_run("rgb", teachers=("flow_teacher",), weights=default.WEIGHTS),
    )
    config.fusions.two_stream = ("flow_teacher", "vanilla_rgb")
    return default.with_variant(config, variant, {"published": published})


def published(config):
    """The weights of the paper; under our reading of its formulas they outweigh the task loss by far."""
    config.runs.augmented_rgb.weights.update(default.PUBLISHED_WEIGHTS)
    return config
