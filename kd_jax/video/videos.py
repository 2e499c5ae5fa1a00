"""Reading of video files: frames, optical flow and the snippets that an encoder takes.

    video = probe_video(Path('kitchen.mp4'))                   # or a folder of numbered pictures, with its fps
    for snippet in cut_snippets(video, 'rgb', Sampling()): ...  # [16, 224, 224, 3] uint8

Frames are streamed: a video of any length needs the memory of one snippet. The defaults are those of Carreira and
Zisserman (CVPR 2017); flow is clipped to ±20 pixels per frame. PyAV and OpenCV come with `pip install 'kd_jax[video]'`.
"""

import argparse
import contextlib
import io
import itertools
import math
import re
import struct
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from kd_jax.data.text_files import normalize

# File endings that are recognised in a folder.
SUFFIXES: tuple[str, ...] = (".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts")
SUFFIXES += (".ts", ".webm", ".3gp", ".asf", ".mxf", ".ogv", ".vob", ".wmv")
PICTURES = (".jpg", ".jpeg", ".png")  # of a folder that is a video: the last number in a name is that of the frame
_PICTURE_FORMATS = {b"\xff\xd8": "jpeg_pipe", b"\x89PNG": "png_pipe"}  # FFmpeg's name, by the first bytes
ENDS = ("repeat", "drop")
FLOWS = ("dis", "tvl1")
MIRRORED = (2, 4, 5, 7)  # orientations of EXIF
FLOW_LIMIT = 20.0  # pixels per frame, as published
_MIN_SIDE, _MAX_ASPECT = 16, 8  # a frame's shorter side in pixels; its longer side divided by the shorter
MOST_PIXELS = 2**26  # of a frame, 8192 × 8192; larger ones are refused before they are decoded
MOST_REPEATED = 1000  # times that a frame is repeated on average, at the rate that is asked for


class VideoError(ValueError):
    """Raised for a file that cannot be read; the message has its name, the reason and, if there is one, a remedy."""


@dataclass(frozen=True)
class Video:
    """A video file and the frames that `read_frames` makes of it.

    A video is `resampled` if the caller asks for another rate than the file's, or if the file's frames are unevenly
    spaced: frames are repeated or left out to get `fps` frames per second.
    """

    path: Path
    width: int  # pixels, after rotation
    height: int  # pixels, after rotation
    num_frames: int
    fps: float  # frames per second
    rotation: int  # 0, 90, 180 or 270: degrees by which stored frames are turned counter-clockwise
    resampled: bool
    stored_frames: int  # number of frames in the file
    mirrored: bool = False  # whether stored frames are mirrored, left to right, before they are turned
    pixel_aspect: float = 1.0  # width of a stored pixel divided by its height; `width` and `height` are as shown

    @property
    def duration(self) -> float:
        """The duration in seconds."""
        return self.num_frames / self.fps


