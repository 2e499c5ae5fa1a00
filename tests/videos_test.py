"""Reading of videos: frame times, rotation, flow and snippets; refusal of files that cannot be used."""

import struct
import wave
import zlib
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kd_jax.video.videos import (
    Sampling,
    VideoError,
    cut_snippets,
    is_frame_folder,
    name_of,
    probe_video,
    read_frames,
)


def write(path, pictures, *, rate=25, times=None, codec="libx264", pix_fmt="yuv420p", options=None, aspect=None):
    """A file of `[H, W, 3]` pictures; `times` in milliseconds, else evenly at `rate`."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = (times[i], Fraction(1, 1000)) if times else (i, Fraction(1, rate))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def grey(levels, height=48, width=64):
    return [np.full((height, width, 3), level, np.uint8) for level in levels]


def levels(video):
    """The grey level of each frame, rounded to steps of 5, which are larger than changes by compression."""
    return [round(frame.mean() / 5) * 5 for frame in read_frames(video, 32)]


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 50), st.sampled_from(["repeat", "drop"]))
def test_as_many_snippets_as_counted_of_the_frames_they_say(num_frames, length, stride, last):
    sampling = Sampling(length, stride, last)
    from unittest import mock

    from kd_jax.video import videos

    video = videos.Video(None, 4, 4, num_frames, 25.0, 0, False, num_frames)
    numbered = (np.full((4, 4, 3), i, np.uint8) for i in range(num_frames))
    with mock.patch.object(videos, "read_frames", lambda video, side: numbered):
        made = list(cut_snippets(video, "rgb", Sampling(length, stride, last, size=4, shorter_side=4)))
    assert len(made) == sampling.count(num_frames)
    for i, snippet in enumerate(made):
        wanted = np.minimum(np.arange(length) + i * stride, num_frames - 1)
        np.testing.assert_array_equal(snippet[:, 0, 0, 0], wanted)
    whole = [i for i in range(num_frames) if i * stride + length <= num_frames]
    assert len(made) >= len(whole) and (last == "repeat" or len(made) == len(whole))
    if last == "repeat" and stride <= length:  # each frame is in one
        assert (len(made) - 1) * stride + length >= num_frames and (len(made) - 1) * stride < num_frames


def test_frames_come_as_written_and_are_cut_from_the_middle(tmp_path):
    picture = np.zeros((48, 96, 3), np.uint8)
    picture[:, 24:72] = [200, 100, 50]  # the central square
    video = probe_video(write(tmp_path / "a.mp4", [picture] * 20))
    assert (video.width, video.height, video.num_frames, video.fps, video.rotation) == (96, 48, 20, 25.0, 0)
    assert video.duration == 0.8 and not video.resampled
    first, second = cut_snippets(video, "rgb", Sampling(size=40, shorter_side=48))
    assert first.shape == second.shape == (16, 40, 40, 3) and first.dtype == np.uint8
    assert np.abs(first.mean((0, 1, 2)) - [200, 100, 50]).max() < 6


@pytest.mark.parametrize(
    "name, codec", [("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx"), ("a.mov", "mjpeg")]
)
def test_containers_and_codecs(name, codec, tmp_path):
    levels_in = list(range(50, 150, 5))
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    video = probe_video(write(tmp_path / name, grey(levels_in), rate=30, codec=codec, pix_fmt=pix_fmt))
    assert levels(video) == levels_in and video.fps == pytest.approx(30, rel=2e-3)


def test_uneven_times_become_even_and_a_rate_can_be_asked_for(tmp_path):
    # 10 frames at 40 ms, then 5 that last 200 ms each.
    times = [40 * i for i in range(10)] + [400 + 200 * i for i in range(5)]
    levels_in = [20 + 10 * i for i in range(15)]
    path = write(tmp_path / "uneven.mkv", grey(levels_in), times=times)
    video = probe_video(path, fps=25.0)
    assert video.resampled and video.stored_frames == 15
    shown = levels(video)
    assert shown[:10] == levels_in[:10] and shown[10:25] == np.repeat(levels_in[10:13], 5).tolist()
    own = probe_video(path)
    assert own.resampled and own.num_frames == 15 and own.duration == pytest.approx(1.286, abs=1e-3)
    assert len(levels(own)) == 15

    almost = probe_video(write(tmp_path / "ntsc.mp4", grey([100] * 30), rate=Fraction(30000, 1001)), fps=30.0)
    assert not almost.resampled and almost.num_frames == 30


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])  # times are exact, or in milliseconds
@pytest.mark.parametrize("rate, fps, steps", [(60, 30, [2]), (50, 25, [2]), (60, 15, [4]), (15, 30, [0, 1])])
def test_frames_are_left_out_and_repeated_at_even_steps(name, rate, fps, steps, tmp_path):
    levels_in = [40 + 5 * i for i in range(40)]
    video = probe_video(write(tmp_path / name, grey(levels_in), rate=rate), fps=float(fps))
    assert video.resampled and video.num_frames == 40 * fps // rate
    found = [(level - 40) // 5 for level in levels(video)]
    assert found[0] == 0 and set(np.diff(found)) == set(steps) and found[-1] == 39 - max(steps) + 1


def test_a_video_cut_without_encoding_anew_begins_where_it_was_cut(tmp_path):
    levels_in = list(range(20, 220, 5))
    whole = write(tmp_path / "whole.mp4", grey(levels_in))  # one key frame, and B-frames
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = source.streams.video[0]
        to = cut.add_stream_from_template(stream)
        begin = int(0.4 / stream.time_base)  # 10 frames later
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - begin, packet.dts - begin, to
                cut.mux(packet)
    video = probe_video(tmp_path / "cut.mp4")
    assert video.num_frames == 30 and levels(video) == levels_in[10:]
    (tmp_path / "short.mp4").write_bytes((tmp_path / "cut.mp4").read_bytes()[:-200])
    with pytest.raises(VideoError):
        probe_video(tmp_path / "short.mp4")


@pytest.mark.parametrize("codec, pix_fmt", [("mjpeg", "yuvj420p"), ("mpeg4", "yuv420p")])
def test_an_avi_from_which_frames_were_dropped_is_whole(codec, pix_fmt, tmp_path):
    rng = np.random.default_rng(0)
    with av.open(str(tmp_path / "a.avi"), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
        for i in (i for i in range(50) if i not in (10, 11, 30)):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert probe_video(tmp_path / "a.avi").stored_frames == 47
    content = (tmp_path / "a.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match="cut.avi is cut short: .* of its 50 frames"):
        probe_video(tmp_path / "cut.avi")


@pytest.mark.parametrize(
    "matrix, turn",  # (a, b, c, d): the pixel at (x, y) is shown at (a x + c y, b x + d y)
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((0, 1, 1, 0), np.transpose),
        ((0, -1, -1, 0), lambda x: np.rot90(x, 2).T),
    ],
)
def test_a_recording_is_turned_and_mirrored_as_its_matrix_says(matrix, turn, tmp_path):
    corners = np.array([[40, 80], [120, 200]], np.uint8)
    path = write(tmp_path / "portrait.mp4", [np.dstack([corners.repeat(24, 0).repeat(32, 1)] * 3)] * 3)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version, flags, times, track, duration, layer, group, volume
    a, b, c, d = (x << 16 for x in matrix)
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    video = probe_video(path)
    frame = next(read_frames(video, 48))
    assert frame.shape[:2] == (video.height, video.width) == ((48, 64) if matrix[0] else (64, 48))
    shown = frame[[12, 12, -12, -12], [12, -12, 12, -12], 0].reshape(2, 2)
    np.testing.assert_allclose(shown, turn(corners), atol=12)


def test_flow_is_what_moved(tmp_path):
    texture = (
        np.random.default_rng(0).integers(0, 255, (12, 24), np.uint8).repeat(8, 0).repeat(8, 1)[..., None].repeat(3, 2)
    )
    moved = [np.roll(texture, (i, 2 * i), (0, 1)) for i in range(5)]  # 2 pixels to the right, 1 down, each frame
    video = probe_video(write(tmp_path / "a.mkv", moved, codec="ffv1", pix_fmt="bgr0"))
    (flow,) = cut_snippets(video, "flow", Sampling(length=5, size=48, shorter_side=96))
    assert flow.shape == (5, 48, 48, 2) and flow.dtype == np.float16
    np.testing.assert_allclose(np.median(flow, (1, 2)), np.tile([[2 / 20, 1 / 20]], (5, 1)), atol=0.01)
    jump = probe_video(write(tmp_path / "b.mkv", grey([0, 255]), codec="ffv1", pix_fmt="bgr0"))
    assert np.abs(next(cut_snippets(jump, "flow", Sampling(size=32, shorter_side=48)))).max() <= 1
    still = probe_video(write(tmp_path / "c.mkv", moved[:1], codec="ffv1", pix_fmt="bgr0"))
    (flow,) = cut_snippets(still, "flow", Sampling(size=48, shorter_side=96))
    assert flow.shape == (16, 48, 48, 2) and not flow.any()


def test_one_frame_is_a_snippet_if_it_may_be_repeated(tmp_path):
    video = probe_video(write(tmp_path / "a.mkv", grey([100])))
    assert video.num_frames == 1
    (snippet,) = cut_snippets(video, "rgb", Sampling(size=32, shorter_side=48))
    assert snippet.shape == (16, 32, 32, 3)
    assert list(cut_snippets(video, "rgb", Sampling(last="drop", size=32, shorter_side=48))) == []


def bad_files(folder):
    """Writes files that cannot be used; returns {name: pattern of the reason}."""
    (folder / "notes.txt").write_text("no video at all\n" * 50)
    av.VideoFrame.from_ndarray(grey([100])[0], format="rgb24").save(str(folder / "picture.png"))
    (folder / "empty.mp4").touch()
    whole = write(folder / "whole.mp4", grey(list(range(40, 200))), options={"movflags": "faststart"}).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    late = write(folder / "late.mp4", grey([100] * 40)).read_bytes()
    (folder / "headless.mp4").write_bytes(late[: len(late) * 2 // 3])
    write(folder / "flat.mkv", grey([100] * 3, height=1, width=64), codec="ffv1", pix_fmt="bgr0")
    write(folder / "narrow.mkv", grey([100] * 3, height=16, width=300), codec="ffv1", pix_fmt="bgr0")
    with wave.open(str(folder / "sound.wav"), "w") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    with av.open(str(folder / "frameless.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "bgr0"
        container.start_encoding()
    return {
        "notes.txt": "has no video in it",
        "picture.png": "has no video in it",
        "empty.mp4": "cannot be read as a video",
        "cut.mp4": "is cut short: .* of its 160 frames are there",
        "headless.mp4": "is damaged|cannot be read",
        "flat.mkv": "64 × 1 pixels; the shorter side must have 16",
        "narrow.mkv": "300 × 16 pixels",
        "sound.wav": "has no video in it",
        "frameless.mkv": "has no frame|cannot be read",
    }


@pytest.mark.parametrize("name, codec", [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.flv", "flv")])
def test_a_file_that_is_cut_short_is_noticed_by_its_duration(name, codec, tmp_path):
    rng = np.random.default_rng(0)
    pictures = list(rng.integers(0, 255, (100, 48, 64, 3), np.uint8))
    content = write(tmp_path / name, pictures, codec=codec).read_bytes()
    assert probe_video(tmp_path / name).num_frames == 100
    (tmp_path / f"cut_{name}").write_bytes(content[: len(content) // 2])
    with pytest.raises(VideoError, match=rf"cut_{name} is cut short: [12]\.\d of its 4\.0 seconds are there; copy it"):
        probe_video(tmp_path / f"cut_{name}")

    live = write(tmp_path / f"live_{name}", pictures, codec=codec, options={"live": "1"})  # states no duration
    assert probe_video(live).num_frames == 100
    times = [40 * i for i in range(50)] + [9000]  # the last but one is shown for seven seconds
    assert probe_video(write(tmp_path / f"uneven_{name}", pictures[:51], codec=codec, times=times)).stored_frames == 51


def test_sound_may_last_longer_than_the_video(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        for i, picture in enumerate(grey([100] * 25)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for i in range(5):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 8000, 8000 * i, Fraction(1, 8000)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    assert probe_video(path).num_frames == 25


@pytest.mark.parametrize(
    "file, name",
    [
        ("kitchen.mp4", "kitchen"),
        ("S001C001P001R001A001_rgb.avi", "S001C001P001R001A001"),
        ("S001C001P001R001A001.skeleton", "S001C001P001R001A001"),
        ("kitchen_rgb.avi", "kitchen_rgb"),
        ("a.S001C001P001R001A001_rgb.avi", "a.S001C001P001R001A001_rgb"),
    ],
)
def test_a_video_is_called_as_its_file_and_one_of_ntu_as_its_skeletons(file, name):
    assert name_of(Path(file)) == name


SHARED = Path(__file__).parents[2] / "shared" / "real" / "videos"


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real videos, which are not committed")
def test_real_videos_have_the_frames_that_their_readme_states():
    expected = {"demo.mp4": 280, "test.mp4": 300, "test.avi": 164, "PS7A1P1T1.avi": 109, "PS7A2P2T1.avi": 61}
    expected |= {"PS7A3P3T1.avi": 78, "S001C001P001R001A001_rgb.avi": 103, "v_CricketShot_g04_c01_rgb.gif": 79}
    assert {path.name: probe_video(path).stored_frames for path in SHARED.iterdir() if path.suffix != ".md"} == expected


def test_each_bad_file_is_named_with_its_reason(tmp_path):
    for name, reason in bad_files(tmp_path).items():
        with pytest.raises(VideoError, match=f"{tmp_path / name}.*{reason}"):
            probe_video(tmp_path / name)


@pytest.mark.parametrize("change", [{"length": 0}, {"stride": -1}, {"last": "pad"}, {"flow": "raft"}, {"size": 300}])
def test_impossible_sampling_is_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Sampling(**change)


def atom(name, *parts):
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, name) + body


def add_cover(path, output, *, video=True):
    """Writes an .mp4 file again with a cover picture in front of its tracks, and with its video or without."""
    data, at, top = path.read_bytes(), 0, []
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        top.append((name, data[at : at + size]))
        at += size
    assert top[-1][0] == b"moov"  # behind the frames, so that nothing else moves
    inside, at = [], 8
    while at < len(top[-1][1]):
        size, name = struct.unpack(">I4s", top[-1][1][at : at + 8])
        inside.append((name, top[-1][1][at : at + size]))
        at += size
    av.VideoFrame.from_ndarray(grey([99])[0], format="rgb24").save(str(output.with_suffix(".jpg")))
    picture = atom(b"covr", atom(b"data", struct.pack(">II", 13, 0), output.with_suffix(".jpg").read_bytes()))
    handler = atom(b"hdlr", b"\0" * 8 + b"mdirappl" + b"\0" * 9)
    tags = atom(b"udta", atom(b"meta", b"\0" * 4, handler, atom(b"ilst", picture)))
    kept = [part for name, part in inside[1:] if name != b"udta" and (video or name != b"trak")]
    moov = atom(b"moov", inside[0][1], tags, *kept)
    output.write_bytes(b"".join(part for _, part in top[:-1]) + moov)


def test_a_cover_picture_is_no_video(tmp_path):
    write(tmp_path / "a.mp4", grey(range(0, 200, 5)))
    add_cover(tmp_path / "a.mp4", tmp_path / "cover.mp4")
    plain, cover = (probe_video(tmp_path / name) for name in ("a.mp4", "cover.mp4"))
    assert (cover.num_frames, cover.fps, cover.width, cover.height) == (40, 25, 64, 48)
    for one, other in zip(read_frames(plain, 48), read_frames(cover, 48), strict=True):
        np.testing.assert_array_equal(one, other)
    add_cover(tmp_path / "a.mp4", tmp_path / "song.mp4", video=False)
    with pytest.raises(VideoError, match=r"song.mp4 has no video in it, only a picture"):
        probe_video(tmp_path / "song.mp4")


def test_frames_are_shown_in_the_shape_of_their_pixels(tmp_path):
    """Pixels of 2:1 make 64 × 48 stored pixels 128 × 48; a square of 12 × 24 is then one of 24 × 24."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[12:36, 26:38] = 255
    write(tmp_path / "wide.mp4", [picture] * 4, aspect=Fraction(2, 1))
    video = probe_video(tmp_path / "wide.mp4")
    assert (video.width, video.height, video.pixel_aspect) == (128, 48, 2.0)
    (frame, *_) = read_frames(video, 48)
    assert frame.shape == (48, 128, 3)
    rows, columns = np.nonzero(frame[..., 0] > 128)
    assert abs(np.ptp(rows) + 1 - 24) <= 2 and abs(np.ptp(columns) + 1 - 24) <= 2
    write(tmp_path / "square.mp4", [picture] * 4)
    assert probe_video(tmp_path / "square.mp4").pixel_aspect == 1.0


