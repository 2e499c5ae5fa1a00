"""The estimates of memory refuse what cannot fit, and nothing that can."""

import jax
import jax.numpy as jnp
import pytest

from kd_jax import config as schema
from kd_jax.data.source import open_source
from kd_jax.training import memory
from kd_jax.training.plan import make_manifest, make_program

FILES = sorted(path.stem for path in schema.FOLDER.glob("*.py"))
LENGTHS = (12_000, *[1_000] * 2_000)  # longer than any video of a shipped data set, and more videos of TSU's length


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_every_shipped_config_passes_with_16_gib(name, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 16 * 2**30)
    config = schema.load(name)
    modalities = sorted({run.modality for run in config.runs.values()})
    options = {"validation_fraction": 0.2, "validation_seed": 0, "synthetic_fallback": True}
    source = open_source("tsu", "missing", modalities, **options)
    widths = {name: run.hidden or config.model.hidden for name, run in config.runs.items()}
    for name, run in config.runs.items():
        manifest = make_manifest(config, name, config.seed, source) | {"input_size": 2048}
        program = make_program(config.training, [manifest], len(LENGTHS), sum(LENGTHS))
        members = [config.fusions.get(teacher, (teacher,))[0] for teacher in run.teachers]
        taught = tuple((widths.get(teacher, 1024), manifest["model"]["num_outputs"]) for teacher in members)
        classes = len(source.info.classes)
        memory.check_run(program, memory.Shapes(2048, classes, taught, LENGTHS, config.training.batch_size))


def test_a_compiled_program_that_does_not_fit_is_refused(monkeypatch):
    x = jax.ShapeDtypeStruct((2**16, 2**16), jnp.float32)
    compiled = jax.jit(lambda x: x @ x.T).lower(x).compile()
    monkeypatch.setattr(memory, "device_memory", lambda: 2**31)
    with pytest.raises(MemoryError, match="training takes 16.0 GiB of 2.0 GiB of memory; lower training.batch_size"):
        memory.check_compiled(compiled)


def test_videos_that_do_not_fit_are_refused():
    memory.check_videos(memory.device_memory())
    with pytest.raises(MemoryError, match="training.data='resident': the training videos take .*; set it to 'auto'"):
        memory.check_videos(memory.device_memory() + 1)
