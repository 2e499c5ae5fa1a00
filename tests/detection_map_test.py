"""Detection mAP: values of the public codes, every option by hand, loops, laws, and messages."""

import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kd_jax.evaluation.metrics import detection_map as module
from kd_jax.evaluation.metrics.detection_map import detection_map, detection_map_by_length
from kd_jax.evaluation.metrics.ground_truth_cleaning import CLEANINGS

DATA = pathlib.Path(__file__).parent / "data"  # invented segments, outputs of OpenTAD, ActionFormer, ActivityNet


def golden(name):
    data = np.load(DATA / f"{name}.npz")
    detections, ground_truth = {}, {}
    for index, video in enumerate(data["video_names"]):
        found, truth = data["pred_video"] == index, data["gt_video"] == index
        columns = [data[f"pred_{name}"][found] for name in ("label", "start", "end", "score")]
        detections[str(video)] = np.stack(columns, axis=1).astype(np.float64)
        columns = [data[f"gt_{name}"][truth] for name in ("label", "start", "end")]
        ground_truth[str(video)] = np.stack(columns, axis=1).astype(np.float64)
    num_classes = 1 + int(max(data["pred_label"].max(), data["gt_label"].max()))
    return data, detections, ground_truth, num_classes


def score(detections, truths, threshold=0.5, num_classes=1, **options):
    """Computes mAP of one video at one threshold, by default without cleaning."""
    options = {"cleaning": "none"} | options
    result = detection_map(
        {"v": detections}, {"v": truths}, num_classes=num_classes, thresholds=(threshold,), **options
    )
    return result["mAP"][0]


@pytest.mark.parametrize("code", ["opentad", "actionformer", "activitynet"])
@pytest.mark.parametrize("name", ["det_map_clean", "det_map_20cls", "det_map_dirty_gt"])
def test_public_codes(name, code):
    data, detections, ground_truth, num_classes = golden(name)
    result = detection_map(detections, ground_truth, num_classes=num_classes, cleaning=code)
    np.testing.assert_allclose(result["thresholds"], data["tiou"])
    np.testing.assert_allclose(result["mAP"] / 100, data[f"{code}_mAP"], rtol=0, atol=1e-6)
    present = ~np.isnan(result["per_class"][0])
    np.testing.assert_allclose(result["per_class"][:, present] / 100, data[f"{code}_AP"], rtol=0, atol=1e-6)
    assert result["average_mAP"] == pytest.approx(100 * data[f"{code}_mAP"].mean(), abs=1e-4)
    if code != "activitynet":
        np.testing.assert_allclose(result["recall"] / 100, data[f"{code}_mRecall_1x_5x"], rtol=0, atol=1e-6)
    if code == "opentad":
        recall = result["recall_per_class"][:, :, present] / 100
        np.testing.assert_allclose(recall, data["opentad_recall_1x_5x"], rtol=0, atol=1e-6)


def test_thresholds_are_the_named_sets():
    np.testing.assert_allclose(module.THUMOS14_THRESHOLDS, np.arange(3, 8) / 10)
    np.testing.assert_allclose(module.THUMOS14_KIT_THRESHOLDS, np.arange(1, 6) / 10)
    np.testing.assert_allclose(module.ACTIVITYNET_THRESHOLDS, np.arange(10, 20) / 20)


def test_by_hand():
    # Ranked: − (another place), + (A), − (A again), + (B). At the hits: 1/2 and 2/4, interpolated the same.
    detections = [[0, 20, 30, 0.5], [0, 0, 9, 0.7], [0, 0, 10, 0.8], [0, 50, 60, 0.9]]
    truths = [[0, 0, 10], [0, 20, 30]]
    assert score(detections, truths) == pytest.approx(50)
    # Without the first: +, −, +. A third, never found, ground truth.
    assert score(detections[:3], [*truths, [0, 80, 90]]) == pytest.approx(100 * (1 + 2 / 3) / 3)
    # −, +, +: 1/2, 2/3 or, interpolated, 2/3 twice.
    rising = [[0, 50, 60, 0.9], [0, 0, 10, 0.8], [0, 20, 30, 0.7]]
    assert score(rising, truths) == pytest.approx(100 * 2 / 3)
    plain = score(rising, truths, average_precision="non_interpolated")
    assert plain == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)


