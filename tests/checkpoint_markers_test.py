"""A checkpoint counts once orbax has renamed its folder; one that a kill left unfinished is neither read nor kept.

`tests/buckets_test.py` has the same for a bucket, where a file marks it.
"""

import numpy as np
import pytest
from etils.epath import backend

from kd_jax.training.checkpoints import Checkpoints, read_checkpoint, saved_epochs

STATE, OTHER = {"w": np.arange(3.0)}, {"w": np.zeros(3)}


def test_a_checkpoint_counts_once_it_is_renamed(tmp_path, monkeypatch):
    def refuse(self, *paths):
        raise OSError("killed before the rename")

    def folders():
        return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())

    with Checkpoints(tmp_path, after_epoch=0) as keeper:
        keeper.save(1, STATE, STATE)
    with monkeypatch.context() as patched:
        patched.setattr(backend._OsPathBackend, "rename", refuse)
        patched.setattr(backend._OsPathBackend, "replace", refuse)
        with pytest.raises(OSError, match="killed before the rename"), Checkpoints(tmp_path, after_epoch=1) as keeper:
            keeper.save(2, OTHER, OTHER)
    assert folders()[0] == "1" and folders()[1].startswith("2.orbax-checkpoint-tmp")
    assert saved_epochs(tmp_path) == [1]
    with Checkpoints(tmp_path, after_epoch=1) as keeper:
        np.testing.assert_array_equal(read_checkpoint(tmp_path, 1, OTHER, OTHER)[0]["w"], STATE["w"])
        keeper.save(2, OTHER, STATE)
    restored, best = read_checkpoint(tmp_path, 2, STATE, OTHER)
    np.testing.assert_array_equal(restored["w"], OTHER["w"])
    np.testing.assert_array_equal(best["w"], STATE["w"])
    assert folders() == ["1", "2"], "the unfinished one is deleted"
    assert saved_epochs(tmp_path) == [1, 2]
