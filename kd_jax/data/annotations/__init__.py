"""DATASETS: every data set by name, with what is known about it before its files are read.

Each module here describes one data set, and reads its annotation files if it has any. `common_layout` reads the layout
that several share, and `cleaning` checks and cleans the annotation of one video. `tools` has the formats of annotation
tools.
"""

from kd_jax.data import base, synthetic
from kd_jax.data.annotations import charades, custom, multithumos, pku_mmd, thumos14, tsu, utd_mhad

DATASETS: dict[str, base.Description] = {
    "custom": custom.DESCRIPTION,
    "tsu": tsu.DESCRIPTION,
    "charades": charades.DESCRIPTION,
    "multithumos": multithumos.DESCRIPTION,
    "thumos14": thumos14.DESCRIPTION,
    "pku_mmd": pku_mmd.DESCRIPTION,
    "utd_mhad": utd_mhad.DESCRIPTION,
    "synthetic": synthetic.DESCRIPTION,
}


def describe(name: str) -> base.Description:
    """Returns the entry of DATASETS; raises ValueError that lists the known names for any other name."""
    if name not in DATASETS:
        raise ValueError(f"the data set {name!r} is unknown; known data sets: {', '.join(DATASETS)}")
    return DATASETS[name]
