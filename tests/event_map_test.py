"""Event mAP: every quirk by hand, values of the official script, the strict variant, and loops for both."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.metrics.detection_map import detection_map
from kd_jax.evaluation.metrics.event_map import event_map, event_map_strict

HERE = pathlib.Path(__file__).parent
DATA = HERE / "data"  # invented segments, outputs of the TSU evaluation script
SAMPLE = HERE.parents[1] / "shared" / "golden" / "event_map_sample.npz"  # real annotations: never in this repository
MICRO = np.load(DATA / "event_map_micro.npz")


def golden(path):
    data = np.load(path)
    detections, ground_truth = {}, {}
    for index, video in enumerate(data["video_names"]):
        found, truth = data["pred_video"] == index, data["gt_video"] == index
        columns = [data[f"pred_{name}"][found] for name in ("label", "start", "end", "conf")]
        detections[str(video)] = np.stack(columns, axis=1).astype(np.float64)
        columns = [data[f"gt_{name}"][truth] for name in ("label", "start", "end")]
        ground_truth[str(video)] = np.stack(columns, axis=1).astype(np.float64)
    return data, detections, ground_truth


def score(detections, ground_truth, metric=event_map, num_classes=51, thresholds=(0.5,)):
    """Returns (mAP_action · C, mAP_video) of one video at one threshold."""
    result = metric(
        {"v": np.array(detections)}, {"v": np.array(ground_truth)}, num_classes=num_classes, thresholds=thresholds
    )
    return result["mAP_action"][0], result["mAP_video"][0]


def check_golden(data, result, suffix=""):
    for key, name in (("mAP_action", "mAP_action"), ("mAP_video", "mAP_video"), ("per_class", "AP_action")):
        np.testing.assert_allclose(result[key] / 100, data[name + suffix], rtol=0, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", ["event_map_synth_0", "event_map_synth_1", "event_map_synth_2_ties"])
def test_official_script(name):
    data, detections, ground_truth = golden(DATA / f"{name}.npz")
    check_golden(data, event_map(detections, ground_truth, num_classes=51))  # default thresholds are the file's


@pytest.mark.skipif(not SAMPLE.exists(), reason=f"{SAMPLE} is missing; real annotations may not be committed")
def test_official_script_on_its_own_sample():
    data, detections, ground_truth = golden(SAMPLE)
    check_golden(data, event_map(detections, ground_truth, num_classes=51, thresholds=data["thetas"]))


def test_official_script_with_a_prediction_file_missing():
    data, detections, ground_truth = golden(DATA / "event_map_synth_1.npz")
    (missing,) = data["missing_pred_files"]
    del detections[str(missing)]
    check_golden(data, event_map(detections, ground_truth, num_classes=51), "_missing_file")


@pytest.mark.parametrize("case", MICRO["case_names"])
def test_official_script_on_cases_of_one_class(case):
    result = event_map(
        {"v": MICRO[f"{case}/pred"]}, {"v": MICRO[f"{case}/gt"][:, :3]}, num_classes=51, thresholds=MICRO["thetas"]
    )
    np.testing.assert_allclose(result["per_class"][:, 3] / 100, MICRO[f"{case}/AP_class3"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result["mAP_video"] / 100, MICRO[f"{case}/mAP_video"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(result["mAP_action"] / 100, MICRO[f"{case}/mAP_action"], rtol=0, atol=1e-9)


def test_by_hand():
    # Ascending: 0.1 + (truth B), 0.2 −, 0.3 + (truth A). Start: 2 found of 3, P = 2/3. Without 0.1: P = 1/2, R 1 → 1/2:
    # AP = 2/3 · 1/2. Without 0.2: not evaluated. Without 0.3: P = 0, R → 0: AP += 2/3 · 1/2.
    detections = [[0, 0, 10, 0.3], [0, 50, 60, 0.2], [0, 20, 30, 0.1]]
    truths = [[0, 0, 10], [0, 20, 30]]
    assert score(detections, truths, num_classes=1) == pytest.approx((100 * 2 / 3, 100 * 2 / 3))
    # Strict: precisions 1, 1/2, 2/3, interpolated 1 and 2/3 at the two hits.
    assert score(detections, truths, event_map_strict, num_classes=1) == pytest.approx((100 * 5 / 6, 100 * 5 / 6))


@pytest.mark.parametrize(
    ("quirk", "detections", "truths", "official", "strict"),
    [
        ("a false one below the true one", [[0, 0, 9, 0.9], [0, 50, 60, 0.2]], [[0, 0, 9]], 50, 100),
        ("a false one above the true one", [[0, 0, 9, 0.2], [0, 50, 60, 0.9]], [[0, 0, 9]], 50, 50),
        ("a duplicate below is free", [[0, 0, 9, 0.9], [0, 0, 9, 0.8]], [[0, 0, 9]], 100, 100),
        ("one truth for two detections", [[0, 0, 10, 0.9], [0, 1, 11, 0.8]], [[0, 0, 10], [0, 4, 14]], 50, 100),
        ("equal truths cannot both be found", [[0, 0, 9, 0.9], [0, 0, 9, 0.8]], [[0, 0, 9], [0, 0, 9]], 50, 100),
        ("equal overlap: the later truth", [[0, 5, 15, 0.9], [0, 9, 21, 0.8]], [[0, 0, 10], [0, 10, 20]], 50, 50),
        ("length 0 never matches", [[0, 5, 5, 0.9]], [[0, 5, 5]], 0, 0),
        ("overlap may equal the threshold", [[0, 0, 5, 0.9]], [[0, 0, 10]], 100, 100),
        ("nothing is found", np.zeros((0, 4)), [[0, 0, 9]], 0, 0),
        ("another class", [[1, 0, 9, 0.9]], [[0, 0, 9]], 0, 0),
    ],
)
def test_quirks(quirk, detections, truths, official, strict):
    thresholds = (0.3,) if "later" in quirk else (0.5,)
    action, video = score(detections, truths, num_classes=2, thresholds=thresholds)
    assert (action, video) == pytest.approx((official / 2, official))  # the class without ground truth counts 0
    action, video = score(detections, truths, event_map_strict, num_classes=2, thresholds=thresholds)
    assert (action, video) == pytest.approx((strict, strict))  # the strict mean leaves it out


def test_with_equal_scores_the_earlier_row_is_last_officially_and_first_strictly():
    true, false, truths = [0, 0, 9, 0.5], [0, 50, 60, 0.5], [[0, 0, 9], [0, 20, 30]]
    second = [0, 20, 30, 0.5]
    # Official, removal in row order. + − +: see test_by_hand. − + +: P = 2/3 at the start, 1 of 1 left after the first
    # hit is removed: AP = 1/2 · 1 + 1/2 · 1.
    assert score([true, false, second], truths, num_classes=1)[0] == pytest.approx(100 * 2 / 3)
    assert score([false, true, second], truths, num_classes=1)[0] == pytest.approx(100)
    assert score([true, second, false], truths, event_map_strict, num_classes=1)[0] == pytest.approx(100)
    assert score([false, true, second], truths, event_map_strict, num_classes=1)[0] == pytest.approx(100 * 2 / 3)


def test_videos_without_predictions():
    found, truth = np.array([[0, 0, 9, 0.9]]), np.array([[0, 0, 9]])
    nothing, none = np.zeros((0, 4)), np.zeros((0, 3))

    def both(detections, ground_truth):
        options = {"num_classes": 1, "thresholds": (0.5,)}
        official, strict = (m(detections, ground_truth, **options) for m in (event_map, event_map_strict))
        return [float(r[key][0]) for r in (official, strict) for key in ("mAP_action", "mAP_video")]

    assert both({"a": found}, {"a": truth}) == [100, 100, 100, 100]
    assert both({"a": found}, {"a": truth, "b": truth}) == [100, 100, 50, 50]  # officially, b does not exist
    assert both({"a": found, "b": nothing}, {"a": truth, "b": truth}) == [50, 50, 50, 50]
    assert both({"a": found, "b": nothing}, {"a": truth}) == [100, 50, 100, 100]  # officially, an empty file is AP 0
    assert both({"a": found, "b": found}, {"a": truth, "b": none}) == [50, 50, 100, 100]  # − ranks below: equal scores
    assert both({"b": found, "a": found}, {"a": truth}) == [50, 50, 50, 100]
    np.testing.assert_equal(both({}, {"a": truth}), [0, np.nan, 0, 0])
    np.testing.assert_equal(both({}, {}), [0, np.nan, np.nan, np.nan])


def slow_official(detections, ground_truth, num_classes, threshold):
    def one_list(rows):  # rows: (score, ground truth id or None), num_truths
        found, num_truths = rows
        rows = sorted(found, key=lambda row: row[0])

        def ratios(rest):
            positives = len({truth for _, truth in rest if truth is not None})
            return (positives / len(rest) if rest else 0, positives / num_truths if num_truths else 0)

        best, recall = ratios(rows)
        total = 0
        while rows:
            (_, truth), *rows = rows
            if truth is not None:
                precision, new_recall = ratios(rows)
                best = max(best, precision)
                total += best * (recall - new_recall)
                recall = new_recall
        return total

    per_class = {c: ([], []) for c in range(num_classes)}
    per_video = {v: ([], []) for v in detections}
    for video, rows in detections.items():
        truths = [tuple(row) for row in ground_truth.get(video, [])]
        for class_id, start, end, confidence in rows:
            best, chosen = threshold, None
            for index, (truth_class, truth_start, truth_end) in enumerate(truths):
                hull = max(end, truth_end) - min(start, truth_start)
                overlap = (min(end, truth_end) - max(start, truth_start)) / hull if hull else 0
                if truth_class == class_id and overlap >= best:
                    best, chosen = overlap, (video, index)
            per_class[class_id][0].append((confidence, chosen))
            per_video[video][0].append((confidence, chosen))
        for truth in truths:
            per_class[truth[0]][1].append(truth)
            per_video[video][1].append(truth)
    classes = [one_list((found, len(truths))) for found, truths in per_class.values()]
    videos = [one_list((found, len(truths))) for found, truths in per_video.values()]
    return np.mean(classes), np.mean(videos) if videos else np.nan


def slow_strict(detections, ground_truth, num_classes, threshold):
    ranked = [(row[3], video, *row[:3]) for video, rows in detections.items() for row in rows]
    ranked.sort(key=lambda item: -item[0])
    taken, outcome = set(), []
    for _, video, class_id, start, end in ranked:
        best, chosen = threshold, None
        for index, (truth_class, truth_start, truth_end) in enumerate(ground_truth.get(video, [])):
            both = max(0, min(end, truth_end) - max(start, truth_start))
            either = (end - start) + (truth_end - truth_start) - both
            if truth_class == class_id and (video, index) not in taken and either and both / either >= best:
                best, chosen = both / either, (video, index)
        taken.add(chosen)
        outcome.append((class_id, video, chosen is not None))

    def average(hits, num_truths):
        precisions = [sum(hits[:n]) / n for n in range(1, len(hits) + 1)]
        return sum(max(precisions[i:]) for i, hit in enumerate(hits) if hit) / num_truths

    def mean(position, groups, of_truth):
        values = []
        for group in groups:
            num_truths = sum(of_truth(v, row) == group for v, rows in ground_truth.items() for row in rows)
            if num_truths:
                values.append(average([o[2] for o in outcome if o[position] == group], num_truths))
        return np.mean(values) if values else np.nan

    return mean(0, range(num_classes), lambda v, row: row[0]), mean(1, ground_truth, lambda v, row: v)


@st.composite
def scenes(draw):
    """Draws from few classes, instants and scores, for many ties, duplicates, empty segments and empty videos."""
    times = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1]))
    truth = st.tuples(st.integers(0, 2), times).map(lambda t: [t[0], *t[1]])
    found = st.tuples(truth, st.sampled_from([0.1, 0.2, 0.5, 0.9])).map(lambda t: [*t[0], t[1]])
    video = st.sampled_from("abcd")
    detections = draw(st.dictionaries(video, st.lists(found, max_size=8)))
    ground_truth = draw(st.dictionaries(video, st.lists(truth, max_size=6)))
    return (
        {v: np.array(rows, float).reshape(-1, 4) for v, rows in detections.items()},
        {v: np.array(rows, float).reshape(-1, 3) for v, rows in ground_truth.items()},
    )


@settings(max_examples=200, deadline=None)
@given(scenes(), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_equals_the_loop(scene, threshold):
    for metric, slow in ((event_map, slow_official), (event_map_strict, slow_strict)):
        result = metric(*scene, num_classes=3, thresholds=(threshold,))
        found = result["mAP_action"][0] / 100, result["mAP_video"][0] / 100
        np.testing.assert_allclose(found, slow(*scene, 3, threshold), rtol=0, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_strict_equals_detection_map_and_ignores_empty_videos_and_the_order_of_truths(scene):
    detections, ground_truth = scene
    result = event_map_strict(detections, ground_truth, num_classes=3)
    same = detection_map(detections, ground_truth, num_classes=3, thresholds=(0.1, 0.3, 0.5), cleaning="none")
    np.testing.assert_array_equal(result["per_class"], same["per_class"])
    more = event_map_strict(detections | {"x": np.zeros((0, 4))}, ground_truth | {"x": []}, num_classes=3)
    np.testing.assert_equal(more, result)
    official = event_map(detections, ground_truth, num_classes=3)
    np.testing.assert_equal(event_map(detections, ground_truth | {"x": [[0, 0, 1]]}, num_classes=3), official)


@pytest.mark.parametrize("metric", [event_map, event_map_strict])
def test_without_ties_order_and_scale_of_scores_do_not_matter(metric):
    _, detections, ground_truth = golden(DATA / "event_map_synth_0.npz")
    rng = np.random.default_rng(0)
    scores = iter(rng.permutation(1000) / 1000)
    detections = {v: np.column_stack([rows[:, :3], [next(scores) for _ in rows]]) for v, rows in detections.items()}
    result = metric(detections, ground_truth, num_classes=51)
    shuffled = {v: rng.permutation(detections[v]) for v in reversed(detections)}
    logits = {v: np.column_stack([rows[:, :3], np.log(rows[:, 3] + 1e-9)]) for v, rows in detections.items()}
    for other in (shuffled, logits):
        again = metric(other, ground_truth, num_classes=51)
        for key in result:
            np.testing.assert_allclose(again[key], result[key], rtol=1e-12)


def test_perfect_detections_give_100():
    ground_truth = {"a": np.array([[0, 0, 4], [1, 2, 8]]), "b": np.array([[0, 5, 9]])}
    perfect = {v: np.column_stack([rows, np.linspace(0.2, 0.9, len(rows))]) for v, rows in ground_truth.items()}
    for metric in (event_map, event_map_strict):
        result = metric(perfect, ground_truth, num_classes=2, thresholds=(0.1, 1.0))
        assert result["mAP_action"].tolist() == result["mAP_video"].tolist() == [100, 100]


@pytest.mark.parametrize("metric", [event_map, event_map_strict])
def test_refusals_name_function_argument_video_and_value(metric):
    found, truth = {"v": np.array([[0, 0, 9, 0.9]])}, {"v": np.array([[0, 0, 9]])}
    name = metric.__name__

    def refused(message, detections=found, ground_truth=truth, **options):
        with pytest.raises(ValueError, match=message):
            metric(detections, ground_truth, **{"num_classes": 2} | options)

    refused(rf"^{name}: detections\['v'\] must be \[N, 4\] rows .*score\); got shape \(1, 3\)", truth)
    refused(rf"^{name}: ground_truth\['v'\] must be \[N, 3\] rows .*end\); got shape \(1, 4\)", found, found)
    refused(rf"^{name}: detections\['v'\] row 0: the score is NaN", {"v": [[0, 0, 9, np.nan]]})
    refused(rf"^{name}: detections\['v'\] row 1: class 2 is not one of 0 … 1", {"v": [[0, 0, 9, 1], [2, 0, 9, 1]]})
    refused(r"class 0\.5 is not one of", {"v": [[0.5, 0, 9, 1]]})
    refused(r"class nan is not one of", {"v": [[np.nan, 0, 9, 1]]})
    refused(rf"^{name}: ground_truth\['w'\] row 0: start and end .*; got 9 and 3", found, {"w": [[0, 9, 3]]})
    refused(r"start and end must be finite .* got 0 and inf", found, {"v": [[0, 0, np.inf]]})
    refused(r"ground_truth\['v'\] must be an array of numbers", found, {"v": [["a", "b", "c"]]})
    refused(rf"^{name}: detections must be a mapping from video to array; got list", [found["v"]])
    refused(rf"^{name}: num_classes must be at least 1; got 0", num_classes=0)
    for thresholds in ((), (0,), (1.1,), (0.5, np.nan)):
        refused(rf"^{name}: thresholds must be one or more numbers in \(0, 1\]", thresholds=thresholds)
