"""UTD-MHAD: pose teacher → depth or inertial student, 27 actions in untrimmed sequences of 8 subjects, 5 seeds.

Data:      the clips of the public archive (Chen, Jafari, Kehtarnavaz, 2015), joined to 32 sequences of two minutes
           python -m data_prep.build --dataset=utd_mhad --archive=UTD-MHAD --output=data/utd_mhad
           Other records with the modalities depth, pose and inertial, and videos named s<subject>_t<trial>, which
           --dataset=custom builds from annotations.json and features: --config.dataset.data_dir=DIR
Command:   python -m kd_jax.main --config=configs/utd_mhad.py             depth; from pose, and from pose and inertial
           python -m kd_jax.main --config=configs/utd_mhad.py:inertial    inertial, from pose
Split:     subjects 1, 3, 5, 7 for training, subjects 2, 4, 6, 8 for testing; the last epoch is kept. A held-out
           subject as validation:
           --config.dataset.validation_fraction=0.25 --config.dataset.validation_groups='^s\\d+'
Protocols: frame mAP; event mAP at 0.1, 0.3, 0.5
"""

from kd_jax import config as schema

TEACHER, SECOND = "pose_teacher", "inertial_teacher"


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.update(name="utd_mhad", data_dir="data/utd_mhad", validation_fraction=0.0)
    config.model.hidden = 64
    config.training.update(epochs=80, learning_rate=3e-3, length_buckets=1, checkpoint_every=20)
    config.seeds = 5
    add_runs(config, "depth")
    config.runs[SECOND] = schema.make_run("inertial")
    shared = schema.soft_labels(0.25, schema.WEIGHTS)  # from each of two teachers
    config.runs.two_teachers = schema.make_run("depth", teachers=(TEACHER, SECOND), **shared)
    return schema.with_variant(config, variant, {"inertial": lambda config: add_runs(config, "inertial")})


def add_runs(config, student):
    """Set the runs: the pose teacher, the plain student, the default distillation, and each of its levels alone."""
    schema.set_runs(config, teacher="pose", student=student)
    for term, weight in schema.WEIGHTS.items():
        config.runs[term] = schema.make_run(student, teachers=(TEACHER,), weights={term: weight})
    return config
