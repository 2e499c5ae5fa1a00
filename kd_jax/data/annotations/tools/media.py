"""Names of videos in the files of annotation tools, which write paths, URLs and file names."""

import re
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from kd_jax.data.text_files import normalize
from kd_jax.video import videos

SOUND = (".aac", ".flac", ".m4a", ".mp3", ".ogg", ".wav")  # a tool may have annotated the sound of a video
ENDINGS = (*videos.SUFFIXES, *SOUND)


def video_name(text: str) -> str:
    """Returns the name of a video, which its feature files have: the file name without folders and ending.

    An upload to Label Studio loses the eight digits that Label Studio puts before its name.
    """
    uploaded = text.startswith("/data/upload/")
    if "://" in text or text.startswith("/data/"):
        url = urlsplit(text.rpartition("://")[2].lstrip("/"))  # without the host, which may be malformed
        text = parse_qs(url.query).get("d", [unquote(url.path)])[0]  # /data/local-files/?d=folder/kitchen.mp4
    path = PurePosixPath(text.strip().replace("\\", "/"))
    if uploaded:
        path = path.with_name(re.sub(r"^[0-9a-f]{8}-", "", path.name))
    return videos.name_of(path) if is_media(path.name) else normalize(path.name)


def is_media(name: str) -> bool:
    """Whether a file name has the ending of a video or of a sound recording."""
    return PurePosixPath(name).suffix.lower() in ENDINGS
