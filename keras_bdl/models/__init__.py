"""Model classes that know their likelihood, and the exact conjugate models."""

from keras_bdl.models.classifier import BayesianClassifier as BayesianClassifier
from keras_bdl.models.conjugate import (
    BayesianLinearRegression as BayesianLinearRegression,
)
from keras_bdl.models.conjugate import BetaBernoulli as BetaBernoulli
from keras_bdl.models.conjugate import DirichletCategorical as DirichletCategorical
from keras_bdl.models.last_layer import fit_last_layer as fit_last_layer
from keras_bdl.models.regressor import BayesianRegressor as BayesianRegressor
from keras_bdl.models.semi_supervised_vae import (
    SemiSupervisedVAE as SemiSupervisedVAE,
)
from keras_bdl.models.vae import VAE as VAE

__all__ = [
    "VAE",
    "BayesianClassifier",
    "BayesianLinearRegression",
    "BayesianRegressor",
    "BetaBernoulli",
    "DirichletCategorical",
    "SemiSupervisedVAE",
    "fit_last_layer",
]
