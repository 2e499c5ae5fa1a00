"""Cross-modal knowledge distillation for temporal action detection, in JAX and Flax.

One detector, one step, one mask: `python -m kd_jax.main --config=configs/tsu.py` trains the teachers, the plain student
and the distilled one. README.md is the guide; the import order of the modules is asserted by tests/layering_test.py.
"""

__version__ = "0.1.0"
