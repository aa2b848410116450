"""Priors of weights, and priors of the codes of generative models."""

from keras_bdl.priors.codes import GaussianMixture as GaussianMixture
from keras_bdl.priors.codes import LatentPrior as LatentPrior
from keras_bdl.priors.codes import StandardNormal as StandardNormal
from keras_bdl.priors.codes import TFPLatentPrior as TFPLatentPrior
from keras_bdl.priors.codes import VampPrior as VampPrior
from keras_bdl.priors.weights import Laplace as Laplace
from keras_bdl.priors.weights import LearnedNormal as LearnedNormal
from keras_bdl.priors.weights import LogUniform as LogUniform
from keras_bdl.priors.weights import Normal as Normal
from keras_bdl.priors.weights import NormalPerWeight as NormalPerWeight
from keras_bdl.priors.weights import Prior as Prior
from keras_bdl.priors.weights import ScaleMixture as ScaleMixture
from keras_bdl.priors.weights import StudentT as StudentT
from keras_bdl.priors.weights import TFPPrior as TFPPrior
from keras_bdl.priors.weights import get as get

__all__ = [
    "GaussianMixture",
    "Laplace",
    "LatentPrior",
    "LearnedNormal",
    "LogUniform",
    "Normal",
    "NormalPerWeight",
    "Prior",
    "ScaleMixture",
    "StandardNormal",
    "StudentT",
    "TFPLatentPrior",
    "TFPPrior",
    "VampPrior",
    "get",
]
