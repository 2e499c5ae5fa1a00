"""A small experiment that distils, for tests that run it several times: --config=tests/teacher_and_student.py."""

from kd_jax import config as schema


def get_config(variant="smoke"):
    config = schema.load("demo", variant)
    with config.unlocked():
        del config.runs.vanilla_rgb, config.fusions.two_stream
        config.baseline = ""
        config.model.update({"hidden": 8, "num_layers": 2})
        config.runs.augmented_rgb.weights.update({"atomic": 1.0, "global_context": 1.0, "boundary": 0.02})
    return config
