"""Posterior distributions over the weights of a layer.

`keras_bdl.VariationalDense(10, posterior="low_rank")` takes a posterior by its name.
It also takes an object, which has its own arguments.
"""

from keras_bdl.posteriors.adaptation import LowRankAdaptation as LowRankAdaptation
from keras_bdl.posteriors.base import Posterior as Posterior
from keras_bdl.posteriors.base import get as get
from keras_bdl.posteriors.fitted import JointGaussian as JointGaussian
from keras_bdl.posteriors.fitted import Kronecker as Kronecker
from keras_bdl.posteriors.full_covariance import FullCovariance as FullCovariance
from keras_bdl.posteriors.gaussian import Gaussian as Gaussian
from keras_bdl.posteriors.input_noise import ConcreteNoise as ConcreteNoise
from keras_bdl.posteriors.input_noise import GaussianNoise as GaussianNoise
from keras_bdl.posteriors.input_noise import InputNoise as InputNoise
from keras_bdl.posteriors.low_rank import LowRank as LowRank
from keras_bdl.posteriors.particles import Particles as Particles
from keras_bdl.posteriors.rank_one import BatchEnsemble as BatchEnsemble
from keras_bdl.posteriors.rank_one import RankOneGaussian as RankOneGaussian
from keras_bdl.posteriors.sparse_vd import SparseVD as SparseVD
from keras_bdl.posteriors.weight_mask import WeightMask as WeightMask

__all__ = [
    "BatchEnsemble",
    "ConcreteNoise",
    "FullCovariance",
    "Gaussian",
    "GaussianNoise",
    "InputNoise",
    "JointGaussian",
    "Kronecker",
    "LowRank",
    "LowRankAdaptation",
    "Particles",
    "Posterior",
    "RankOneGaussian",
    "SparseVD",
    "WeightMask",
    "get",
]
