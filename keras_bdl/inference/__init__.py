"""Posteriors over the weights of plain networks."""

from keras_bdl.inference.ensemble import Ensemble as Ensemble
from keras_bdl.inference.fit_hmc import fit_hmc as fit_hmc
from keras_bdl.inference.fit_laplace import fit_laplace as fit_laplace
from keras_bdl.inference.gaussian import GaussianPosterior as GaussianPosterior
from keras_bdl.inference.last_layer import fit_last_layer as fit_last_layer
from keras_bdl.inference.linearized import LinearizedNetwork as LinearizedNetwork
from keras_bdl.inference.samples import PosteriorSamples as PosteriorSamples
from keras_bdl.inference.statistics import refresh_statistics as refresh_statistics
from keras_bdl.inference.swag import SWAG as SWAG

__all__ = [
    "Ensemble",
    "GaussianPosterior",
    "LinearizedNetwork",
    "PosteriorSamples",
    "SWAG",
    "fit_hmc",
    "fit_laplace",
    "fit_last_layer",
    "refresh_statistics",
]