def write_pictures(folder, pictures):
    folder.mkdir()
    for i, picture in enumerate(pictures, 1):
        av.VideoFrame.from_ndarray(picture, format="rgb24").save(str(folder / f"frame_{i}.png"))


def test_a_folder_of_numbered_pictures_is_a_video(tmp_path):
    pictures = list(grey(range(0, 200, 5)))
    write_pictures(tmp_path / "v1.2", pictures)  # frame_2 comes before frame_10
    write(tmp_path / "same.mp4", pictures, codec="libx264rgb", pix_fmt="rgb24", options={"crf": "0"})
    video, same = probe_video(tmp_path / "v1.2", 24.0), probe_video(tmp_path / "same.mp4")
    assert (video.num_frames, video.fps, video.width, video.height) == (40, 24.0, 64, 48)
    assert is_frame_folder(tmp_path / "v1.2") and name_of(tmp_path / "v1.2") == "v1.2" and not is_frame_folder(tmp_path)
    for modality in ("rgb", "flow"):
        made = [list(cut_snippets(v, modality, Sampling(size=32, shorter_side=48))) for v in (video, same)]
        assert len(made[0]) == 3
        np.testing.assert_array_equal(*made)


def test_numbers_of_pictures_may_rise_by_one_step(tmp_path, caplog):
    write_pictures(tmp_path / "a", list(grey(range(0, 40, 10))))
    for i in range(4, 0, -1):
        (tmp_path / "a" / f"frame_{i}.png").rename(tmp_path / "a" / f"frame_{5 * (i - 1):06d}.png")
    video = probe_video(tmp_path / "a", 6.0)
    assert (video.num_frames, video.duration) == (4, pytest.approx(4 / 6))
    assert [int(frame.mean()) for frame in read_frames(video, 48)] == [0, 10, 20, 30]
    assert "rise by 5, so --fps must be the rate of the frames that are there" in caplog.text
    (tmp_path / "a" / "frame_000005.png").unlink()
    with pytest.raises(VideoError, match="the frame after frame_000000.png is missing; .* or rise by one step"):
        probe_video(tmp_path / "a", 6.0)


