"""Installs configs/ as kd_jax/configs; setup.cfg, which has the rest, cannot add a package to those that it finds."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kd_jax*", "data_prep*"]), "kd_jax.configs"],
    package_dir={"kd_jax.configs": "configs"},
)
