"""Bayesian layers: each replaces the Keras layer of the same name."""

from keras_bdl.layers.binarization import DynamicBinarization as DynamicBinarization
from keras_bdl.layers.concrete_dropout import ConcreteDropout as ConcreteDropout
from keras_bdl.layers.dropout import DropConnectDense as DropConnectDense
from keras_bdl.layers.dropout import MCDropout as MCDropout
from keras_bdl.layers.dropout import (
    VariationalGaussianDropout as VariationalGaussianDropout,
)
from keras_bdl.layers.early_exit import EarlyExitResBlock as EarlyExitResBlock
from keras_bdl.layers.gaussian_latent import GaussianLatent as GaussianLatent
from keras_bdl.layers.last_layer import BayesianLastLayer as BayesianLastLayer
from keras_bdl.layers.latent import LatentLayer as LatentLayer
from keras_bdl.layers.sparse_vd import SparseVDConv as SparseVDConv
from keras_bdl.layers.sparse_vd import SparseVDConv1D as SparseVDConv1D
from keras_bdl.layers.sparse_vd import SparseVDConv2D as SparseVDConv2D
from keras_bdl.layers.sparse_vd import SparseVDConv3D as SparseVDConv3D
from keras_bdl.layers.sparse_vd import SparseVDDense as SparseVDDense
from keras_bdl.layers.variational import VariationalConv1D as VariationalConv1D
from keras_bdl.layers.variational import VariationalConv2D as VariationalConv2D
from keras_bdl.layers.variational import VariationalConv3D as VariationalConv3D
from keras_bdl.layers.variational import VariationalDense as VariationalDense
from keras_bdl.layers.variational_attention import (
    VariationalGroupQueryAttention as VariationalGroupQueryAttention,
)
from keras_bdl.layers.variational_attention import (
    VariationalMultiHeadAttention as VariationalMultiHeadAttention,
)
from keras_bdl.layers.variational_conv_lstm import (
    VariationalConvLSTM1D as VariationalConvLSTM1D,
)
from keras_bdl.layers.variational_conv_lstm import (
    VariationalConvLSTM2D as VariationalConvLSTM2D,
)
from keras_bdl.layers.variational_conv_lstm import (
    VariationalConvLSTM3D as VariationalConvLSTM3D,
)
from keras_bdl.layers.variational_depthwise import (
    VariationalDepthwiseConv1D as VariationalDepthwiseConv1D,
)
from keras_bdl.layers.variational_depthwise import (
    VariationalDepthwiseConv2D as VariationalDepthwiseConv2D,
)
from keras_bdl.layers.variational_einsum import (
    VariationalEinsumDense as VariationalEinsumDense,
)
from keras_bdl.layers.variational_embedding import (
    VariationalEmbedding as VariationalEmbedding,
)
from keras_bdl.layers.variational_recurrent import VariationalGRU as VariationalGRU
from keras_bdl.layers.variational_recurrent import VariationalLSTM as VariationalLSTM
from keras_bdl.layers.variational_recurrent import (
    VariationalSimpleRNN as VariationalSimpleRNN,
)
from keras_bdl.layers.variational_separable import (
    VariationalSeparableConv1D as VariationalSeparableConv1D,
)
from keras_bdl.layers.variational_separable import (
    VariationalSeparableConv2D as VariationalSeparableConv2D,
)
from keras_bdl.layers.variational_transposed import (
    VariationalConv1DTranspose as VariationalConv1DTranspose,
)
from keras_bdl.layers.variational_transposed import (
    VariationalConv2DTranspose as VariationalConv2DTranspose,
)
from keras_bdl.layers.variational_transposed import (
    VariationalConv3DTranspose as VariationalConv3DTranspose,
)
from keras_bdl.layers.wrapper import BayesianWrapper as BayesianWrapper
from keras_bdl.priors.codes import GaussianMixture as GaussianMixture
from keras_bdl.priors.codes import LatentPrior as LatentPrior
from keras_bdl.priors.codes import StandardNormal as StandardNormal
from keras_bdl.priors.codes import TFPLatentPrior as TFPLatentPrior
from keras_bdl.priors.codes import VampPrior as VampPrior

__all__ = [
    "BayesianLastLayer",
    "BayesianWrapper",
    "ConcreteDropout",
    "DropConnectDense",
    "DynamicBinarization",
    "EarlyExitResBlock",
    "GaussianLatent",
    "GaussianMixture",
    "LatentLayer",
    "LatentPrior",
    "MCDropout",
    "SparseVDConv",
    "SparseVDConv1D",
    "SparseVDConv2D",
    "SparseVDConv3D",
    "SparseVDDense",
    "StandardNormal",
    "TFPLatentPrior",
    "VampPrior",
    "VariationalConv1D",
    "VariationalConv1DTranspose",
    "VariationalConv2D",
    "VariationalConv2DTranspose",
    "VariationalConv3D",
    "VariationalConv3DTranspose",
    "VariationalConvLSTM1D",
    "VariationalConvLSTM2D",
    "VariationalConvLSTM3D",
    "VariationalDense",
    "VariationalDepthwiseConv1D",
    "VariationalDepthwiseConv2D",
    "VariationalEinsumDense",
    "VariationalEmbedding",
    "VariationalGRU",
    "VariationalGaussianDropout",
    "VariationalGroupQueryAttention",
    "VariationalLSTM",
    "VariationalMultiHeadAttention",
    "VariationalSeparableConv1D",
    "VariationalSeparableConv2D",
    "VariationalSimpleRNN",
]
