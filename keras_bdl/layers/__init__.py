"""Bayesian layers: each replaces the Keras layer of the same name."""

from keras_bdl.layers.variational import VariationalConv1D as VariationalConv1D
from keras_bdl.layers.variational import VariationalConv2D as VariationalConv2D
from keras_bdl.layers.variational import VariationalConv3D as VariationalConv3D
from keras_bdl.layers.variational import VariationalDense as VariationalDense

__all__ = [
    "VariationalConv1D",
    "VariationalConv2D",
    "VariationalConv3D",
    "VariationalDense",
]
