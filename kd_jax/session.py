"""What every program does first: messages of its own, and the programs it compiled last time."""

import logging as std_logging
import os
from pathlib import Path

import jax
from absl import logging


def start() -> None:
    """Progress on the terminal, compiled programs from the cache on disk."""
    _show_own_messages()
    if not jax.config.jax_compilation_cache_dir:  # JAX_COMPILATION_CACHE_DIR names another folder
        folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "kd_jax"))


def _show_own_messages() -> None:
    """Without the prefix of absl and the bookkeeping of orbax."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    package = str(Path(__file__).parent)  # not just the name: .venv may lie in a clone that is called kd_jax
    handler.addFilter(lambda record: record.levelno > std_logging.INFO or record.pathname.startswith(package))
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
