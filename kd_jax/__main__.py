"""The command `kd-jax`: `kd-jax train --config=tsu` is the same as `python -m kd_jax.main --config=tsu`."""

import importlib
import sys
from collections.abc import Sequence

from kd_jax import __version__, interrupts

COMMANDS = {  # name: (module, what it does)
    "train": ("kd_jax.main", "trains the runs of an experiment and prints its table"),
    "advise": ("kd_jax.advise", "reports after short runs whether distillation helps"),
    "predict": ("kd_jax.predict", "predicts actions in videos or features with a run"),
    "export": ("kd_jax.export", "writes a trained run as files that do not need kd_jax"),
    "analyse": ("kd_jax.analyse", "makes the figures of a finished experiment"),
    "evaluate": ("kd_jax.evaluate", "scores predictions of any tool on public data sets"),
    "report": ("kd_jax.report", "writes an HTML page on finished experiments"),
    "verify": ("kd_jax.verify", "checks that the files of a workdir are whole"),
    "build": ("data_prep.build", "builds records from features and annotations"),
    "convert-annotations": ("data_prep.convert_annotations", "converts annotations to the format of another tool"),
    "extract": ("data_prep.extract", "extracts features from videos or skeletons"),
    "convert-weights": ("data_prep.convert_weights", "converts published weights of encoders"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Imports the chosen command and runs it with the other arguments."""
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command == "--version":
        print(f"kd_jax {__version__}")
    elif command in ("-h", "--help"):
        print("usage: kd-jax COMMAND [OPTIONS]; kd-jax COMMAND --help lists the options\n")
        print("\n".join(f"  {name:<20} {line}" for name, (_, line) in COMMANDS.items()))
    elif command in COMMANDS:
        interrupts.end_at_once(f"kd-jax {command}")
        importlib.import_module(COMMANDS[command][0]).main(arguments)
    else:
        sys.exit(f"kd-jax: unknown command {command!r}; choose one of {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
