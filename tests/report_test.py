"""The report and the pages of videos: their numbers by hand, and the pages in Chromium, offline."""

import base64
import dataclasses
import json
import os
import re
import shutil
import zlib

import numpy as np
import pytest
from playwright.sync_api import expect, sync_playwright

from kd_jax import report as command
from kd_jax.analysis import timelines
from kd_jax.analysis.figures import Made
from kd_jax.analysis.finished import FinishedExperiment, FinishedRun
from kd_jax.analysis.page import embed, make_page
from kd_jax.analysis.report import interval, make_report, results_table
from kd_jax.analysis.timelines import Lane, Recording, Timeline
from kd_jax.data.source import open_source
from kd_jax.files import write_arrays

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
ARGUMENTS += ["--disable-component-update", "--disable-sync"]
WIDTHS = [(1280, "light"), (400, "light"), (400, "dark")]


# Numbers by hand.


def test_interval_is_that_of_students_t():
    found = interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["values"] == [1, 2, 3]
    assert found["half"] == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)  # the quantile of two degrees of freedom
    assert interval([5.0])["half"] is None


def test_probabilities_have_eight_bits():
    text = timelines.quantise(np.array([[0.0, 1.0], [0.5, 0.001], [0.003, 1.2]]))
    assert list(zlib.decompress(base64.b64decode(text))) == [0, 255, 128, 0, 1, 255]


def recording(name, one, other):
    return Recording(name, 4.0, None, {"a": np.full((4, 2), one), "b": np.full((4, 2), other)})


def test_a_large_page_has_the_videos_on_which_two_runs_differ_most():
    videos = [recording("x", 0.5, 0.6), recording("y", 0.1, 0.9), recording("z", 0.5, 0.0), recording("w", 1.0, 1.0)]
    assert timelines.difference(*videos[1].probabilities.values()) == pytest.approx(0.8)

    def names(budget, compared=("a", "b")):
        return [video.id for video in timelines.select_recordings(videos, compared, budget)]

    sizes = {v.id: sum(len(timelines.quantise(table)) for table in v.probabilities.values()) for v in videos}
    three = sizes["x"] + sizes["y"] + sizes["z"]
    assert names(sum(sizes.values())) == ["x", "y", "z", "w"]
    assert names(three - 1) == ["y", "z"] and names(three) == ["x", "y", "z"] and names(1) == ["y"]
    assert names(sizes["x"] + sizes["y"], None) == ["x", "y"]


def row(run, scores, *, teachers=(), members=(), gain=None):
    per_class = [{"walk": value, "sit": None if run == "rgb" else value / 2} for value in scores]
    return {
        "run": run,
        "modality": "rgb",
        "members": list(members),
        "teachers": list(teachers),
        "weights": {"atomic": 1.0} if teachers else {},
        "scores": {"frame mAP": scores},
        "test": [{"frame_map/present_classes": v, "per_class": {"frame_map": c}} for v, c in zip(scores, per_class)],  # noqa: B905
        "baseline": "rgb",
        "gain": gain,
    }


def results_of(*rows):
    return {"dataset": "d", "test_videos": 2, "seeds": [0], "baseline": "rgb", "gain_of": "frame mAP", "rows": rows}