def test_each_bad_folder_of_pictures_is_named_with_its_reason(tmp_path):
    pictures = list(grey(range(0, 60, 10)))
    write_pictures(tmp_path / "a", pictures)
    with pytest.raises(VideoError, match="a: it is a folder of frames, whose rate is not stated; give --fps"):
        probe_video(tmp_path / "a")
    (tmp_path / "a" / "frame_3.png").write_bytes(b"no picture")
    with pytest.raises(VideoError, match="frame_3.png cannot be read as a picture"):
        list(read_frames(probe_video(tmp_path / "a", 25), 48))
    (tmp_path / "a" / "frame_3.png").unlink()
    with pytest.raises(VideoError, match="the frame after frame_2.png is missing"):
        probe_video(tmp_path / "a", 25)
    write_pictures(tmp_path / "b", [*pictures[:3], np.zeros((32, 64, 3), np.uint8)])
    with pytest.raises(VideoError, match="frame_4.png has 64 × 32 pixels, others 64 × 48"):
        list(read_frames(probe_video(tmp_path / "b", 25), 48))
    (tmp_path / "b" / "frame_01.png").write_bytes((tmp_path / "b" / "frame_1.png").read_bytes())
    with pytest.raises(VideoError, match="frame_01.png and frame_1.png have the same number"):
        probe_video(tmp_path / "b", 25)
    (tmp_path / "b" / "frame_01.png").rename(tmp_path / "b" / "shot_01.png")
    with pytest.raises(VideoError, match="frame_4.png and shot_01.png have different names; give each a folder"):
        probe_video(tmp_path / "b", 25)