def test_a_detection_takes_the_next_best_ground_truth_if_the_best_is_taken():
    truths = [[0, 0, 10], [0, 2, 12]]
    assert score([[0, 0, 10, 0.9], [0, 0, 10, 0.8]], truths) == 100
    assert score([[0, 0, 10, 0.9], [0, 0, 10, 0.8]], truths, threshold=0.8) == 50


def test_equal_tiou_takes_the_later_ground_truth_and_equal_scores_keep_their_order():
    truths = [[0, 0, 10], [0, 10, 20]]
    assert score([[0, 5, 15, 0.9], [0, 10, 20, 0.8]], truths, threshold=0.3) == 50  # the second one's is taken
    assert score([[0, 5, 15, 0.9], [0, 0, 10, 0.8]], truths, threshold=0.3) == 100
    true, false = [0, 0, 10, 0.5], [0, 50, 60, 0.5]
    assert score([true, false], truths[:1]) == 100
    assert score([false, true], truths[:1]) == 50
    other = detection_map(
        {"b": [false], "a": [true]}, {"a": truths[:1]}, num_classes=1, thresholds=(0.5,), cleaning="none"
    )
    assert other["mAP"][0] == 50


def test_matching_by_ground_truth_takes_the_closest_detection_and_must_pass_the_threshold():
    loose, close, truths = [0, 0, 14, 0.9], [0, 0, 10, 0.8], [[0, 0, 10]]
    kit = {"matching": "by_ground_truth", "average_precision": "non_interpolated"}
    assert score([loose, close], truths) == 100
    assert score([loose, close], truths, **kit) == 50
    assert score([[0, 0, 5, 0.9]], truths) == 100  # tIoU 0.5 at threshold 0.5
    assert score([[0, 0, 5, 0.9]], truths, **kit) == 0
    assert score([close, [0, 0, 10, 0.7], loose], truths, **kit) == pytest.approx(
        50
    )  # if tIoUs are equal, the more confident one is taken


@pytest.mark.parametrize(
    ("truths", "kept"),
    [  # kept: how many opentad, actionformer, activitynet and none keep
        ([[0, 0, 10], [0, 0, 10]], (1, 1, 2, 2)),
        ([[0, 0, 10], [0, 0.0009, 10.0009]], (1, 1, 2, 2)),
        ([[0, 0, 10], [0, 0.0011, 10]], (2, 2, 2, 2)),
        ([[0, 0, 10], [0, 0.0009, 10], [0, 0.0018, 10]], (2, 2, 3, 3)),  # the third is close to a dropped one only
        ([[0, 0, 10], [1, 0, 10]], (2, 2, 2, 2)),
        ([[0, 5, 5]], (0, 0, 1, 1)),
        ([[0, 5, 5.0005]], (1, 0, 1, 1)),
    ],
)
def test_cleaning(truths, kept):
    assert tuple(CLEANINGS) == ("opentad", "actionformer", "activitynet", "none")
    for cleaning, expected in zip(CLEANINGS, kept, strict=True):
        result = detection_map_by_length({}, {"v": truths}, num_classes=2, cleaning=cleaning, bins={"all": (0, 99)})
        empty = sum(end == start for _, start, end in truths)  # length 0 is in no bin
        assert result["all"]["num_ground_truths"] + empty * (cleaning in ("activitynet", "none")) == expected, cleaning


def test_segments_of_length_0():
    found = [[0, 5, 5, 0.9], [0, 0, 10, 0.8]]
    truths = [[0, 5, 5], [0, 0, 10]]
    assert score(found, truths, cleaning="activitynet") == 100  # the NaN of its 0/0
    assert score(found, truths, cleaning="none") == 25  # −, +: 1/2 of two
    assert score(found, truths, cleaning="opentad") == 50  # −, +: 1/2 of one
    assert score(found, truths[1:], cleaning="activitynet") == 50  # length 0 inside another is not a match


