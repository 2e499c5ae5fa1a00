"""Video files → snippets of frames or of optical flow, ready for an encoder.

    video = probe(Path('kitchen.mp4'))                              # its size, frames and frames per second
    for snippet in snippets(video, 'rgb', Sampling()): ...          # [16, 224, 224, 3] uint8, one after the other

Frames pass one by one: a video of any length needs the memory of one snippet. As published (Carreira and Zisserman,
CVPR 2017), the shorter side becomes 256 pixels, the central 224 × 224 are kept, and flow is limited to ±20 pixels a
frame. PyAV decodes and OpenCV finds the flow: `pip install -e .[video]`.
"""

import argparse
import collections
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

# Of the files that a folder is searched for.
SUFFIXES = (".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm")
SUFFIXES += (".3gp", ".asf", ".mxf", ".ogv", ".vob", ".wmv")
FLOWS = ("dis", "tvl1")
FLOW_LIMIT = 20.0  # pixels a frame, as published
_SMALLEST, _NARROWEST = 16, 8  # pixels of a frame's shorter side; how many times as long the other may be


class VideoError(ValueError):
    """A file that cannot be read as a video: its name, why, and what helps."""


@dataclass(frozen=True)
class Video:
    """What a file holds, as `frames` gives it.

    Attributes:
      path: of the file.
      width, height: pixels, as shown, after rotation.
      num_frames: how many.
      fps: frames per second.
      rotation: 0, 90, 180 or 270: degrees by which stored frames are turned counter-clockwise to be shown.
      resampled: whether frames are repeated or left out, so that they come `fps` times a second: because the caller
        asked for it, or because the file's own come at uneven times.
      stored_frames: of the file.
    """

    path: Path
    width: int
    height: int
    num_frames: int
    fps: float
    rotation: int
    resampled: bool
    stored_frames: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class Sampling:
    """How a video is cut into snippets.

    Attributes:
      length: frames of a snippet.
      stride: frames from the start of one to that of the next.
      last: what becomes of frames at the end that fill no snippet: 'repeat' fills it with the last frame, so that all
        frames count and every video has a snippet; 'drop' leaves them out.
      size: pixels of the central square that is kept.
      shorter_side: pixels, before that.
      flow: 'dis', or 'tvl1' as published, which takes a hundred times as long.
    """

    length: int = 16
    stride: int = 16
    last: str = "repeat"
    size: int = 224
    shorter_side: int = 256
    flow: str = "dis"

    def __post_init__(self):
        for name in ("length", "stride", "size", "shorter_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.size > self.shorter_side:
            raise ValueError(f"size={self.size}, but it is cut out of shorter_side={self.shorter_side} pixels")
        for name, known in (("last", ("repeat", "drop")), ("flow", FLOWS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}")

    def count(self, num_frames: int) -> int:
        """T, the snippets of so many frames; 0 where there is none."""
        behind_first = num_frames - self.length
        if self.last == "drop":
            return max(0, behind_first // self.stride + 1)
        starts = -(-num_frames // self.stride)  # a snippet has a frame of its own
        return min(-(-max(behind_first, 0) // self.stride) + 1, starts)

    def count_of(self, path: Path, num_frames: int) -> int:
        """T of a file; a VideoError where there is no snippet."""
        if not (count := self.count(num_frames)):
            raise VideoError(
                f"{path} has {num_frames} frames, less than a snippet of {self.length}; --last=repeat fills it up"
            )
        return count


_UNUSED = {"rgb": {"flow"}, "flow": set(), "pose": {"size", "shorter_side", "flow"}}  # by features of a modality


def used(modality: str) -> list[str]:
    """The fields of `Sampling` that features of rgb, flow or pose depend on."""
    return [field.name for field in fields(Sampling) if field.name not in _UNUSED[modality]]


def add_options(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Adds the command-line options that `sampling` reads.

    Args:
      parser: of the command.
      otherwise: how the help introduces the default values; '' for the values alone.
    """
    group = parser.add_argument_group("snippets")
    group.add_argument("--length", type=int, help=f"frames per snippet ({otherwise}16)")
    group.add_argument("--stride", type=int, help=f"frames from one snippet to the next ({otherwise}16)")
    group.add_argument(
        "--last", choices=("repeat", "drop"), help=f"fill or drop an incomplete last snippet ({otherwise}repeat)"
    )
    group.add_argument("--size", type=int, help=f"side of the central square, pixels ({otherwise}the weights', 224)")
    group.add_argument(
        "--shorter_side", type=int, help=f"shorter side of the frame before that, pixels ({otherwise}the weights', 256)"
    )
    group.add_argument("--flow", choices=FLOWS, help=f"method for optical flow; tvl1 is published ({otherwise}dis)")


def sampling(given: argparse.Namespace, modality: str, manifest: Mapping) -> Sampling:
    """Builds a `Sampling` from options, or else from what features or weights were made with.

    Args:
      given: parsed options, with those of `add_options`.
      modality: rgb, flow or pose.
      manifest: fields of `Sampling` by name; other keys are ignored.

    Raises:
      ValueError: for an invalid value, or an option that has no effect on the modality.
    """
    refuse_vain(given, _UNUSED[modality], modality)
    chosen = {name: getattr(given, name) for name in used(modality) if getattr(given, name) is not None}
    return Sampling(**{name: manifest[name] for name in used(modality) if name in manifest} | chosen)


def refuse_vain(given: argparse.Namespace, names: Iterable[str], because: str) -> None:
    """Raises ValueError if one of these options is given, which `because` makes ineffective.

    Args:
      given: parsed options; those that are not given are None.
      names: of the options.
      because: the option or property that makes them ineffective.
    """
    if vain := [f"--{name}" for name in sorted(names) if getattr(given, name) is not None]:
        raise ValueError(f"{', '.join(vain)} would have no effect on {because}; leave it out")


def name_of(path: Path) -> str:
    """What a video is called: its file without its ending, and NTU RGB+D's `_rgb`, so that its skeletons are too."""
    return re.sub(r"^(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})_rgb$", r"\1", path.stem)


def probe(path: Path, fps: float | None = None) -> Video:
    """Reads when each frame is shown, without decoding more than the first.

    Args:
      path: of the file.
      fps: frames per second to sample it at; None for its own.

    Raises:
      VideoError: for a file that is no video, is cut short, has no frame, or frames too small or too narrow.
      ValueError: for an impossible fps.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps={fps}; it must be above 0 and at most 1000")
    with _opened(path) as (container, stream):
        # No more: all packets of a long video would be as large as its file. One that was cut without encoding anew has
        # frames before its first, which others are predicted from and nobody is shown.
        times, unseen, end, last = [], 0, 0.0, 0
        for packet in _guarded(path, container.demux()):
            if packet.stream.index == stream.index and packet.size:
                if packet.is_discard:
                    unseen += 1
                else:
                    times.append(packet.pts)
                last = packet.dts if packet.dts is not None else last
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        stored, promised = len(times), stream.frames - unseen
        if container.format.name == "avi":  # which counts frames that were dropped, too, in its number and in its times
            promised = stored if last + 1 >= promised else promised
        # Some tell how long they last instead; a live recording does not, and some recorders round it up.
        tells = container.format.name.startswith(("matroska", "flv"))
        lasts = (container.duration or 0) / 1e6 if tells else 0.0
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        times = np.sort(np.array(times, np.float64)) * float(stream.time_base) if None not in times else None
    cut = f"{stored} of its {promised} frames" if stored < promised else ""
    if lasts - end > max(1.0, 0.01 * lasts):
        cut = f"{end:.1f} of its {lasts:.1f} seconds"
    if cut:
        raise VideoError(
            f"{path} is cut short: {cut} are there; copy it again, or keep what is there: "
            f"ffmpeg -i {path.name} -c copy shorter{path.suffix}"
        )
    with _opened(path) as (container, stream):
        first = next(_guarded(path, container.decode(stream)), None)
    if first is None:
        raise VideoError(f"{path} has no frame")
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = (first.height, first.width) if rotation % 180 else (first.width, first.height)
    shorter, longer = sorted((width, height))
    if shorter < _SMALLEST or longer > _NARROWEST * shorter:
        raise VideoError(
            f"{path}: its frames have {width} × {height} pixels; the shorter side must have {_SMALLEST} at least, the "
            f"longer {_NARROWEST} times as many at most"
        )
    uneven = False
    if times is not None and stored > 1 and times[-1] > times[0]:
        own = (stored - 1) / (times[-1] - times[0])
        rate = rate if abs(own - rate) < 0.01 * rate else own  # 30000/1001 is more exact than times in milliseconds
        uneven = bool(np.abs(times - times[0] - np.arange(stored) / own).max() > 0.75 / own)
    resampled = uneven or (fps is not None and abs(fps - rate) > 1.001e-3 * rate)  # 29.97 is 30
    wanted = (fps or rate) if resampled else rate
    count = max(1, round(stored / rate * wanted)) if resampled else stored
    return Video(path, width, height, count, wanted, rotation, resampled, stored)


def frames(video: Video, shorter_side: int) -> Iterator[np.ndarray]:
    """Each frame as it is shown, `[height, width, 3]` uint8, its shorter side of so many pixels.

    Raises:
      VideoError: where the file is damaged.
    """
    scale = shorter_side / min(video.width, video.height)
    size = [max(shorter_side, round(length * scale)) for length in (video.width, video.height)]
    size = size[::-1] if video.rotation % 180 else size
    # At k / fps the frame is shown that is due half a frame later, so that times that are rounded choose the same one.
    early = min(video.num_frames / video.stored_frames, 1) / 2
    given, before, start = 0, None, None
    with _opened(video.path) as (container, stream):
        for frame in _guarded(video.path, container.decode(stream)):
            small = frame.reformat(*size, format="rgb24", interpolation="BILINEAR").to_ndarray()
            shown = np.rot90(small, video.rotation // 90)
            if not video.resampled:
                given += 1
                yield shown
                continue
            start = frame.time or 0.0 if start is None else start
            due = min(math.ceil(((frame.time or 0.0) - start) * video.fps - early), video.num_frames)
            for _ in range(given, due):  # the frame before lasts until this one
                yield before
            given, before = max(given, due), shown
    if before is not None:
        for _ in range(given, video.num_frames):
            yield before
        given = video.num_frames
    if given < video.num_frames:
        raise VideoError(f"{video.path} is damaged: {given} of its {video.num_frames} frames can be decoded")


def snippets(video: Video, modality: str, sampling: Sampling) -> Iterator[np.ndarray]:
    """The snippets of a video, `sampling.count(video.num_frames)` of them.

    Args:
      video: from `probe`.
      modality: 'rgb' or 'flow'.
      sampling: how it is cut.

    Yields:
      RGB: `[length, size, size, 3]` uint8. Flow: `[length, size, size, 2]` float16, horizontal and vertical, from -1
      to 1, which is 20 pixels; that of a frame leads to the next one, that of the last frame repeats the one before,
      so that both have as many.
    """
    shown = frames(video, sampling.shorter_side)
    kept = (_crop(frame, sampling.size) for frame in shown) if modality == "rgb" else _flows(shown, sampling)
    window: collections.deque = collections.deque()  # frames from `start` on
    start, made, total = 0, 0, sampling.count(video.num_frames)
    for place, frame in enumerate(kept):
        if place >= start and made < total:
            window.append(frame)
        if len(window) == sampling.length:
            yield np.stack(window)
            made, start = made + 1, start + sampling.stride
            for _ in range(min(sampling.stride, len(window))):
                window.popleft()
    while made < total:
        yield np.stack([*window, *[frame] * (sampling.length - len(window))])
        made += 1
        for _ in range(min(sampling.stride, len(window))):
            window.popleft()


def _crop(frame: np.ndarray, size: int) -> np.ndarray:
    top, left = ((length - size) // 2 for length in frame.shape[:2])
    return frame[top : top + size, left : left + size]


def _flows(shown: Iterator[np.ndarray], sampling: Sampling) -> Iterator[np.ndarray]:
    """Of each frame to the next, found on the whole frame, then cut and scaled."""
    import cv2  # here, because only flow needs it

    cv2.setNumThreads(1)  # several videos at a time are better
    if sampling.flow == "dis":
        flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    elif hasattr(cv2, "optflow"):
        flow = cv2.optflow.DualTVL1OpticalFlow_create()
    else:
        raise VideoError("flow='tvl1' needs opencv-contrib-python-headless; install it, or choose 'dis'")
    before, moved = None, None
    for frame in shown:
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        if before is not None:
            found = _crop(flow.calc(before, grey, None), sampling.size)
            moved = (np.clip(found, -FLOW_LIMIT, FLOW_LIMIT) / FLOW_LIMIT).astype(np.float16)
            yield moved
        before = grey
    yield np.zeros((sampling.size, sampling.size, 2), np.float16) if moved is None else moved


class _opened:
    """A video file and its first video stream, closed behind."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        try:
            import av  # here, because only videos need it
        except ImportError:
            raise VideoError(f"{self._path}: videos need PyAV and OpenCV; pip install -e .[video]") from None
        try:
            self._container = av.open(str(self._path), metadata_errors="ignore")
        except (av.FFmpegError, OSError) as error:
            raise VideoError(
                f"{self._path} cannot be read as a video ({_reason(error)}); if it is one, it is damaged or cut short: "
                "copy it again"
            ) from None
        kind = self._container.format.name
        if kind == "tty" or kind.endswith("_pipe") or not self._container.streams.video:  # FFmpeg shows texts as films
            self._container.close()
            raise VideoError(f"{self._path} has no video in it")
        stream = self._container.streams.video[0]
        stream.thread_type = "AUTO"
        return self._container, stream

    def __exit__(self, *_):
        self._container.close()


def _guarded(path: Path, iterator: Iterator) -> Iterator:
    """What a decoder gives, its errors as `VideoError`."""
    import av

    try:
        yield from iterator
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} is damaged ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
