"""Negative log-likelihoods as Keras losses, in nats per example."""

from keras_bdl.losses.labels import BernoulliNLL as BernoulliNLL
from keras_bdl.losses.labels import CategoricalNLL as CategoricalNLL
from keras_bdl.losses.labels import check_logits as check_logits
from keras_bdl.losses.others import TFPNLL as TFPNLL
from keras_bdl.losses.others import DiscretizedLogisticNLL as DiscretizedLogisticNLL
from keras_bdl.losses.values import BetaNLL as BetaNLL
from keras_bdl.losses.values import GaussianNLL as GaussianNLL
from keras_bdl.losses.values import StudentTNLL as StudentTNLL

__all__ = [
    "BernoulliNLL",
    "BetaNLL",
    "CategoricalNLL",
    "DiscretizedLogisticNLL",
    "GaussianNLL",
    "StudentTNLL",
    "TFPNLL",
]
