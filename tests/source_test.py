"""Sources: the validation split, and where features are kept."""

import numpy as np
import pytest

from kd_jax import runtime
from kd_jax.data import base
from kd_jax.data import source as source_module
from kd_jax.data.source import choose_validation, open_source, split_validation


@pytest.mark.parametrize("fraction, held_out", [(0, 0), (0.01, 1), (0.2, 2), (0.5, 5)])
def test_validation_split(fraction, held_out):
    ids = [f"v{i}" for i in range(10)]
    train, validation = split_validation(ids[::-1], fraction, seed=3)
    assert (len(validation), sorted(train + validation)) == (held_out, ids)
    assert split_validation(ids, fraction, seed=3) == (train, validation)


def test_validation_must_leave_training_videos():
    with pytest.raises(ValueError, match=r"validation_fraction=0.9 of 2 training videos leaves none"):
        split_validation(["a", "b"], 0.9, 0)


def videos(*names, validation=()):
    segments = np.zeros((0, 3))
    return [base.Video(name, {}, segments, 1.0, validation=name in validation) for name in names]


def test_whole_groups_are_held_out():
    names = [f"S{i:02d}_{take}" for i in range(10) for take in "abc"]
    chosen = choose_validation(videos(*names), 0.3, 1, r"^(S\d+)_")
    assert len(chosen.groups) == 3 and chosen.ids == {name for name in names if name[:3] in chosen.groups}
    whole_match = choose_validation(videos(*names), 0.3, 1, r"^S\d+")
    assert whole_match.ids == chosen.ids
    assert chosen.rule.endswith("validation_groups='^(S\\\\d+)_': 3 of 10 groups")


def test_videos_that_the_records_name_are_held_out():
    chosen = choose_validation(videos("a", "b", "c", validation="b"), 0.2, 0)
    assert (chosen.ids, chosen.rule, chosen.groups) == ({"b"}, "named by the records", ())


@pytest.mark.parametrize(
    "named, options, message",
    [
        ("", (0.2, 0, "^P"), r"validation_groups='\^P' matches 0 of 2 training videos, and not 'S1_a'"),
        ("", (0.2, 0, "S1"), "matches 1 of 2 training videos, and not 'S2_a'; every video needs a group"),
        ("", (0.2, 0, "^S"), "validation_fraction=0.2 of 1 groups by '\\^S' leaves none to train on"),
        ("", (0.2, 0, "("), r"validation_groups='\(' is not a regular expression"),
        ("S1_a", (0.2, 0, "^S"), "validation_groups='\\^S' has no effect, because the records name 1 validation"),
        ("S1_a", (0.2, 3, ""), "validation_seed=3 has no effect, because the records name 1 validation videos"),
        ("S1_a", (0.0, 0, ""), "validation_fraction=0 has no effect, because the records name"),
        ("S1_a S2_a", (0.2, 0, ""), "the records name all training videos for validation"),
    ],
)
def test_contradictions_about_validation_are_refused(named, options, message):
    with pytest.raises(ValueError, match=message):
        choose_validation(videos("S1_a", "S2_a", validation=named.split()), *options)


def test_features_stay_on_disk_if_they_do_not_fit_the_host(twelve_videos, monkeypatch):
    def features(**options):
        source = open_source(
            "custom", str(twelve_videos), ["rgb", "flow"], validation_fraction=0.2, validation_seed=0, **options
        )
        return [v.features["rgb"] for split in ("train", "validation", "test") for v in source.videos(split, ["rgb"])]

    assert all(isinstance(f, np.ndarray) for f in features())
    assert all(isinstance(f, base.OnDisk) for f in features(streamed=True))
    monkeypatch.setattr(source_module, "host_memory", lambda: 100)
    assert all(isinstance(f, base.OnDisk) for f in features())


def test_host_memory_is_the_limit_of_the_control_group(tmp_path):
    whole, root, groups = runtime.host_memory(tmp_path / "none"), tmp_path / "cgroup", tmp_path / "groups"
    v2, v1 = root / "slurm" / "job_1" / "memory.max", root / "memory" / "docker" / "memory.limit_in_bytes"
    for path in (v2, v1):
        path.parent.mkdir(parents=True)
    groups.write_text("3:cpu,cpuacct:/docker\n2:memory:/docker\n0::/slurm/job_1/step_0\n")
    v2.write_text("max\n"), v1.write_text(f"{2**63 - 4096}\n")
    assert runtime.host_memory(groups, root) == whole > 2**28
    v1.write_text(f"{2**28}\n")
    assert runtime.host_memory(groups, root) == 2**28
    v2.write_text(f"{2**27}\n")  # the limit of a parent group
    assert runtime.host_memory(groups, root) == 2**27
