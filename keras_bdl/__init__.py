"""Bayesian deep learning for Keras 3."""

from keras_bdl import callbacks as callbacks
from keras_bdl import inference as inference
from keras_bdl import layers as layers
from keras_bdl import losses as losses
from keras_bdl import maps as maps
from keras_bdl import metrics as metrics
from keras_bdl import models as models
from keras_bdl import ops as ops
from keras_bdl import optimizers as optimizers
from keras_bdl import plots as plots
from keras_bdl import posteriors as posteriors
from keras_bdl import priors as priors
from keras_bdl.conversion.continual import prior_from_posterior as prior_from_posterior
from keras_bdl.conversion.convert import to_bayesian as to_bayesian
from keras_bdl.conversion.convert import to_keras as to_keras
from keras_bdl.conversion.whole import Bayesian as Bayesian
from keras_bdl.early_exit.depth import depth as depth
from keras_bdl.early_exit.flops import flops_report as flops_report
from keras_bdl.inference.ensemble import Ensemble as Ensemble
from keras_bdl.inference.fit_hmc import fit_hmc as fit_hmc
from keras_bdl.inference.fit_laplace import fit_laplace as fit_laplace
from keras_bdl.inference.last_layer import fit_last_layer as fit_last_layer
from keras_bdl.layers import BayesianLastLayer as BayesianLastLayer
from keras_bdl.layers import ConcreteDropout as ConcreteDropout
from keras_bdl.layers import DropConnectDense as DropConnectDense
from keras_bdl.layers import EarlyExitResBlock as EarlyExitResBlock
from keras_bdl.layers import GaussianLatent as GaussianLatent
from keras_bdl.layers import MCDropout as MCDropout
from keras_bdl.layers import SparseVDConv as SparseVDConv
from keras_bdl.layers import SparseVDConv1D as SparseVDConv1D
from keras_bdl.layers import SparseVDConv2D as SparseVDConv2D
from keras_bdl.layers import SparseVDConv3D as SparseVDConv3D
from keras_bdl.layers import SparseVDDense as SparseVDDense
from keras_bdl.layers import VariationalConv1D as VariationalConv1D
from keras_bdl.layers import VariationalConv1DTranspose as VariationalConv1DTranspose
from keras_bdl.layers import VariationalConv2D as VariationalConv2D
from keras_bdl.layers import VariationalConv2DTranspose as VariationalConv2DTranspose
from keras_bdl.layers import VariationalConv3D as VariationalConv3D
from keras_bdl.layers import VariationalConv3DTranspose as VariationalConv3DTranspose
from keras_bdl.layers import VariationalConvLSTM1D as VariationalConvLSTM1D
from keras_bdl.layers import VariationalConvLSTM2D as VariationalConvLSTM2D
from keras_bdl.layers import VariationalConvLSTM3D as VariationalConvLSTM3D
from keras_bdl.layers import VariationalDense as VariationalDense
from keras_bdl.layers import VariationalDepthwiseConv1D as VariationalDepthwiseConv1D
from keras_bdl.layers import VariationalDepthwiseConv2D as VariationalDepthwiseConv2D
from keras_bdl.layers import VariationalEinsumDense as VariationalEinsumDense
from keras_bdl.layers import VariationalEmbedding as VariationalEmbedding
from keras_bdl.layers import VariationalGaussianDropout as VariationalGaussianDropout
from keras_bdl.layers import (
    VariationalGroupQueryAttention as VariationalGroupQueryAttention,
)
from keras_bdl.layers import VariationalGRU as VariationalGRU
from keras_bdl.layers import VariationalLSTM as VariationalLSTM
from keras_bdl.layers import (
    VariationalMultiHeadAttention as VariationalMultiHeadAttention,
)
from keras_bdl.layers import VariationalSeparableConv1D as VariationalSeparableConv1D
from keras_bdl.layers import VariationalSeparableConv2D as VariationalSeparableConv2D
from keras_bdl.layers import VariationalSimpleRNN as VariationalSimpleRNN
from keras_bdl.models import VAE as VAE
from keras_bdl.models import BayesianClassifier as BayesianClassifier
from keras_bdl.models import BayesianLinearRegression as BayesianLinearRegression
from keras_bdl.models import BayesianRegressor as BayesianRegressor
from keras_bdl.models import BetaBernoulli as BetaBernoulli
from keras_bdl.models import DirichletCategorical as DirichletCategorical
from keras_bdl.models import SemiSupervisedVAE as SemiSupervisedVAE
from keras_bdl.prediction.export import export as export
from keras_bdl.prediction.predict import predict as predict
from keras_bdl.prediction.predict import predict_uncertainty as predict_uncertainty
from keras_bdl.sparsity.compress import compress as compress
from keras_bdl.sparsity.file import load_sparse as load_sparse
from keras_bdl.sparsity.file import save_sparse as save_sparse
from keras_bdl.sparsity.report import sparsity_report as sparsity_report
from keras_bdl.training.num_examples import set_num_examples as set_num_examples

__version__ = "0.1.0"

__all__ = [
    "Bayesian",
    "BayesianClassifier",
    "BayesianLastLayer",
    "BayesianLinearRegression",
    "BayesianRegressor",
    "BetaBernoulli",
    "ConcreteDropout",
    "DirichletCategorical",
    "DropConnectDense",
    "EarlyExitResBlock",
    "Ensemble",
    "GaussianLatent",
    "MCDropout",
    "SemiSupervisedVAE",
    "SparseVDConv",
    "SparseVDConv1D",
    "SparseVDConv2D",
    "SparseVDConv3D",
    "SparseVDDense",
    "VAE",
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
    "callbacks",
    "compress",
    "depth",
    "export",
    "fit_hmc",
    "fit_laplace",
    "fit_last_layer",
    "flops_report",
    "inference",
    "layers",
    "load_sparse",
    "losses",
    "maps",
    "metrics",
    "models",
    "ops",
    "optimizers",
    "plots",
    "posteriors",
    "predict",
    "predict_uncertainty",
    "prior_from_posterior",
    "priors",
    "save_sparse",
    "set_num_examples",
    "sparsity_report",
    "to_bayesian",
    "to_keras",
]