@dataclass(frozen=True)
class Sampling:
    """How a video is cut into snippets. With `last='repeat'`, every frame is used and every video has a snippet."""

    length: int = 16  # frames per snippet
    stride: int = 16  # frames from the start of a snippet to the start of the next
    last: str = "repeat"  # 'repeat' fills an incomplete last snippet with the last frame; 'drop' leaves it out
    size: int = 224  # side of the central square that is kept, in pixels
    shorter_side: int = 256  # shorter side of the frame that the square is cut from, in pixels
    flow: str = "dis"  # or 'tvl1' as published, which is a hundred times slower

    def __post_init__(self):
        for name in ("length", "stride", "size", "shorter_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.size > self.shorter_side:
            raise ValueError(f"size={self.size} must not be above shorter_side={self.shorter_side}")
        for name, known in (("last", ENDS), ("flow", FLOWS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; choose one of {', '.join(known)}")

    def count(self, num_frames: int) -> int:
        """Returns T, the number of snippets in `num_frames` frames."""
        after_first = num_frames - self.length
        if self.last == "drop":
            return max(0, after_first // self.stride + 1)
        starts = -(-num_frames // self.stride)  # every snippet starts at a frame that exists
        return min(-(-max(after_first, 0) // self.stride) + 1, starts)

    def count_of(self, path: Path, num_frames: int) -> int:
        """Returns T of a file; raises VideoError if it is 0."""
        if count := self.count(num_frames):
            return count
        found = f"{path} has {num_frames} frames, fewer than a snippet of {self.length}"
        raise VideoError(f"{found}; --last=repeat fills it up")


_UNUSED: dict[str, set[str]] = {"rgb": {"flow"}, "flow": set(), "pose": {"size", "shorter_side", "flow"}}


def sampling_fields(modality: str) -> list[str]:
    """Returns the fields of `Sampling` that affect features of rgb, flow or pose."""
    return [field.name for field in fields(Sampling) if field.name not in _UNUSED[modality]]


def add_options(parser: argparse.ArgumentParser, otherwise: str) -> None:
    """Adds the command-line options that `sampling` reads; `otherwise` introduces the default values in the help."""
    add = parser.add_argument_group("snippets").add_argument
    add("--length", type=int, help=f"Frames per snippet ({otherwise}16).")
    add("--stride", type=int, help=f"Frames from one snippet to the next ({otherwise}16).")
    add("--last", choices=ENDS, help=f"Fill or drop an incomplete last snippet ({otherwise}repeat).")
    add("--size", type=int, help=f"Side of the central square, pixels ({otherwise}the weights', 224).")
    add(
        "--shorter_side",
        type=int,
        help=f"Shorter side of the frame before that, pixels ({otherwise}the weights', 256).",
    )
    add("--flow", choices=FLOWS, help=f"Method for flow; the published tvl1 is 100 times slower ({otherwise}dis).")


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
    return make_sampling(modality, dict(manifest) | {name: v for name, v in vars(given).items() if v is not None})


def make_sampling(modality: str, values: Mapping) -> Sampling:
    """Builds a `Sampling` for rgb, flow or pose from its fields by name; other keys are ignored."""
    return Sampling(**{name: values[name] for name in sampling_fields(modality) if name in values})


def refuse_vain(given: argparse.Namespace, names: Iterable[str], because: str) -> None:
    """Raises ValueError if one of these options is given (not None). `because` names what makes them ineffective."""
    if vain := [f"--{name}" for name in sorted(names) if getattr(given, name) is not None]:
        raise ValueError(f"{', '.join(vain)} would have no effect on {because}; leave it out")


def name_of(path: PurePath) -> str:
    """Returns the name of a video: its file name without ending and, for NTU RGB+D, `_rgb`, which skeletons lack.

    A folder of frames has the name of the folder. Names are in the Unicode form of `kd_jax.data.text_files`.
    """
    name = path.name if isinstance(path, Path) and path.is_dir() else path.stem
    return re.sub(r"^(S\d{3}C\d{3}P\d{3}R\d{3}A\d{3})_rgb$", r"\1", normalize(name))


def probe_video(path: Path, fps: float | None = None) -> Video:
    """Reads size, rate and number of frames of a video file; only the first frame is decoded.

    `fps` is the rate at which the file is sampled, in frames per second; None = the file's own rate.

    Raises:
      VideoError: for a file that is not a video, is cut short, has no frames, or has frames too small or too narrow.
      ValueError: for an invalid fps.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise ValueError(f"fps={fps}; it must be above 0 and at most 1000")
    if path.is_dir():
        return _probe_pictures(path, fps)
    timing = _read_timing(path)
    _check_whole(path, timing)
    width, height, turn, aspect = _read_geometry(path)
    own, uneven = _own_rate(timing)
    resampled = uneven or (fps is not None and abs(fps - own) > 1.001e-3 * own)  # 29.97 counts as 30
    rate = (fps or own) if resampled else own
    count = max(1, round(timing.num_frames / own * rate)) if resampled else timing.num_frames
    if count > MOST_REPEATED * timing.num_frames:
        lasts = f"its {timing.num_frames} frames last {timing.num_frames / own:.4g} s, which is {count} at {rate:g} fps"
        raise VideoError(f"{path}: {lasts}; its time stamps are damaged, or give a lower --fps")
    return Video(path, width, height, count, rate, turn.degrees, resampled, timing.num_frames, turn.mirrored, aspect)


def is_frame_folder(path: Path) -> bool:
    """Whether a path is a folder with numbered pictures and without video files."""
    names = list(path.iterdir()) if path.is_dir() else []
    return not any(name.suffix.lower() in SUFFIXES for name in names) and any(map(_number, names))


def _number(path: Path) -> re.Match | None:
    """Matches the last number in the name of a picture; None for other files, and for hidden ones such as `._1.jpg`."""
    is_picture = path.suffix.lower() in PICTURES and not path.name.startswith(".")
    return re.search(r"(\d+)\D*$", path.stem) if is_picture else None


def picture_files(folder: Path) -> list[Path]:
    """Returns the numbered pictures in a folder, in the order of their numbers; [] if it has none.

    The numbers may rise by any constant step, as those of every fifth frame do. Raises VideoError if a number occurs
    twice or is missing, or the names differ before it, because the times of frames would be wrong.
    """
    found = {path: match for path in sorted(folder.iterdir()) if (match := _number(path))}
    by_series = {match.string[: match.start()]: path.name for path, match in found.items()}
    if len(by_series) > 1:
        names = " and ".join([*by_series.values()][:2])
        raise VideoError(f"{folder}: {names} have different names; give each a folder")
    pictures: dict[int, Path] = {}
    for path, match in found.items():
        if (other := pictures.setdefault(int(match[1]), path)) is not path:
            raise VideoError(f"{folder}: {other.name} and {path.name} have the same number; remove one")
    numbers = sorted(pictures)
    step = _step(numbers)
    for number, following in itertools.pairwise(numbers):
        if following != number + step:
            missing = f"the frame after {pictures[number].name} is missing"
            raise VideoError(f"{folder}: {missing}; the numbers must have no gaps, or rise by one step")
    return [pictures[number] for number in numbers]


def num_bytes(path: Path) -> int:
    """Returns the size of a video file, or of all pictures in a folder of frames."""
    files = filter(_number, path.iterdir()) if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _probe_pictures(folder: Path, fps: float | None) -> Video:
    pictures = picture_files(folder)
    if not pictures:
        raise VideoError(f"{folder} is a folder without numbered pictures ({', '.join(PICTURES)})")
    if fps is None:
        raise VideoError(f"{folder}: it is a folder of frames, whose rate is not stated; give --fps")
    first, mirrored = _read_picture(pictures[0])
    width, height, turn = _shown(first, first.width, mirrored=mirrored)
    _check_shape(pictures[0], width, height)
    if (step := _step([int(match[1]) for match in map(_number, pictures) if match])) > 1:
        message = "%s: the numbers of its frames rise by %d, so --fps must be the rate of the frames that are there"
        logging.log_first_n(logging.WARNING, message, 1, folder, step)
    return Video(folder, width, height, len(pictures), fps, turn.degrees, False, len(pictures), turn.mirrored)


def _step(numbers: list[int]) -> int:
    """Returns the least distance of at least three sorted numbers; 1 if there are fewer."""
    return min(b - a for a, b in itertools.pairwise(numbers)) if len(numbers) > 2 else 1


def _read_picture(path: Path) -> tuple[Any, bool]:
    """Decodes a picture; returns PyAV's frame, and whether EXIF says that it is mirrored, which PyAV does not."""
    import av

    try:
        content = path.read_bytes()
        kind = next((kind for start, kind in _PICTURE_FORMATS.items() if content.startswith(start)), None)
        if kind is None:
            raise VideoError(f"{path} cannot be read as a picture (no JPEG or PNG)")
        with av.open(io.BytesIO(content), "r", format=kind) as container:  # FFmpeg takes a % in a path for a pattern
            stream = container.streams.video[0]
            # Without err_detect the rest of a cut picture is grey.
            stream.codec_context.options = {"err_detect": "explode", "max_pixels": str(MOST_PIXELS)}
            return next(container.decode(stream)), _exif_orientation(content) in MIRRORED
    except (av.FFmpegError, OSError, StopIteration) as error:
        limit = f"it must be whole, with at most {MOST_PIXELS} pixels"
        raise VideoError(f"{path} cannot be read as a picture ({_reason(error)}); {limit}") from None


def _exif_orientation(jpeg: bytes) -> int:
    """Returns the orientation that the EXIF data of a JPEG file states, 1 … 8; 0 if there is none."""
    header = re.search(rb"\xff\xe1..Exif\0\0(II\*\0|MM\0\*)", jpeg[: 2**16], re.DOTALL)
    if not header:
        return 0
    start, order = header.start(1), "<" if header[1].startswith(b"I") else ">"
    with contextlib.suppress(struct.error):  # damaged EXIF data; FFmpeg ignores it too
        first = start + struct.unpack_from(f"{order}I", jpeg, start + 4)[0]
        (count,) = struct.unpack_from(f"{order}H", jpeg, first)
        for place in range(first + 2, first + 2 + 12 * count, 12):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", jpeg, place)
            if tag == 0x0112:
                return value
    return 0


def _read_pictures(video: Video) -> Iterator[Any]:
    for path in picture_files(video.path):
        frame, mirrored = _read_picture(path)
        width, height, turn = _shown(frame, frame.width, mirrored=mirrored)
        if (width, height) != (video.width, video.height):
            found = f"{width} × {height} pixels, others {video.width} × {video.height}"
            raise VideoError(f"{path} has {found}; make all frames of a video equal in size")
        if turn != (own := _Turn(video.rotation, video.mirrored)):
            found = f"is {turn} (EXIF), others are {own}"
            raise VideoError(f"{path} {found}; make all frames of a video equal in orientation")
        yield frame


@dataclass(frozen=True)
class _Timing:
    """Times in a file, in seconds, and what its header states about them."""

    times: np.ndarray | None  # time of each frame, sorted; None if the file does not have them
    num_frames: int
    stated_frames: int  # 0 or less if the header states none
    end: float  # end of the last packet of any stream
    stated_end: float  # 0 if the header states none
    stated_rate: float  # frames per second


def _read_timing(path: Path) -> _Timing:
    # Packets are not kept, since together they are as large as the file. A video that was cut without re-encoding has
    # discarded frames before its first one: later frames are predicted from them, but no player shows them.
    times, discarded, end, last_dts = [], 0, 0.0, 0
    with _open_video(path) as (container, stream):
        for packet in _decode(path, container.demux()):
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index or not packet.size:
                continue
            if packet.is_discard:
                discarded += 1
            else:
                times.append(packet.pts)
            last_dts = packet.dts if packet.dts is not None else last_dts
        stated = stream.frames - discarded
        if container.format.name == "avi" and last_dts + 1 >= stated:
            stated = len(times)  # the header and the time stamps of AVI also count frames that were dropped
        # These containers state a duration instead of a number of frames; live recordings state none.
        has_duration = container.format.name.startswith(("matroska", "flv"))
        complete = None not in times
        return _Timing(
            times=np.sort(np.array(times, np.float64)) * float(stream.time_base) if complete else None,
            num_frames=len(times),
            stated_frames=stated,
            end=end,
            stated_end=(container.duration or 0) / 1e6 if has_duration else 0.0,
            stated_rate=float(stream.average_rate or stream.guessed_rate or 25),
        )


def _check_whole(path: Path, timing: _Timing) -> None:
    """Raises VideoError if the file has less than its header states."""
    if timing.stated_end - timing.end > max(1.0, 0.01 * timing.stated_end):
        found = f"{timing.end:.1f} of its {timing.stated_end:.1f} seconds"
    elif timing.num_frames < timing.stated_frames:
        found = f"{timing.num_frames} of its {timing.stated_frames} frames"
    else:
        return
    remedy = f"copy it again, or keep what is there: ffmpeg -i {path.name} -c copy shorter{path.suffix}"
    raise VideoError(f"{path} is cut short: {found} are there; {remedy}")


class _Turn(NamedTuple):
    """How stored frames are shown: mirrored left to right, then turned counter-clockwise."""

    degrees: int  # 0, 90, 180 or 270
    mirrored: bool

    def __str__(self) -> str:
        return f"{'mirrored and ' if self.mirrored else ''}turned by {self.degrees}°"


def _read_geometry(path: Path) -> tuple[int, int, _Turn, float]:
    """Returns width and height as shown, the turn, and the aspect ratio of a pixel, from the first frame."""
    with _open_video(path) as (container, stream):
        first = next(_decode(path, container.decode(stream)), None)
        aspect = float(stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or 1) or 1.0
    if first is None:
        raise VideoError(f"{path} has no frame; if it is a video, it is damaged or cut short; copy it again")
    width, height, turn = _shown(first, max(1, round(first.width * aspect)), mirrored=_is_mirrored(first))
    _check_shape(path, width, height)
    return width, height, turn, aspect


def _is_mirrored(frame: Any) -> bool:
    """Returns whether the display matrix of a video file mirrors its frames."""
    if (stored := frame.side_data.get("DISPLAYMATRIX")) is None:
        return False
    matrix = np.frombuffer(stored, np.int32).reshape(3, 3)[:2, :2]
    return bool(np.linalg.det(matrix / 2**16) < 0)


def _shown(frame: Any, width: int, *, mirrored: bool = False) -> tuple[int, int, _Turn]:
    """Returns width and height as shown, and the turn, of a frame that is `width` wide with square pixels."""
    # FFmpeg takes the rotation from the part of its matrix that mirroring negates.
    turn = _Turn(round((frame.rotation + 180 * mirrored) / 90) * 90 % 360, mirrored)
    return (frame.height, width, turn) if turn.degrees % 180 else (width, frame.height, turn)


def _check_shape(path: Path, width: int, height: int) -> None:
    shorter, longer = sorted((width, height))
    if shorter < _MIN_SIDE or longer > _MAX_ASPECT * shorter:
        limits = f"the shorter side must have {_MIN_SIDE} at least, the longer {_MAX_ASPECT} times as many at most"
        raise VideoError(f"{path}: its frames have {width} × {height} pixels; {limits}")


def _own_rate(timing: _Timing) -> tuple[float, bool]:
    """Returns the frames per second, and whether frames are unevenly spaced."""
    times, count, stated = timing.times, timing.num_frames, timing.stated_rate
    if times is None or count < 2 or times[-1] <= times[0]:
        return stated, False
    measured = (count - 1) / (times[-1] - times[0])
    deviation = np.abs(times - times[0] - np.arange(count) / measured).max()
    # The stated 30000/1001 is more exact than a rate measured from times in milliseconds.
    return stated if abs(measured - stated) < 0.01 * stated else measured, bool(deviation > 0.75 / measured)


def read_frames(video: Video, shorter_side: int) -> Iterator[np.ndarray]:
    """Decodes a video, with the shorter side scaled to `shorter_side` pixels.

    Yields `[height, width, 3]` uint8, `video.num_frames` times. Raises VideoError if the file is damaged.
    """
    scale = shorter_side / min(video.width, video.height)
    size = [max(shorter_side, round(length * scale)) for length in (video.width, video.height)]
    size = size[::-1] if video.rotation % 180 else size
    # Sample k shows the frame that is due half a frame after k / fps, so that rounded times select the same frame.
    early = min(video.num_frames / video.stored_frames, 1) / 2
    count, start = 0, None
    previous: Any = None
    with contextlib.closing(_read_stored(video)) as stored:
        for frame in stored:
            scaled = frame.reformat(*size, format="rgb24", interpolation="BILINEAR").to_ndarray()
            turned = np.rot90(scaled[:, ::-1] if video.mirrored else scaled, video.rotation // 90)
            if not video.resampled:
                count += 1
                yield turned
                continue
            start = frame.time or 0.0 if start is None else start
            due = min(math.ceil(((frame.time or 0.0) - start) * video.fps - early), video.num_frames)
            for _ in range(count, due):  # the previous frame lasts until this one
                yield previous
            count, previous = max(count, due), turned
    if previous is not None:
        for _ in range(count, video.num_frames):
            yield previous
        count = video.num_frames
    if count < video.num_frames:
        raise VideoError(f"{video.path} is damaged: {count} of its {video.num_frames} frames can be decoded")


def _read_stored(video: Video) -> Generator[Any]:
    """Yields the stored frames of a video, as PyAV has them."""
    if video.path.is_dir():
        yield from _read_pictures(video)
        return
    with _open_video(video.path) as (container, stream):
        yield from _decode(video.path, container.decode(stream))


def cut_snippets(video: Video, modality: str, sampling: Sampling) -> Iterator[np.ndarray]:
    """Cuts a video into snippets for the modality 'rgb' or 'flow'; raises VideoError if the file is damaged.

    Yields:
      `sampling.count(video.num_frames)` snippets. RGB: `[length, size, size, 3]` uint8. Flow: `[length, size, size, 2]`
      float16, horizontal and vertical, where 1 is 20 pixels. The flow of a frame leads to the next frame; the last
      flow is repeated, so that both modalities have equally many.
    """
    whole = read_frames(video, sampling.shorter_side)
    frames = (_crop(frame, sampling.size) for frame in whole) if modality == "rgb" else _flows(whole, sampling)
    window: list[np.ndarray] = []  # frames from the next snippet's start on
    start, made, total = 0, 0, sampling.count(video.num_frames)
    for place, frame in enumerate(frames):  # to the end, even after the last snippet, to find damage there
        if place >= start and made < total:
            window.append(frame)
        if len(window) == sampling.length:
            yield np.stack(window)
            made, start = made + 1, start + sampling.stride
            del window[: sampling.stride]
    for _ in range(made, total):
        yield np.stack([*window, *[frame] * (sampling.length - len(window))])
        del window[: sampling.stride]


def _crop(frame: np.ndarray, size: int) -> np.ndarray:
    top, left = ((length - size) // 2 for length in frame.shape[:2])
    return frame[top : top + size, left : left + size]


def _flows(frames: Iterator[np.ndarray], sampling: Sampling) -> Iterator[np.ndarray]:
    """Computes the flow from each frame to the next on whole frames, then crops and scales it to -1 … 1."""
    import cv2  # here because only flow needs it

    cv2.setNumThreads(1)  # several videos at a time are faster than several threads
    try:
        tvl1 = sampling.flow == "tvl1" and cv2.optflow.DualTVL1OpticalFlow.create()
    except AttributeError:
        raise VideoError("flow='tvl1' needs opencv-contrib-python-headless; install it, or choose 'dis'") from None
    method: Any = tvl1 or cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    previous, flow = None, np.zeros((sampling.size, sampling.size, 2), np.float16)
    for frame in frames:
        grey = cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY)
        if previous is not None:
            pixels = _crop(method.calc(previous, grey, None), sampling.size)
            flow = (np.clip(pixels, -FLOW_LIMIT, FLOW_LIMIT) / FLOW_LIMIT).astype(np.float16)
            yield flow
        previous = grey
    yield flow


@contextlib.contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Opens a file: PyAV's container and its video stream; of several, the largest default one.

    Pictures that are attached to a file, such as a cover, are not video.
    """
    try:
        import av  # here because only videos need it
        from av.stream import Disposition
    except ImportError:
        raise VideoError(f"{path}: videos need PyAV and OpenCV; pip install 'kd_jax[video]'") from None
    try:
        container = av.open(str(path), metadata_errors="ignore")
    except FileNotFoundError:
        raise VideoError(f"{path}: there is no such file or folder") from None
    except (av.FFmpegError, OSError) as error:
        advice = "if it is one, it is damaged or cut short; copy it again"
        raise VideoError(f"{path} cannot be read as a video ({_reason(error)}); {advice}") from None
    with container:
        kind = container.format.name
        pictures = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if kind == "tty" or kind.endswith("_pipe") or not streams:  # FFmpeg opens texts and pictures
            raise VideoError(f"{path} has no video in it{', only a picture' if container.streams.video else ''}")
        stream = max(streams, key=_prominence)
        stream.thread_type = "AUTO"
        if stream.codec_context is not None:  # it is for a codec that FFmpeg does not know
            stream.codec_context.options = {"max_pixels": str(MOST_PIXELS)}
        yield container, stream


def _prominence(stream: Any) -> tuple[bool, bool, int]:
    """Orders video streams: a single picture is least, a default stream above others, then a larger one."""
    from av.stream import Disposition

    codec = stream.codec_context  # None if FFmpeg does not know the codec
    pixels = codec.width * codec.height if codec else 0
    return stream.frames != 1, bool(stream.disposition & Disposition.default), pixels


def _decode(path: Path, packets: Iterator) -> Iterator:
    """Yields from an iterator of PyAV and turns its errors into VideoError."""
    import av

    try:
        yield from packets
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path} is damaged ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
