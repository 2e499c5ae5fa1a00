"""Data sets by name: one literal table of what is known of each before its files are seen.

`base` holds what all share, `records` writes and reads it; `common_layout` and the data sets' own files read
annotations, `feature_files` features, `findings` collects what is dirty or wrong; `synthetic` makes videos from a seed.
"""

from kd_jax.data import base, synthetic
from kd_jax.data.annotations import charades, custom, multithumos, pku_mmd, thumos14, tsu

DATASETS: dict[str, base.Description] = {
    "custom": custom.DESCRIPTION,
    "tsu": tsu.DESCRIPTION,
    "charades": charades.DESCRIPTION,
    "multithumos": multithumos.DESCRIPTION,
    "thumos14": thumos14.DESCRIPTION,
    "pku_mmd": pku_mmd.DESCRIPTION,
    "synthetic": synthetic.DESCRIPTION,
}


def describe(name: str) -> base.Description:
    """The entry of DATASETS; ValueError, listing the known names, for any other."""
    if name not in DATASETS:
        raise ValueError(f"the data set {name!r} is unknown; known data sets: {', '.join(DATASETS)}")
    return DATASETS[name]