def test_ambiguous_detections_are_neither_true_nor_false():
    detections = [[0, 50, 60, 0.9], [0, 0, 10, 0.8], [0, 70, 80, 0.7], [0, 20, 30, 0.6]]
    truths = [[0, 0, 10], [0, 20, 30]]
    assert score(detections, truths) == pytest.approx(100 * (1 / 2 + 2 / 4) / 2)
    assert score(detections, truths, ignored={"v": [[59, 65]]}) == pytest.approx(100 * (1 + 2 / 3) / 2)  # overlap of 1
    assert score(detections, truths, ignored={"v": [[59, 75]]}) == 100
    assert score(detections, truths, ignored={"v": [[0, 100]]}) == 100  # those with a ground truth stay true
    for nothing in ({"v": [[60, 70]]}, {"w": [[0, 100]]}, {"v": np.zeros((0, 2))}, {}, None):  # touching is no overlap
        assert score(detections, truths, ignored=nothing) == score(detections, truths)
    # The segment is ambiguous for any class, and a duplicate is a detection without a match.
    two = [[0, 0, 10, 0.9], [0, 0, 10, 0.8], [1, 0, 10, 0.7], [1, 20, 30, 0.6]]
    both = [[0, 0, 10], [0, 40, 50], [1, 20, 30]]
    assert score(two, both, num_classes=2) == pytest.approx((50 + 50) / 2)
    assert score(two, both, num_classes=2, ignored={"v": [[2, 3]]}) == pytest.approx((50 + 100) / 2)


def test_recall_by_hand():
    # Two ground truths: the top 2, then the top 10 count. Both of the top 2 reach the same ground truth, the third
    # reaches the other. Video b does not matter; the ground truth of c is never found.
    detections = {"a": [[0, 0, 10, 0.9], [0, 0, 9, 0.8], [0, 20, 30, 0.7]], "b": [[0, 0, 10, 1]]}
    ground_truth = {"a": [[0, 0, 10], [0, 20, 30]], "c": [[0, 0, 10]]}
    result = detection_map(detections, ground_truth, num_classes=2, thresholds=(0.5, 0.95))
    np.testing.assert_allclose(result["recall"], [[100 / 3, 200 / 3]] * 2)
    np.testing.assert_allclose(result["recall_per_class"][0], [[100 / 3, np.nan], [200 / 3, np.nan]])
    alone = detection_map(detections, ground_truth, num_classes=2, thresholds=(0.5,), recall_multiples=(5,))
    np.testing.assert_allclose(alone["recall"], [[200 / 3]])


def test_by_length_ignores_ground_truth_of_other_lengths():
    # Ranked: + long, − nowhere, + short. Short: −, + of one. Long: +, −; all unmatched are false in every bin.
    detections = {"v": [[0, 0, 10, 0.9], [0, 50, 60, 0.8], [0, 20, 22, 0.7]]}
    ground_truth = {"v": [[0, 0, 10], [0, 20, 22], [0, 80, 82]]}
    bins = {"short": (0, 3), "long": (3, 10), "none": (10, np.inf)}
    result = detection_map_by_length(detections, ground_truth, num_classes=2, bins=bins, thresholds=(0.5, 0.7))
    assert {name: r["num_ground_truths"] for name, r in result.items()} == {"short": 2, "long": 1, "none": 0}
    np.testing.assert_allclose(result["short"]["mAP"], [25, 25])
    np.testing.assert_allclose(result["long"]["mAP"], [100, 100])
    assert np.isnan(result["none"]["mAP"]).all()
    everything = detection_map_by_length(detections, ground_truth, num_classes=2, bins={"all": (0, np.inf)})["all"]
    plain = detection_map(detections, ground_truth, num_classes=2)
    for key in ("mAP", "average_mAP", "per_class"):
        np.testing.assert_array_equal(everything[key], plain[key])


