"""Model classes that know their likelihood."""

from keras_bdl.models.classifier import BayesianClassifier as BayesianClassifier

__all__ = ["BayesianClassifier"]
