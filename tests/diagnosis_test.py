"""The sentences after an experiment, on made-up results of each case."""

import json

import pytest

from kd_jax.training.diagnosis import best_student, describe_early_end, diagnose

RULE = "dataset.validation_fraction=0.2, validation_seed=0"


def row(run, test, validation=(), *, teachers=(), members=(), baseline="plain", gain=None, **fields):
    scores = {"frame mAP": list(test), "validation": list(validation)}
    made = {
        "run": run,
        "members": list(members),
        "teachers": list(teachers),
        "scores": {title: values for title, values in scores.items() if values},
        "test": [{"frame_map/present_classes": score} for score in test],
        "baseline": baseline,
        "gain": gain,
        "best_epoch": [],
    }
    return made | fields


def with_classes(made, *per_seed):
    """Adds the AP of the classes a, b, … of each seed."""
    tests = [{"per_class": {"frame_map": dict(zip("abcde", values, strict=False))}} for values in per_seed]
    return made | {"test": [old | new for old, new in zip(made["test"], tests, strict=True)]}


def sentences(*rows, is_trial=False, **fields):
    held_out = {"videos": 4, "rule": RULE, "groups": []}
    results = {"gain_of": "frame mAP", "epochs": 30, "validation": held_out, "rows": list(rows), **fields}
    return diagnose(json.loads(json.dumps(results)), is_trial=is_trial)


def student(*gain, name="student", teachers=("teacher",), **fields):
    """A student of the plain row that scores 40."""
    return row(name, [40.0 + value for value in gain], teachers=teachers, gain=list(gain), **fields)


def test_the_best_student_is_chosen_by_validation():
    rows = [row("teacher", [62.0], [70.0]), row("plain", [40.0], [60.0])]
    assert best_student({"rows": rows}) == "plain"
    rows += [student(1.0, name="a", validation=[50.0]), student(9.0, name="b", validation=[48.0])]
    rows += [row("both", [80.0], [80.0], members=["plain", "b"]), student(0.0, validation=[51.0, 51.0], chosen="tried")]
    assert best_student({"rows": rows}) == "tried"
    assert best_student({"rows": rows[:5]}) == "a"
    assert best_student({"rows": [student(1.0, name="first"), student(9.0, name="second")]}) == "first"


def test_one_seed_with_a_better_teacher_and_streams_that_complement_each_other():
    teacher = with_classes(row("teacher", [62.0], [51.0]), [50.0, 60.0, 70.0, 10.0, None])
    plain = with_classes(row("plain", [40.0], [40.0]), [40.0, 20.0, 50.0, 20.0, 5.0])
    both = row("both", [70.0], [60.0], members=["teacher", "plain"])
    assert sentences(teacher, plain, student(1.74, validation=[41.0]), both) == [
        "The teacher teacher is better than plain on the test videos (+22.00) and in validation (+11.00).",
        "It is better in 3 of 4 classes, most in b (+40.0), c (+20.0) and a (+10.0).",
        "The streams of both complement each other: their fusion is better than teacher, the best stream, on the test "
        "videos (+8.00).",
        "One seed cannot show whether a difference is real; add `--config.seeds=5`.",
        "Validation orders 3 of 3 pairs of runs as the test does (rank correlation 1.00).",
    ]


def test_several_seeds_with_a_weak_teacher_whose_fusion_is_better():
    teacher = with_classes(row("teacher", [37.0, 38.0, 37.5], [50.0, 51.0, 52.0]), *[[30.0, 10.0]] * 3)
    plain = with_classes(row("plain", [40.0] * 3, [40.0] * 3), *[[40.0, 20.0]] * 3)
    both = row("both", [45.0, 46.0, 47.0], [60.0] * 3, members=["teacher", "plain"])
    assert sentences(teacher, plain, student(1.0, -1.0, 0.5, validation=[41.0] * 3), both) == [
        "The teacher teacher is worse than plain on the test videos (-2.50 [-3.74, -1.26]) and is better than it in "
        "validation (+11.00 [+8.52, +13.48]).",
        "It is better in none of 2 classes.",
        "The streams of both complement each other: their fusion is better than plain, the best stream, on the test "
        "videos (+6.00 [+3.52, +8.48]).",
        "student does not differ measurably from plain (+0.17 [-2.42, +2.75]): the interval contains 0.",
        "Validation orders 1 of 3 pairs of runs as the test does (rank correlation -0.33).",
        "Next, train a better teacher or choose another one.",
    ]


