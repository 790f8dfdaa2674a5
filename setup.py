"""Which folders become packages of the wheel; all else is in pyproject.toml.

The suites and the baselines are at the top of a checkout, where people look for them, and inside
the package of an installed gate: there ``pytest --pyargs harness.suites`` runs them.
"""

from setuptools import find_packages, setup

PLACES = {"harness.suites": "tests", "harness.baselines.stored": "baselines"}

setup(
    py_modules=["quantized_clip_gate"],
    packages=[*find_packages(include=["harness*"]), *PLACES],
    package_dir=PLACES,
)
