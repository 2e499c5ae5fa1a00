"""Which files of a folder are videos or skeletons.

files, failed, notes = files_of(Path("films"), "rgb")      # {"kitchen": Path("films/kitchen.mp4")}
"""

import collections
from collections.abc import Sequence
from pathlib import Path

from kd_jax.video import skeletons, videos


def files_of(source: Path, modality: str) -> tuple[dict[str, Path], dict[str, str], list[str]]:
    """Lists the files to extract features of: one file, or those of a folder with the ending of videos or skeletons.

    A folder of numbered pictures is a video, see `videos.picture_files`.

    Returns:
      {name of the features: file}; {name: error} for names that two files would have; notes on files and folders that
      are left out. It raises FileNotFoundError if there are no files.
    """
    if source.is_file() or (modality != "pose" and videos.is_frame_folder(source)):
        return {videos.name_of(source): source}, {}, []
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: there is no such folder or file")
    kind, suffixes = ("skeleton", skeletons.SUFFIXES) if modality == "pose" else ("video", videos.SUFFIXES)
    paths = [path for path in sorted(source.iterdir()) if not path.name.startswith(".")]
    folders = [path for path in paths if path.is_dir()]
    if modality != "pose" and not any(path.suffix.lower() in suffixes for path in paths if path.is_file()):
        folders = [path for path in folders if not videos.is_frame_folder(path)]  # next to videos they are thumbnails
    others = [path for path in paths if path.suffix.lower() not in suffixes and path.is_file()]
    by_name = collections.defaultdict(list)
    for path in sorted({*paths} - {*folders, *others}):
        by_name[videos.name_of(path)].append(path)
    notes = [f"{source}: left out, as the ending is not that of a {kind}: {_first(others)}"] if others else []
    notes += [f"{source}: its subfolders are not searched: {_first(folders)}"] if folders else []
    if not by_name:
        raise FileNotFoundError("; ".join([f"{source} has no {kind} file ({', '.join(suffixes)})", *notes]))
    files = {name: paths[0] for name, paths in by_name.items() if len(paths) == 1}
    twice = {name: " and ".join(path.name for path in paths) for name, paths in by_name.items() if len(paths) > 1}
    failed = {name: f"{source}: {both} would both become {name}.npy; rename one" for name, both in twice.items()}
    return files, failed, notes


def _first(paths: Sequence[Path]) -> str:
    """Returns the names of the first three paths and, if there are more, the number of all."""
    more = f", … ({len(paths)} in all)" if len(paths) > 3 else ""
    return ", ".join(path.name for path in paths[:3]) + more
