"""From what a data set's owner gives you to the records that kd_jax reads."""