def test_a_teacher_that_is_not_better():
    plain, teacher = row("plain", [40.0, 40.0]), row("teacher", [40.0, 40.0])
    both = row("both", [40.0, 40.0], members=["teacher", "plain"])
    assert sentences(plain, teacher, both, student(-1.0, -1.0)) == [
        "The teacher teacher does not differ measurably from plain on the test videos (+0.00 [+0.00, +0.00]).",
        "It is open whether the streams of both complement each other: their fusion does not differ measurably from "
        "teacher, the best stream, on the test videos (+0.00 [+0.00, +0.00]).",
        "student is worse than plain (-1.00 [-1.00, -1.00]): the interval excludes 0.",
        "Next, try smaller weights: `kd-jax advise` compares several.",
    ]
    assert sentences(row("plain", [40.0]), row("teacher", [40.0]), student(1.0))[0] == (
        "The teacher teacher is as good as plain on the test videos (+0.00)."
    )


def test_a_real_gain_and_a_teacher_from_outside():
    assert sentences(row("plain", [40.0] * 3), student(6.0, 7.0, 6.5)) == [
        "student is better than plain (+6.50 [+5.26, +7.74]): the interval excludes 0.",
        "Next, run `kd-jax analyse` to see in which classes and actions student gains.",
    ]


def test_an_unclear_gain_with_a_better_teacher():
    rows = row("plain", [40.0, 40.0]), row("teacher", [60.0, 60.5])
    assert sentences(*rows, student(1.0, 4.0))[1:] == [
        "student does not differ measurably from plain (+2.50 [-16.56, +21.56]): the interval contains 0.",
        "Next, add seeds, or try other weights: `kd-jax advise` compares several.",
    ]
    assert sentences(*rows, student(1.0, 4.0), is_trial=True)[1:] == [
        "student does not differ measurably from plain (+2.50 [-16.56, +21.56]): the interval contains 0."
    ]


def test_many_runs_are_counted():
    plain, gains = row("plain", [40.0, 40.0]), {"a": (5.0, 5.2), "b": (-3.0, -3.1), "c": (1.0, -1.0), "d": (0.0, 3.0)}
    students = [student(*gain, name=name, best_epoch=[30, 2]) for name, gain in gains.items()]
    assert sentences(plain, *students) == [
        "Of 4 distilled runs, 1 is better than the plain student (best: a +5.10 [+3.83, +6.37]) and 1 is worse; "
        "2 show no measurable difference. By chance, one interval in 20 excludes 0.",
        "Training may have ended too early: the best epoch of 4 of 4 runs is among the last 3 of 30 epochs; "
        "try `--config.training.epochs=60`.",
        "Next, run `kd-jax analyse` to see in which classes and actions a gains.",
    ]
    better = [student(5.0, 5.2, name=name) for name in "abcd"]
    assert sentences(plain, *better)[0].endswith(
        "4 are better than the plain student (best: a +5.10 [+3.83, +6.37], b +5.10 [+3.83, +6.37] and c +5.10 "
        "[+3.83, +6.37]) and none is worse. By chance, one interval in 20 excludes 0."
    )
    one_seed = [student(1.0, name=name) for name in "abcd"]
    assert sentences(row("plain", [40.0]), *one_seed) == [
        "One seed cannot show whether a difference is real; add `--config.seeds=5`."
    ]
    teachers = [row(name, [50.0]) for name in "vwxyz"]
    found = sentences(row("plain", [40.0]), *teachers, student(1.0, teachers="vwxyz"))
    assert found[2:4] == [
        "The teacher x is better than plain on the test videos (+10.00).",
        "The table has 2 more pairs of a teacher and a plain student.",
    ]


@pytest.mark.parametrize(
    ("epochs", "best", "found"),
    [
        (30, [27], None),
        (30, [28], "is among the last 3 of 30 epochs; try `--config.training.epochs=60`"),
        (5, [5, 1], "is the last of 5 epochs; try `--config.training.epochs=10`"),
        (5, [5, 1, 2], None),
        (1, [1], None),
        (30, [], None),
    ],
)
def test_a_best_epoch_near_the_end(epochs, best, found):
    sentence = f"Training may have ended too early: the best epoch of plain {found}."
    assert sentences(row("plain", [40.0], best_epoch=best), epochs=epochs) == ([sentence] if found else [])
    of_log = sentence.replace("the best epoch of plain", "its best epoch")
    assert not found or describe_early_end("its best epoch", epochs) == of_log


