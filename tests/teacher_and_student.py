"""The smallest experiment that distils, for tests that run it several times: --config=tests/teacher_and_student.py."""

from configs import demo


def get_config(variant="smoke"):
    config = demo.get_config(variant)
    with config.unlocked():
        del config.runs.vanilla_rgb, config.fusions.two_stream
        config.baseline = ""
    return config
