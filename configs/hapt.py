"""HAPT: accelerometer teacher → gyroscope student (smartphone), 12 sparse actions with background, 5 seeds.

Data:      61 recordings of 30 people, six activities and six postural transitions (UCI, Reyes-Ortiz et al., 2015), as
           one .npy per recording and modality, snippets of 0.5 s
           python -m data_prep.build --dataset=custom --head=sparse --annotations=hapt/annotations.json \\
               --classes=hapt/classes.txt --features=accelerometer=hapt/accelerometer \\
               --features=gyroscope=hapt/gyroscope --output=data/hapt
Command:   python -m kd_jax.main --config=configs/hapt.py
           --config.evaluation.proposals=background
               proposals where 1 - background >= 0.4; needs no new training
Protocols: event mAP at 0.1, 0.3, 0.5, frame mAP
"""

from kd_jax import config as schema

TEACHER = "accelerometer_teacher"


def get_config(variant=""):
    config = schema.get_config()
    config.dataset.data_dir = "data/hapt"
    config.model.hidden = 64
    config.training.update(epochs=20, batch_size=1, learning_rate=3e-3, length_buckets=2, checkpoint_every=10)
    config.evaluation.protocols = ("event_map", "frame_map")
    config.evaluation.proposals = "classes"  # activities follow each other without background between them
    config.seeds = 5
    schema.set_runs(config, teacher="accelerometer", student="gyroscope")
    for term, weight in schema.WEIGHTS.items():
        config.runs[term] = schema.make_run("gyroscope", teachers=(TEACHER,), weights={term: weight})
    config.runs.all = schema.make_run("gyroscope", teachers=(TEACHER,), weights=schema.WEIGHTS)
    return schema.with_variant(config, variant)
