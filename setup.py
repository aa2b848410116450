"""Packaging of keras_bdl."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "keras_bdl/__init__.py").read_text(), re.M
).group(1)

# Examples read data through tensorflow-datasets, which needs importlib_resources
# to prepare a data set and does not install it.
EXAMPLES = [
    "importlib_resources",
    "matplotlib",
    "scikit-learn",
    "scipy",
    "tensorflow-datasets",
]

setup(
    name="keras-bdl",
    version=VERSION,
    description="Bayesian deep learning for Keras 3",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    package_data={"keras_bdl": ["py.typed"]},
    python_requires=">=3.11",
    packages=find_packages(include=["keras_bdl", "keras_bdl.*"]),
    install_requires=[
        "keras>=3.15",
        "numpy",
        "scipy",
        "tensorflow",
        "tensorflow-probability[tf]",
    ],
    extras_require={
        "jax": ["jax"],
        "torch": ["torch"],
        "examples": EXAMPLES,
        # Whose models the tests convert. `keras-tcn` asks for packages of other
        # systems: `pip install --no-deps keras-tcn`.
        "programs": ["keras-hub", "keras-rs"],
        "test": [
            *EXAMPLES,
            "hypothesis",
            "mypy",
            "pandas",
            "pytest",
            "pytest-xdist",
            "ruff",
        ],
    },
)
