"""Optimizers that find or sample a posterior over the weights they train."""

from keras_bdl.optimizers.ivon import IVON as IVON
from keras_bdl.optimizers.samplers import SGHMC as SGHMC
from keras_bdl.optimizers.samplers import SGLD as SGLD
from keras_bdl.optimizers.samplers import PreconditionedSGLD as PreconditionedSGLD

__all__ = ["IVON", "SGHMC", "SGLD", "PreconditionedSGLD"]
