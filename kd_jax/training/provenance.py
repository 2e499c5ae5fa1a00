"""provenance.json of a run: when, on which devices and with which versions it was trained, and the files it wrote.

    add_session(directory, after_epoch=0)      # when training starts or continues
    finish(directory, teachers)                # before results.json is written

The checksums find damaged files when the experiment continues, and in `kd_jax.verify`. starts.json of the workdir
(see `clock`) records time, over all runs.
"""

import datetime
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import logging
from etils import epath

from kd_jax import runtime
from kd_jax.files import DamagedFileError, check_regular, read_json, sha256, write_json
from kd_jax.training.fields import Rule, check_fields, is_list, is_name, list_of, mapping_to

FILE = "provenance.json"
_RULES: tuple[Rule, ...] = (
    ("a list", is_list, "sessions?"),
    ("lists of texts by name", mapping_to(list_of(is_name)), "teachers?"),
    ("texts by name", mapping_to(is_name), "files?"),
)
OWN = ("config.json", "results.json", FILE)  # files that hold their own checksum


def read(directory: epath.Path, remedy: str) -> dict:
    """Reads the file, without fields that are null; {} for a run of an older version.

    Raises DamagedFileError, which ends with the remedy, if it cannot be read or a field is out of range.
    """
    content = read_json(directory / FILE, remedy) or {}
    return check_fields(directory / FILE, content, _RULES, remedy)


def add_session(directory: epath.Path, after_epoch: int) -> None:
    """Records the program, the machine and the time of a training that starts, or continues after an epoch."""
    try:
        earlier = read(directory, "its earlier sessions are lost").get("sessions", [])
    except DamagedFileError as error:
        logging.warning("%s", error)
        earlier = []
    session = {"started": _now(), "after_epoch": after_epoch, "command": shlex.join(sys.orig_argv)}
    write_json(directory / FILE, {"sessions": [*earlier, session | {"environment": runtime.environment()}]})


def finish(directory: epath.Path, teachers: Mapping[str, Sequence[str]]) -> None:
    """Records the end of a training, the fingerprints of its teachers' folders and the SHA-256 of every file."""
    known = read(directory, "restore it from a copy")
    names = [name for name in sorted(_files(epath.Path(directory))) if not name.startswith((".", "seed_"))]
    files = {name: sha256(directory / name) for name in names}
    write_json(directory / FILE, known | {"ended": _now(), "teachers": teachers, "files": files})


def written_files(directory: epath.Path) -> dict[str, str]:
    """Returns {name: SHA-256} of what a finished run wrote; {} for a run of an older version."""
    return read(directory, "run its experiment again").get("files", {})


def check_file(directory: epath.Path, name: str, files: Mapping[str, str], remedy: str) -> None:
    """Raises DamagedFileError if a file of a run is missing, or has another checksum than `files`, {name: SHA-256}."""
    path = directory / name
    if not path.exists():
        raise DamagedFileError(f"{path} is missing; {remedy}")
    try:
        check_regular(path)
    except ValueError as error:
        raise DamagedFileError(f"{path} is damaged ({error}); {remedy}") from None
    if files.get(name) not in (None, sha256(path)):
        raise DamagedFileError(f"{path} is not what the run wrote; {remedy}")


def _files(folder: epath.Path, prefix: str = "") -> Iterator[str]:
    """Yields the names of all files in a folder, with `/` between folders; `walk` of a bucket leaves out gs://."""
    for path in folder.iterdir():
        if path.is_dir():
            yield from _files(path, f"{prefix}{path.name}/")
        elif path.name not in OWN:
            yield f"{prefix}{path.name}"


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