def slow(detections, ground_truth, num_classes, threshold, kit, ignored, limits=(-1, np.inf)):
    """Computes AP per class in [0, 1]; None without ground truth of a length within the limits."""

    def overlap(a, b):
        both = max(0, min(a[1], b[1]) - max(a[0], b[0]))
        either = (a[1] - a[0]) + (b[1] - b[0]) - both
        return both / either if either else 0

    result = []
    for class_id in range(num_classes):
        found = [(r[3], v, (r[1], r[2])) for v, rows in detections.items() for r in rows if r[0] == class_id]
        found.sort(key=lambda item: -item[0])
        truths = [(v, (r[1], r[2])) for v, rows in ground_truth.items() for r in rows if r[0] == class_id]
        match = {}
        for one in range(len(truths) if kit else len(found)):
            best, chosen = threshold, None
            for other in range(len(found) if kit else len(truths)):
                d, t = (other, one) if kit else (one, other)
                value = overlap(found[d][2], truths[t][1])
                free = d not in match if kit else t not in match.values()
                if found[d][1] == truths[t][0] and free and (value > best if kit else value >= best):
                    best, chosen = value, (d, t)
            if chosen:
                match[chosen[0]] = chosen[1]
        inside = [limits[0] < t[1] - t[0] <= limits[1] for _, t in truths]
        hits = []
        for d, (_, video, segment) in enumerate(found):
            ambiguous = any(min(segment[1], b) > max(segment[0], a) for a, b in ignored.get(video, []))
            if d in match and inside[match[d]]:
                hits.append(True)
            elif d not in match and not ambiguous:
                hits.append(False)
        precision = [sum(hits[:n]) / n for n in range(1, len(hits) + 1)]
        at_hits = [precision[i] if kit else max(precision[i:]) for i, hit in enumerate(hits) if hit]
        result.append(sum(at_hits) / sum(inside) if any(inside) else None)
    return result


@st.composite
def scenes(draw):
    """Draws from few classes, instants and scores, for many ties, duplicates, empty segments and empty videos."""
    times = st.tuples(st.integers(0, 12), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1]))
    truth = st.tuples(st.integers(0, 2), times).map(lambda t: [t[0], *t[1]])
    found = st.tuples(truth, st.sampled_from([0.1, 0.2, 0.5, 0.9])).map(lambda t: [*t[0], t[1]])
    video = st.sampled_from("abcd")
    detections = draw(st.dictionaries(video, st.lists(found, max_size=8)))
    ground_truth = draw(st.dictionaries(video, st.lists(truth, max_size=6)))
    ignored = draw(st.dictionaries(video, st.lists(times, max_size=2)))
    return detections, ground_truth, ignored


@settings(max_examples=200, deadline=None)
@given(scenes(), st.sampled_from([0.1, 0.3, 0.5, 1.0]), st.booleans())
def test_equals_the_loop(scene, threshold, kit):
    detections, ground_truth, ignored = scene
    options = {"num_classes": 3, "thresholds": (threshold,), "cleaning": "none", "ignored": ignored}
    if kit:
        options |= {"matching": "by_ground_truth", "average_precision": "non_interpolated"}

    def check(result, expected):
        expected = [np.nan if ap is None else 100 * ap for ap in expected]
        np.testing.assert_allclose(result["per_class"], [expected], rtol=1e-12, atol=1e-12)

    check(
        detection_map(detections, ground_truth, **options),
        slow(detections, ground_truth, 3, threshold, kit, ignored),
    )
    binned = detection_map_by_length(detections, ground_truth, bins={"short": (0, 3), "long": (3, 9)}, **options)
    for name, limits in (("short", (0, 3)), ("long", (3, 9))):
        check(binned[name], slow(detections, ground_truth, 3, threshold, kit, ignored, limits))


