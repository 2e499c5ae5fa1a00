"""Options of the commands: argparse with error messages of one sentence.

options = Parser("kd_jax.predict", "Predict actions in videos.")
options.add_argument("--batch_size", type=at_least(1), default=8)
options.add_argument("--output", type=disk_path)                     # every option that is a path has such a type
given = options.parse_args(argv)
"""

import argparse
import contextlib
import difflib
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from kd_jax.files import checked_path, is_address

LONGEST_WORD = 500  # characters; messages shorten longer words, and a path may be as long


class _Formatter(argparse.HelpFormatter):
    """Fits the paragraphs of a description to the terminal; indented ones, which are examples, stay as they are."""

    def _fill_text(self, text, width, indent):
        fill = super()._fill_text
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(p if p.startswith(" ") else fill(p, width, indent) for p in paragraphs)


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations; a mistake ends the program with one sentence and exit code 1."""

    def __init__(self, prog: str, description: str | None):
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Formatter)

    def _get_formatter(self) -> argparse.HelpFormatter:
        """Names the command in the usage as the user has typed it."""
        is_typed = Path(sys.argv[0]).name == "kd-jax" and len(sys.argv) > 1
        return _Formatter(f"kd-jax {sys.argv[1]}" if is_typed else f"python -m {self.prog}")

    def error(self, message: str) -> NoReturn:
        sys.exit(f"{self.prog}: {shorten(message.removeprefix('argument '))}")

    def parse_args(self, args=None, namespace=None):
        given, unknown = self.parse_known_args(args, namespace)
        self.refuse(unknown)
        return given

    def refuse(self, unknown: Sequence[str]) -> None:
        """Ends the program if there are arguments that no option reads."""
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            closest = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1)
            remedy = f"did you mean {closest[0]}?" if closest else "options are written --NAME=VALUE, see --help"
            self.error(f"unexpected argument {unknown[0]!r}; {remedy}")


def shorten(message: str) -> str:
    """Returns a message with the first and last letters of words that would fill the screen, such as huge numbers."""
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda word: f"{word[0][:40]}…{word[0][-20:]}", message)


def any_path(text: str) -> str:
    """Reads a path on a disk or gs://BUCKET/PATH; `~` is the home folder."""
    try:
        return checked_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def disk_path(text: str) -> str:
    """Reads a path on a disk; `~` is the home folder."""
    if is_address(text):
        raise argparse.ArgumentTypeError(
            f"{text} is not a path on a disk; name a folder or file here, and copy it there or back"
        )
    return any_path(text)


def named_path(text: str) -> str:
    """Reads NAME=PATH with a path on a disk; the form is checked by its reader."""
    name, equals, path = text.partition("=")
    return f"{name}={disk_path(path)}" if equals else text


def named_number(text: str) -> tuple[str, float]:
    """Reads a number above 0, or NAME=NUMBER, as (NAME or '', number)."""
    name, _, value = text.rpartition("=")
    return name, positive(value)


def at_least(lowest: int) -> Callable[[str], int]:
    """Returns a reader of integers that are not below `lowest`."""

    def read(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (value := int(text)) >= lowest:
                return value
        raise argparse.ArgumentTypeError(f"{text} must be an integer of at least {lowest}")

    return read


def between(lowest: float, highest: float) -> Callable[[str], float]:
    """Returns a reader of numbers from `lowest` to `highest`."""

    def read(text: str) -> float:
        value = _number(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text} must be a number from {lowest:g} to {highest:g}")
        return value

    return read


def positive(text: str) -> float:
    """Reads a finite number above 0."""
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} must be a finite number above 0")
    return value


def _number(text: str) -> float:
    """The number that a text represents; NaN if it represents none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_run(options: argparse.ArgumentParser) -> None:
    """Adds the options that name what `kd_jax.load` reads: --run and --seeds."""
    what = "A finished run, WORKDIR/RUN, a seed of it, WORKDIR/RUN/seed_N, or WORKDIR/FUSION."
    options.add_argument("--run", type=any_path, help=what)
    what = "all: the mean logits of all seeds of the run (one)."
    options.add_argument("--seeds", choices=["one", "all"], default="one", help=what)