def write_frames(folder, pictures, name="frame_{}.png", start=1):
    folder.mkdir()
    for i, picture in enumerate(pictures, start):
        av.VideoFrame.from_ndarray(picture, format="rgb24").save(str(folder / name.format(i)))
    return folder


def textured(count, height=48, width=64):
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (height // 4, width // 4, 3), np.uint8).repeat(4, 0).repeat(4, 1)
    return [np.roll(texture, 2 * i, 1) for i in range(count)]


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_jpeg_that_is_cut_short_is_damaged(keep, tmp_path):
    folder = write_frames(tmp_path / "a", textured(4), "{}.jpg")
    content = (folder / "3.jpg").read_bytes()
    (folder / "3.jpg").write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(VideoError, match="3.jpg cannot be read as a picture"):
        list(read_frames(probe_video(folder, fps=24.0), 48))


@pytest.mark.parametrize("default, chosen", [([False, True], 1), ([True, False], 0), ([True, True], 1)])
def test_of_several_streams_the_default_one_is_read(default, chosen, tmp_path):
    sizes = [(48, 64), (96, 128)]
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        streams = [container.add_stream("ffv1", rate=25) for _ in sizes]
        for stream, (height, width), is_default in zip(streams, sizes, default, strict=True):
            stream.height, stream.width, stream.pix_fmt = height, width, "bgr0"
            stream.disposition = av.stream.Disposition.default if is_default else av.stream.Disposition(0)
        for _ in range(3):
            for stream, size in zip(streams, sizes, strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(grey([100], *size)[0], format="rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    video = probe_video(tmp_path / "a.mkv")
    assert (video.height, video.width) == sizes[chosen] and video.num_frames == 3


def test_frames_of_two_series_in_one_folder_are_refused(tmp_path):
    folder = write_frames(tmp_path / "50%d", textured(2), "a_{}.jpg")
    (folder / "._a_2.jpg").write_bytes(b"hidden: macOS writes such files next to others")
    assert len(list(read_frames(probe_video(folder, fps=24.0), 48))) == 2
    (folder / "a_2.jpg").rename(folder / "b_2.jpg")
    with pytest.raises(VideoError, match=r"a_1.jpg and b_2.jpg have different names; give each a folder"):
        probe_video(folder, fps=24.0)


def with_orientation(jpeg, value):
    """A JPEG file with the EXIF tag 'orientation'."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, value, 0, 0)
    return jpeg[:2] + struct.pack(">HH", 0xFFE1, len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_frames_are_turned_as_their_exif_says(orientation, tmp_path):
    corners = np.array([[40, 80], [120, 200]], np.uint8).repeat(24, 0).repeat(48, 1)  # differs however it is turned
    folder = write_frames(tmp_path / "a", [np.dstack([corners] * 3)] * 2, "{}.jpg")
    upright = (folder / "2.jpg").read_bytes()
    for path in folder.iterdir():
        path.write_bytes(with_orientation(path.read_bytes(), orientation))
    video = probe_video(folder, fps=24.0)
    expected = cv2.imread(str(folder / "1.jpg"))[..., ::-1]  # OpenCV turns pictures too
    shown = next(read_frames(video, 48))
    assert (video.height, video.width) == expected.shape[:2] and shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected).max() < 3
    (folder / "2.jpg").write_bytes(upright)
    if orientation != 1:
        others = {2: "mirrored and turned by 0°", 3: "turned by 180°", 4: "mirrored and turned by 180°"}.get(
            orientation
        )
        wrong = rf"is turned by 0° \(EXIF\), others are {others}" if others else "has 96 × 48 pixels"
        with pytest.raises(VideoError, match=rf"2.jpg {wrong}"):
            list(read_frames(video, 48))


def test_times_that_jump_are_not_filled_with_frames(tmp_path):
    path = write(tmp_path / "jump.mkv", grey([10, 20, 30]), times=[0, 40, 10**9])
    with pytest.raises(VideoError, match=r"jump.mkv: its 3 frames last 1.5e\+06 s, which is \d+ at 25 fps; its time"):
        probe_video(path, fps=25.0)


def test_a_picture_that_inflates_to_gigabytes_is_not_decoded(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size, compress = 8_200, zlib.compressobj(9)
    rows = b"".join([*(compress.compress(bytes(size + 1)) for _ in range(size)), compress.flush()])
    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    path = tmp_path / "frame_1.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    with pytest.raises(VideoError, match="frame_1.png cannot be read as a picture .* at most 67108864 pixels"):
        probe_video(tmp_path, fps=25.0)
