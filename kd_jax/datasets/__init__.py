"""Data sets by name: one literal table of what is known of each before its files are seen.

`base` holds the record layout, `custom` and `tsu` read annotation files, `synthetic` makes videos from a seed.
"""

from kd_jax.datasets import base, custom, synthetic, tsu

DATASETS: dict[str, base.Description] = {
    "custom": custom.DESCRIPTION,
    "tsu": tsu.DESCRIPTION,
    "synthetic": synthetic.DESCRIPTION,
}


def describe(name: str) -> base.Description:
    """The entry of DATASETS; ValueError, listing the known names, for any other."""
    if name not in DATASETS:
        raise ValueError(f"the data set {name!r} is unknown; known data sets: {', '.join(DATASETS)}")
    return DATASETS[name]
