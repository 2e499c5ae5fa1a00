"""The main job: python -m kd_jax.main --config=configs/demo.py [--workdir=DIR] [--config.FIELD=VALUE …]

Trains the experiment's runs, evaluates them, prints one table. The same command again continues what was interrupted.
"""

import logging as std_logging
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from kd_jax import experiment

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, e.g. configs/demo.py or configs/tsu.py:smoke."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the results; default: workdir/<name of the config>.")
_RESUME = flags.DEFINE_bool("resume", True, "Continue what is half done; --noresume trains every run anew.")


def parse_flags(argv):
    """absl's parser, with mistakes in a config told in one sentence instead of a traceback."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, OSError, ImportError, SyntaxError, ValueError) as error:
        text = str(error).strip()
        if "Traceback" in text:
            text = text.splitlines()[-1]  # ml_collections quotes the traceback of a config file: the reason stands last
        sys.exit(f"kd_jax.main: {' '.join(text.split())}")
    except (AttributeError, KeyError, TypeError) as error:
        fields = ", ".join(a.split("=")[0] for a in argv if a.startswith("--config."))
        hint = " ".join(str(error).strip("\"'").replace("\\n", " ").split())
        sys.exit(
            f"kd_jax.main: the config has no such field ({hint}) among {fields}; configs/default.py lists them all"
        )


def show_own_messages() -> None:
    """Progress on the terminal without the prefix of absl and without the bookkeeping of orbax."""
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    package = str(Path(__file__).parent)  # not just the name: .venv may lie in a clone that is called kd_jax
    handler.addFilter(lambda record: record.levelno > std_logging.INFO or record.pathname.startswith(package))
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))


def main(argv):
    if len(argv) > 1:
        sys.exit(f"kd_jax.main: unexpected argument {argv[1]!r}; options start with --")
    if _CONFIG.value is None:
        sys.exit("kd_jax.main: name an experiment, e.g. --config=configs/demo.py")
    show_own_messages()
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).name
    workdir = Path(_WORKDIR.value or f"workdir/{name.replace('.py:', '_').removesuffix('.py')}")
    try:
        source = experiment.prepare(_CONFIG.value, workdir, _RESUME.value)
    except (ValueError, OSError) as error:
        sys.exit(f"kd_jax.main: {error}")
    results = experiment.perform(_CONFIG.value, workdir, source, _RESUME.value)
    print(f"\n{experiment.markdown(results)}\nSaved in {workdir}/results.md and results.json.")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
