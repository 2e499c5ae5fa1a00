"""Strict numerics for every test: no silent rank promotion, one small CPU."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_platforms", "cpu")
