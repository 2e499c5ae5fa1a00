"""Commands that prepare data: features from videos, records from annotations and features, weights from other code."""

import kd_jax  # noqa: F401  which makes Ctrl-C end `python -m data_prep.COMMAND` while it imports
