"""Model classes that know their likelihood."""

from keras_bdl.models.classifier import BayesianClassifier as BayesianClassifier
from keras_bdl.models.regressor import BayesianRegressor as BayesianRegressor

__all__ = ["BayesianClassifier", "BayesianRegressor"]
