"""Which modality the names of feature files state, so that files of several modalities are not read as one.

check_modality(folder, files, given="i3d", is_stated=False)   # ValueError for a_rgb.npy next to a_flow.npy
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePath

from kd_jax.data.checks import Findings
from kd_jax.data.feature_folders import VIDEO, FeatureFolder
from kd_jax.data.manifests import read_manifest

# Words that name a modality, next to the modality that the files are read as.
WORDS = (
    "rgb", "flow", "pose", "skeleton", "joints", "depth", "infrared", "thermal", "ir", "audio", "acc", "accel",
    "accelerometer", "gyro", "gyroscope", "imu", "inertial", "tvl1", "raft",
)  # fmt: skip


def named_modality(name: str, modality: str) -> str | None:
    """Returns the last word in a name that names a modality, 'rgb' in 'i3d/a_RGB.npy'; None without one.

    A word is between characters that are not letters. `modality` is one more word.
    """
    words = sorted({modality.lower(), *WORDS}, key=len, reverse=True)
    form = rf"(?<![a-z])(?:{'|'.join(map(re.escape, words))})(?![a-z])"
    found = re.findall(form, name.lower())
    return found[-1] if found else None


def check_modality(folder: FeatureFolder, files: Mapping[str, Path], given: str, *, is_stated: bool) -> None:
    """Raises ValueError, with the remedy, unless all files are of the modality of the folder, as far as names show.

    A manifest of `data_prep.extract` comes first, then the names of the file or array and its subfolders, then those of
    the last two folders of the place. A pattern after `MODALITY=` leaves nothing to names.

    Args:
      folder: of one modality.
      files: {video: file}.
      given: how the user wrote the place.
      is_stated: whether the user wrote MODALITY=PLACE.
    """
    (modality,) = folder.modalities
    own: str | None
    examples: dict[str | None, str] = {}  # {modality, None if nothing shows it: a file}
    found = [(video, file) for video, one in files.items() for file in dict.fromkeys([*folder.find(video), one])]
    manifests: dict[str, Path] = {}  # {modality: a manifest that states it}
    for video, file in found:
        if manifest := read_manifest(file, Findings()):
            manifests.setdefault(own := str(manifest["modality"]).lower(), file.with_suffix(".json"))
        elif is_stated and (folder.pattern or folder.is_file):
            continue
        else:
            own = _named(folder, file, video, modality)
        examples.setdefault(own, folder.place(file, video))
    if len(examples) > 1:
        shown = " and ".join(f"{place} ({name or 'none in its name'})" for name, place in [*examples.items()][:2])
        example = f"{modality}={_pattern(folder, files, modality)}"
        remedy = f"state which to read by a pattern, such as --features={shlex.quote(example)}"
        raise ValueError(f"--features={given} has files of different modalities, {shown}; {remedy}")
    if manifests and modality.lower() not in manifests:
        ((named, path),) = manifests.items()
        what = f"{path} says that they are features of {named}, and the run reads {modality}"
        raise ValueError(f"--features={given}: {what}; give those of {modality}")
    name = next(iter(examples), None) or named_modality(_typed(folder), modality)
    if name not in (None, modality.lower()) and not is_stated:
        example = f"--features={shlex.quote(f'{modality}={given}')}"
        what = f"names {name}, and the run reads {modality}; if these are features of {modality}, give {example}"
        raise ValueError(f"--features={given} {what}")


def _typed(folder: FeatureFolder) -> str:
    """Returns the last two folders of a place as the user wrote it; further ones may be named after anything."""
    place = folder.path.parent if folder.path.is_file() and not folder.is_file else folder.path
    return "/".join(place.parts[-2:]) or place.absolute().name


def _named(folder: FeatureFolder, file: Path, video: str, modality: str) -> str | None:
    below = file.relative_to(folder.path) if file.is_relative_to(folder.path) and file != folder.path else file.name
    name = folder.array_of(video) if folder.is_file else f"{below}/{folder.array_of(video)}"
    return named_modality(name, modality)


def _pattern(folder: FeatureFolder, files: Mapping[str, Path], modality: str) -> str:
    """Returns a pattern of the files that name the modality, as `_rgb` of a_rgb.npy; of all files if none does."""
    places = {video: PurePath(file) for video, file in files.items()}
    names = {video: folder.array_of(video) if folder.is_file else place.name for video, place in places.items()}
    own = next((video for video in names if named_modality(names[video], modality) == modality.lower()), None)
    if own is None:
        others = (place for place in places.values() if named_modality(str(place.parent), modality) == modality.lower())
        place = next(others, next(iter(places.values())))
        return f"{place}:{VIDEO}" if folder.is_file else f"{place.parent}/{VIDEO}{place.suffix}"
    name, suffix = names[own], "" if folder.is_file else places[own].suffix
    (*_, found) = re.finditer(rf"(?<![a-z]){re.escape(modality)}(?![a-z])", name, re.IGNORECASE)
    before, after = name[: found.start()], name[found.end() :]
    kept = f"{VIDEO}{before[-1]}{found[0]}{after}" if before else f"{found[0]}{after[:1]}{VIDEO}{suffix}"
    return f"{places[own]}:{kept}" if folder.is_file else f"{places[own].parent}/{kept}"
