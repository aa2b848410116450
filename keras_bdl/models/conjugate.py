"""The old place of `keras_bdl.exact.conjugate`."""

import warnings

from keras_bdl.exact.conjugate import (
    BayesianLinearRegression as BayesianLinearRegression,
)
from keras_bdl.exact.conjugate import BetaBernoulli as BetaBernoulli
from keras_bdl.exact.conjugate import DirichletCategorical as DirichletCategorical

warnings.warn(
    "`keras_bdl.models.conjugate` goes with the next release; its models are in "
    "`keras_bdl.models`.",
    DeprecationWarning,
    stacklevel=2,
)

__all__ = ["BayesianLinearRegression", "BetaBernoulli", "DirichletCategorical"]