@pytest.mark.parametrize(
    ("held_out", "end"),
    [
        ({"rule": RULE, "groups": []}, "; if several training videos show one person or place, hold out whole groups "),
        ({"rule": RULE, "groups": ["s1"]}, "."),
        ({"rule": "named by the records", "groups": []}, "."),
    ],
    ids=["drawn", "groups", "named"],
)
def test_validation_that_promises_too_much(held_out, end):
    (found,) = sentences(row("plain", [20.0], [36.0]), row("other", [22.0], [34.0]), validation=held_out)
    whole = "Validation scores are 14.0 points above test scores on average"
    assert found == (f"{whole}{end}" if end == "." else f"{whole}{end}with `--config.dataset.validation_groups=REGEX`.")
    assert sentences(row("plain", [20.0], [24.0]), row("other", [22.0], [24.0])) == []  # 3 points
    assert sentences(row("plain", [80.0], [90.0]), row("other", [81.0], [90.0])) == []  # an eighth


def test_without_test_scores_validation_compares_teacher_and_streams():
    teacher, plain = row("teacher", [], [51.0]), row("plain", [], [40.0])
    both = row("both", [], [60.0], members=["teacher", "plain"])
    assert sentences(teacher, plain, row("student", [], [41.0], teachers=["teacher"]), both) == [
        "The teacher teacher is better than plain in validation (+11.00).",
        "The streams of both complement each other: their fusion is better than teacher, the best stream, in "
        "validation (+9.00).",
    ]


def test_without_validation_videos_nothing_shows_whether_training_was_long_enough():
    found = sentences(row("plain", [40.0], best_epoch=[30]), validation={"videos": 0, "rule": "", "groups": []})
    assert found == ["Without validation videos, nothing shows whether training was long enough."]


def test_a_teacher_that_explains_too_little_of_the_labels():
    plain, levels = row("plain", [40.0, 40.0]), {"weights": {"atomic": 1, "soft_labels": 0.5}}
    *_, why, last = sentences(plain, student(-1.0, -1.1, competence=[0.3, 0.4], **levels))
    assert why == (
        "The terms of student that compare features hardly count, because the teacher explains too little of the "
        "training labels (competence 0.35)."
    )
    assert last == "Next, train longer, or choose a teacher that explains more of the training labels."
    only_soft = {"competence": [0, 0], "weights": {"soft_labels": 0.5}}
    for enough in ({"competence": [0.6, 0.7], **levels}, only_soft, levels):
        assert "hardly" not in " ".join(sentences(plain, student(-1.0, -1.1, **enough)))
    weak = {"competence": [0.3, 0.4], **levels}
    many = [student(2.0, 2.1, name=name, teachers=("teacher", "second"), **weak) for name in "abcd"]
    *_, why, last = sentences(plain, *many)
    assert why.startswith(
        "The terms of 4 distilled runs that compare features hardly count, because the teachers explain"
    )
    assert "kd-jax analyse" in last  # they gain all the same
    assert "hardly" in sentences(plain, student(-1.0, -1.1, **weak), is_trial=True)[-1]


def test_what_does_not_exist_is_left_out():
    assert sentences(row("plain", [40.0]), row("other", [41.0], gain=[1.0])) == []  # no teacher, one seed
    assert (
        sentences(row("plain", [None]), row("student", [None], teachers=["t"]), row("t", [None])) == []
    )  # no action is scored
    assert sentences(row("student", [1.0], teachers=["teacher"], baseline="")) == []
    older = {"rows": [{"run": "a", "teachers": [], "scores": {"frame mAP": [3.0]}, "baseline": "a", "gain": None}]}
    assert diagnose(older) == []


def test_training_that_ended_too_early_is_the_next_step():
    rows = row("plain", [40.0, 40.0], [30.0, 30.0], best_epoch=[30, 30]), student(-1.0, 1.1, best_epoch=[30, 29])
    assert sentences(*rows)[-1] == "Next, train longer."
    nobody = {"videos": 0, "rule": "", "groups": []}  # chooses an epoch
    assert sentences(*rows, validation=nobody)[-1].startswith("Next, add seeds")


def test_measures_other_than_frame_map_are_named():
    rows = [row("plain", [40.0] * 2, [50.0] * 2), row("teacher", [41.0] * 2, [49.0] * 2), student(1.0, 1.2)]
    for each in rows:
        each["scores"]["event@0.1"] = each["scores"].pop("frame mAP")
    rows[2]["scores"]["validation"] = [52.0, 52.0]
    text = " ".join(sentences(*rows, gain_of="event@0.1"))
    assert "is better than plain in event@0.1 on the test videos (+1.00" in text
    assert "is worse than it in validation" in text
    assert "of 3 pairs of runs as the test does in event@0.1 (" in text
