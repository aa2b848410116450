"""Posteriors over the weights of plain networks."""

from keras_bdl.inference.ensemble import Ensemble as Ensemble
from keras_bdl.inference.gaussian import GaussianPosterior as GaussianPosterior
from keras_bdl.inference.samples import PosteriorSamples as PosteriorSamples
from keras_bdl.inference.statistics import refresh_statistics as refresh_statistics
from keras_bdl.inference.swag import SWAG as SWAG

__all__ = [
    "Ensemble",
    "GaussianPosterior",
    "PosteriorSamples",
    "SWAG",
    "refresh_statistics",
]
