"""Models that know their likelihood, and exact conjugate models."""

from keras_bdl.conversion.whole import BayesianModel as BayesianModel
from keras_bdl.exact.conjugate import (
    BayesianLinearRegression as BayesianLinearRegression,
)
from keras_bdl.exact.conjugate import BetaBernoulli as BetaBernoulli
from keras_bdl.exact.conjugate import DirichletCategorical as DirichletCategorical
from keras_bdl.generative.semi_supervised_vae import (
    SemiSupervisedVAE as SemiSupervisedVAE,
)
from keras_bdl.generative.vae import VAE as VAE
from keras_bdl.models.classifier import BayesianClassifier as BayesianClassifier
from keras_bdl.models.regressor import BayesianRegressor as BayesianRegressor

__all__ = [
    "VAE",
    "BayesianClassifier",
    "BayesianLinearRegression",
    "BayesianModel",
    "BayesianRegressor",
    "BetaBernoulli",
    "DirichletCategorical",
    "SemiSupervisedVAE",
]