@settings(max_examples=50, deadline=None)
@given(scenes())
def test_empty_videos_change_nothing(scene):
    detections, ground_truth, _ = scene
    result = detection_map(detections, ground_truth, num_classes=3)
    more = detection_map(detections | {"x": np.zeros((0, 4))}, {"y": []} | ground_truth, num_classes=3)
    np.testing.assert_equal(more, result)


def test_without_ties_order_and_scale_of_scores_do_not_matter():
    _, detections, ground_truth, num_classes = golden("det_map_20cls")
    result = detection_map(detections, ground_truth, num_classes=num_classes)
    rng = np.random.default_rng(0)
    shuffled = {v: rng.permutation(detections[v]) for v in reversed(detections)}
    logits = {v: np.column_stack([rows[:, :3], np.log(rows[:, 3])]) for v, rows in detections.items()}
    truths = {v: rng.permutation(rows) for v, rows in ground_truth.items()}
    for found, truth in ((shuffled, ground_truth), (logits, ground_truth), (detections, truths)):
        again = detection_map(found, truth, num_classes=num_classes)
        for key in result:
            np.testing.assert_allclose(again[key], result[key], rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"matching": "by_ground_truth"}, {"average_precision": "non_interpolated"}])
def test_perfect_detections_give_100(options):
    _, _, ground_truth, num_classes = golden("det_map_20cls")
    perfect = {v: np.column_stack([rows, np.linspace(0.2, 0.9, len(rows))]) for v, rows in ground_truth.items()}
    result = detection_map(perfect, ground_truth, num_classes=num_classes, **options)
    np.testing.assert_array_equal(result["mAP"], 100)
    np.testing.assert_array_equal(result["recall"][:, 1], 100)


def test_no_detections_and_no_ground_truth():
    truth = {"v": [[0, 0, 9]]}
    result = detection_map({}, truth, num_classes=1)
    assert (result["average_mAP"], result["recall"].max()) == (0, 0)
    result = detection_map({"v": [[0, 0, 9, 1]]}, {}, num_classes=1)
    assert np.isnan(result["average_mAP"])
    assert np.isnan(result["recall"]).all()


def test_refusals_name_function_argument_video_and_value():
    found, truth = {"v": [[0, 0, 9, 0.9]]}, {"v": [[0, 0, 9]]}

    def refused(message, metric=detection_map, detections=found, **options):
        with pytest.raises(ValueError, match=message):
            metric(detections, truth, **{"num_classes": 2} | options)

    refused(r"^detection_map: detections\['v'\] row 0: the score is NaN", detections={"v": [[0, 0, 9, np.nan]]})
    refused(r"^detection_map: detections\['v'\] must be \[N, 4\].*\(1, 3\)", detections=truth)
    refused(
        r"^detection_map: ignored\['v'\] must be \[N, 2\] rows \(start, end\); got shape \(2,\)", ignored={"v": [0, 1]}
    )
    refused(r"ignored\['v'\] row 0: start and end .* got 2 and 1", ignored={"v": [[2, 1]]})
    refused(r"ignored must be a mapping", ignored=[[0, 1]])
    refused(r"matching='greedy' is unknown; choose one of by_confidence, by_ground_truth", matching="greedy")
    refused(
        r"average_precision='voc' is unknown; choose one of interpolated, non_interpolated", average_precision="voc"
    )
    refused(r"cleaning='thumos' is unknown; choose one of opentad, actionformer, activitynet, none", cleaning="thumos")
    refused(r"thresholds must be one or more numbers in \(0, 1\]", thresholds=(50,))
    refused(r"recall_multiples must be one or more positive numbers; got \(0,\)", recall_multiples=(0,))
    by_length = detection_map_by_length
    refused(r"^detection_map_by_length: detections\['v'\] row 0: class 5", by_length, {"v": [[5, 0, 9, 1]]})
    refused(r"^detection_map_by_length: bins must name at least one", by_length, bins={})
    refused(r"bins\['a'\] must be \(longer than, at most\) in seconds; got \(3, 3\)", by_length, bins={"a": (3, 3)})