@pytest.mark.parametrize("text", ["</script><b>", "<!-- <script>", "\u2028 ä", "{{title}}", "\\1"])
def test_any_text_can_be_embedded(text):
    page = make_page("report.html", title=text, data={"text": text}, scripts=["timeline.js", "report.js"])
    (content,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert json.loads(content) == {"text": text} and "<" not in embed({"text": text})


# A finished experiment without training: two seeds, logits that follow the labels.


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("report") / "small"
    options = {"validation_fraction": 0.2, "validation_seed": 0, "max_videos": 5}
    source = open_source("synthetic", "", ["rgb"], **options)
    rng = np.random.default_rng(0)
    classes = source.info.classes
    runs: dict[str, list[FinishedRun]] = {}
    for name, strength in {"flow": 3.0, "rgb": 1.0, "distilled": 2.0}.items():
        for seed in range(2):
            folder = workdir / name if not seed else workdir / name / "seed_1"
            folder.mkdir(parents=True)
            videos = source.videos("test", [])
            logits = {video.id: strength * rng.standard_normal((60, len(classes))) for video in videos}
            write_arrays(folder / "predictions_test.npz", logits)
            epochs = [{"epoch": e, "seconds": 0.5} for e in (1, 2, 3)]
            found = FinishedRun(name, seed, folder, {"run": name, "modality": "rgb"}, {"best_epoch": 3}, epochs)
            runs.setdefault(name, []).append(found)

    def per_class():
        return dict(zip(classes, rng.uniform(10, 90, len(classes)).tolist(), strict=True))

    rows = []
    for name, teachers, gain in (("flow", [], [20.0, 22.0]), ("rgb", [], None), ("distilled", ["flow"], [3.0, 2.0])):
        made = row(name, [40.0, 41.0], teachers=teachers, gain=gain)
        for scores in made["test"]:
            scores["per_class"] = {"frame_map": per_class()}
        rows.append(made)
    results = {
        **results_of(*rows),
        "seeds": [0, 1],
        "test_videos": 5,
        "environment": {"jax": "0.10.2", "devices": "1 × cpu"},
    }
    return FinishedExperiment(workdir, results, runs, source)


def test_the_table_of_two_experiments_has_the_rows_of_both(experiment):
    table = results_table({"one": experiment, "two": experiment})
    assert [(found["experiment"], found["run"]) for found in table["rows"]] == [
        (name, run) for name in ("one", "two") for run in ("flow", "rgb", "distilled")
    ]
    assert table["columns"] == ["frame mAP"]
    assert table["rows"][2]["gain"] == interval([3.0, 2.0])


def test_experiments_share_a_timeline_if_they_have_the_same_test_videos(experiment):
    options = {"validation_fraction": 0.2, "validation_seed": 0, "max_videos": 4}
    fewer = dataclasses.replace(experiment, source=open_source("synthetic", "", ["rgb"], **options))
    renamed = dataclasses.replace(experiment, workdir=experiment.workdir.parent / "again")
    moved = dataclasses.replace(fewer, workdir=experiment.workdir.parent / "fewer")
    page = make_report([experiment, renamed, moved])
    (content,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    shared, alone = json.loads(content)["data"]
    assert [video["id"] for video in shared["timeline"]["videos"]] == [f"test_{i:03d}" for i in range(5)]
    assert [run["name"] for run in shared["timeline"]["runs"]][:4] == [
        "small / rgb", "small / distilled", "small / flow", "again / rgb",
    ]  # fmt: skip
    assert shared["timeline"]["compared"] == ["small / rgb", "small / distilled"]
    assert alone["name"] == "fewer" and len(alone["timeline"]["videos"]) == 4
    first = shared["timeline"]["videos"][0]
    expected = 1 / (1 + np.exp(-experiment.logits("rgb", 0)["test_000"]))
    found = np.frombuffer(zlib.decompress(base64.b64decode(first["scores"]["small / rgb"])), np.uint8)
    found = found.reshape(expected.shape)
    np.testing.assert_allclose(found / 255, expected, atol=0.5 / 255 + 1e-6)


# The pages in Chromium.


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        missing = "Chromium is not installed (apt-get install chromium)"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Open a file in a window of some width; console messages, errors and requests for other files fail the test."""
    contexts, problems = [], []

    def visit(path, width=1280, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "request",
            lambda request: problems.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
        )
        page.goto(path.absolute().as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


@pytest.fixture(scope="module")
def report(experiment):
    path = experiment.workdir / "report.html"
    picture = experiment.workdir / "curve.png"
    picture.write_bytes(
        base64.b64decode(
            "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
        )
    )
    path.write_text(
        make_report(
            [experiment], [{"learning_curves": Made(picture, ["Still improving."]), "tsne": Made(None, ["Not made."])}]
        )
    )
    return path


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_the_report_opens_without_network_on_any_screen(visit, report, width, scheme):
    page = visit(report, width, scheme)
    expect(page.get_by_role("heading", level=2)).to_have_text(
        ["Results", "Timeline", "Classes", "Figures", "How it was made"]
    )
    expect(page.locator(".diagnosis")).to_contain_text("does not differ measurably from rgb (+2.50 [-3.85, +8.85])")
    expect(page.locator("#results tbody tr").nth(2)).to_contain_text("40.50 ± 6.35")
    gains = page.locator("#results tbody span:not(.dot)")  # green only if the interval does not contain 0
    assert [(gain.text_content(), gain.get_attribute("class")) for gain in gains.all()] == [
        ("+21.00 [+8.29, +33.71] *", "up"),
        ("+2.50 [−3.85, +8.85]", ""),
    ]
    expect(page.locator("figcaption")).to_have_text("Still improving.")
    expect(page.locator("figure")).to_contain_text("Learning curves")
    expect(page.locator("#record")).to_contain_text("1 × cpu")
    page.get_by_role("link", name="Classes").click()
    assert page.url.endswith("#classes")


def test_a_table_is_sorted_by_click_and_keyboard(visit, report):
    page = visit(report)
    cells = page.locator("#classes tbody tr td:nth-child(3)")

    def values():
        return [float(text.split(" ")[0]) for text in cells.all_text_contents()]

    head = page.locator("#classes thead th").nth(2)
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending" and values() == sorted(values(), reverse=True)
    head.get_by_role("button").press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and values() == sorted(values())
    name = page.locator("#classes thead th").first
    name.get_by_role("button").press("Space")
    assert name.get_attribute("aria-sort") == "ascending" and head.get_attribute("aria-sort") is None


# Two videos of 20 s and 10 snippets; the runs differ in `sit` of the second video, 4 s to 8 s.
FLAT = np.full((10, 2), 0.1)
DIFFERENT = np.where((np.arange(10)[:, None] >= 2) & (np.arange(10)[:, None] < 4) & (np.arange(2) == 1), 0.9, 0.1)
TRUTH = np.array([[0, 2.0, 6.0], [1, 4.0, 9.0]])


@pytest.fixture(scope="module")
def browsed(tmp_path_factory):
    recordings = [
        Recording("first", 20.0, TRUTH, {"plain": FLAT, "other": FLAT}),
        Recording("second", 20.0, TRUTH, {"plain": FLAT, "other": DIFFERENT}),
    ]
    lanes = [Lane("plain", "vanilla"), Lane("other", "augmented")]
    content = timelines.as_json(Timeline(["walk", "sit_down"], lanes, recordings, 0.5, ("plain", "other"), 7))
    path = tmp_path_factory.mktemp("browsed") / "page.html"
    path.write_text(make_page("video.html", title="two", data=content, scripts=["timeline.js"]))
    return path


def picture(page):
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.locator("canvas.rows").evaluate("canvas => canvas.toDataURL()")


def test_a_button_jumps_to_where_two_runs_differ_most(visit, browsed):
    page = visit(browsed)
    expect(page.locator(".tools").first).to_contain_text("The 2 of 7 videos with the largest differences")
    page.get_by_role("button", name="Show where they differ most").click()
    expect(page.get_by_role("status")).to_have_text("1 of 1: sit down, 4.0 s to 8.0 s of second")
    expect(page.get_by_label("Video", exact=True)).to_have_value("1")
    page.get_by_label("Sort").select_option("difference")
    assert page.get_by_label("Video", exact=True).locator("option").all_text_contents() == [
        "second · 8.0 %",
        "first · 0.0 %",
    ]


def test_threshold_runs_and_classes_change_what_is_drawn(visit, browsed):
    page = visit(browsed)
    page.get_by_label("Next video").click()
    seen = {picture(page)}
    for act in (
        lambda: page.get_by_label("Threshold").fill("0.95"),
        lambda: page.get_by_label("plain", exact=True).uncheck(),
        lambda: page.get_by_label("Class", exact=True).fill("sit"),
        lambda: page.get_by_label("Previous video").click(),
        lambda: page.get_by_label("Zoom in").click(),
        lambda: page.emulate_media(color_scheme="dark"),
    ):
        act()
        assert picture(page) not in seen
        seen.add(picture(page))


def test_the_timeline_is_operable_by_keyboard(visit, browsed):
    page = visit(browsed)
    timeline, status = page.locator("canvas.rows"), page.get_by_role("status")
    timeline.focus()
    for key, text in {
        "n": "second: 0.0 s to 20.0 s",
        "+": "second: 3.8 s to 16.3 s",
        "ArrowRight": "second: 5.6 s to 18.1 s",
        "Home": "second: 0.0 s to 12.5 s",
        "-": "second: 0.0 s to 20.0 s",
        "=": "second: 3.8 s to 16.3 s",
        "0": "second: 0.0 s to 20.0 s",
    }.items():
        page.keyboard.press(key)
        expect(status).to_have_text(text)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(status).to_have_text("sit down; 10.0 s; ground truth: no; plain: 0.10; other: 0.10")
    for _ in range(2):
        page.keyboard.press("Shift+ArrowLeft")
    expect(status).to_have_text(
        "sit down; 6.0 s; ground truth: 4.0 s to 9.0 s; plain: 0.10; other: 0.90, 4.0 s to 8.0 s"
    )


def view(page):
    """The span that the timeline shows, in seconds, as the last key has announced it."""
    return [float(value) for value in re.findall(r"([\d.]+) s", page.get_by_role("status").text_content())]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_pointer_shows_scores_drags_and_zooms(visit, browsed, width):
    page = visit(browsed, width)
    page.get_by_label("Next video").click()
    timeline, status = page.locator("canvas.rows"), page.get_by_role("status")
    timeline.scroll_into_view_if_needed()
    box = timeline.bounding_box()
    left, right = (168, box["width"] - 10) if width > 640 else (6, box["width"] - 10)
    x = box["x"] + left + (right - left) * 5 / 20
    y = box["y"] + box["height"] * 0.75  # in the second row
    page.mouse.move(x, y)
    expect(page.locator(".tip")).to_contain_text("sit down")
    expect(page.locator(".tip")).to_contain_text("other: 0.90, 4.0 s to 8.0 s")
    page.mouse.wheel(0, -200)  # without focus the page scrolls
    page.mouse.click(x, y)
    page.mouse.wheel(0, -400)
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("ArrowLeft")
    start, end = view(page)
    assert end - start == pytest.approx(20 * np.exp(-200 / 400), abs=0.2) and start < 5
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=3)
    page.mouse.up()
    page.keyboard.press("Shift+ArrowLeft")
    page.keyboard.press("ArrowLeft")
    moved = 60 / (right - left) * (end - start) - 0.15 * (end - start)
    assert view(page)[0] == pytest.approx(max(start + moved, 0), abs=0.3)
    page.keyboard.press("n")
    page.keyboard.press("p")
    expect(status).to_have_text("second: 0.0 s to 20.0 s")


def test_a_touch_screen_sees_the_scores(visit, browsed):
    page = visit(browsed, 400, has_touch=True, is_mobile=True)
    timeline = page.locator("canvas.rows")
    timeline.tap(position={"x": 100, "y": 40})
    expect(page.locator(".tip")).to_contain_text("walk")
    box, touches = timeline.bounding_box(), page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [{"x": box["x"] + x, "y": box["y"] + 40, "id": i} for i, x in enumerate(places)]
        touches.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    touch("touchStart", 150, 210)
    for by in (10, 20, 30, 40):
        touch("touchMove", 150 - by, 210 + by)
    touch("touchEnd")
    timeline.focus()
    page.keyboard.press("ArrowRight")
    start, end = view(page)
    assert end - start == pytest.approx(20 * 60 / 140, rel=0.15)  # the fingers move from 60 to 140 pixels apart


@pytest.fixture(scope="module")
def video_page(tmp_path_factory):
    from data_prep.stickfigures import FPS, draw, make_scene, write_video

    folder = tmp_path_factory.mktemp("a video #1")
    scene = make_scene("figure", 0, 4.0)
    write_video(folder / "figure.mp4", draw(scene))
    scores = np.random.default_rng(0).random((8, 2))
    found = Recording("figure", len(scene.poses) / FPS, TRUTH, {"rgb": scores}, file="figure.mp4", picture="figure.png")
    content = timelines.as_json(Timeline(["walk", "sit"], [Lane("rgb", "augmented")], [found]))
    (folder / "figure.html").write_text(make_page("video.html", title="figure", data=content, scripts=["timeline.js"]))
    return folder / "figure.html"


def test_a_click_seeks_the_video_and_the_playhead_follows(visit, video_page):
    page = visit(video_page)
    page.wait_for_function("document.querySelector('video').readyState >= 2")
    timeline, duration = page.locator("canvas.rows"), page.evaluate("document.querySelector('video').duration")
    before, box = picture(page), timeline.bounding_box()
    timeline.click(position={"x": 168 + (box["width"] - 178) / 2, "y": 20})
    page.wait_for_function("!document.querySelector('video').seeking")
    assert page.evaluate("document.querySelector('video').currentTime") == pytest.approx(duration / 2, abs=0.2)
    after = picture(page)
    assert after != before
    page.keyboard.press(" ")
    page.wait_for_function(
        "document.querySelector('video').currentTime > 0.6 * document.querySelector('video').duration"
    )
    page.keyboard.press(" ")
    assert page.evaluate("document.querySelector('video').paused") and picture(page) != after


def test_a_video_that_is_gone_is_explained(browser, video_page, tmp_path):
    shutil.copy(video_page, tmp_path / "figure.html")
    page = browser.new_page()
    page.goto((tmp_path / "figure.html").as_uri())
    expect(page.locator(".note")).to_contain_text("figure.mp4 cannot be played here: the file was moved, or")
    expect(page.get_by_alt_text("Frames and detections of figure")).to_have_attribute("src", "figure.png")
    page.locator("canvas.rows").click(position={"x": 300, "y": 20})
    page.close()


# The command.


def mistake(*arguments):
    with pytest.raises(SystemExit) as ended:
        command.main(list(arguments))
    assert isinstance(ended.value.code, str) and len(ended.value.code.splitlines()) == 1
    return ended.value.code


def test_the_command_ends_with_one_sentence(tmp_path):
    assert mistake() == "kd_jax.report: name the workdir of a finished experiment, e.g. workdir/demo"
    assert "holds no finished experiment" in mistake(str(tmp_path))
    assert "one workdir is named twice" in mistake("a", "a")
    assert "did you mean --output?" in mistake("a", "--outptu=b")


def test_a_figure_is_enlarged_by_click_and_keyboard(visit, report):
    page = visit(report, 400)
    button, dialog = page.get_by_role("button", name="Enlarge:").first, page.get_by_role("dialog")
    button.click()
    assert dialog.get_by_role("img").evaluate("image => image.width === image.naturalWidth")
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    button.focus()
    page.keyboard.press("Enter")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)
