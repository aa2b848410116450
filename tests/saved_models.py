"""One small model of every layer, prior and model class, as files to be read for ever.

    python tests/saved_models.py tests/fixtures/v0.1

writes `NAME.keras` and its inputs and outputs, `NAME.npz`. A file that a release has
written is never written again: `test_persistence` reads it in all later versions.
"""

import pathlib
import sys

import keras
import numpy as np
from keras import layers

import keras_bdl
from keras_bdl import priors


def sequential(*parts, shape=(4,)):
    return keras.Sequential([keras.Input(shape), *parts])


def dense(prior="normal", **options):
    return keras_bdl.VariationalDense(
        3, activation="tanh", prior=prior, num_examples=7, **options
    )


def convolution(name, rank):
    layer = getattr(keras_bdl, f"{name}Conv{rank}D")(2, 2, padding="same", seed=1)
    return lambda: sequential(layer, shape=(*(4,) * rank, 2))


def transposed(rank):
    make = getattr(keras_bdl, f"VariationalConv{rank}DTranspose")
    return lambda: sequential(make(2, 2, strides=2), shape=(*(4,) * rank, 2))


def separable(rank):
    make = getattr(keras_bdl, f"VariationalSeparableConv{rank}D")
    return lambda: sequential(make(3, 2), shape=(*(4,) * rank, 2))


def recurrent(name, rank=0):
    make = getattr(keras_bdl, f"Variational{name}")
    if not rank:
        return lambda: sequential(make(2, num_examples=7), shape=(3, 2))
    return lambda: sequential(make(2, 2, num_examples=7), shape=(3, *(4,) * rank, 2))


def wrapped(make_layer):
    layer = keras_bdl.Bayesian(make_layer(), num_examples=7)
    return sequential(layer, shape=(3, 2))


def wrapped_model():
    network = sequential(layers.Dense(3), layers.LayerNormalization(), layers.Dense(2))
    return keras_bdl.Bayesian(network, num_examples=7)


def attention(cls, *arguments, **options):
    inputs = keras.Input((4, 3))
    layer = cls(*arguments, num_examples=7, **options)
    return keras.Model(inputs, layer(inputs, inputs))


def early_exit(**options):
    units = [layers.Dense(4, "relu"), dense_of_width_4(), layers.Dense(4)]
    return sequential(
        keras_bdl.EarlyExitResBlock(units, 0.1, **options), layers.Dense(2)
    )


def dense_of_width_4():
    return keras_bdl.VariationalDense(4, num_examples=7)


def vae(**options):
    return keras_bdl.VAE.dense((6,), 2, hidden=(5,), seed=1, **options)


def classifier():
    network = sequential(dense(), keras_bdl.VariationalDense(3))
    return keras_bdl.BayesianClassifier(network, num_samples=4)


def regressor(noise, **options):
    width = 2 if noise == "heteroscedastic" else 1
    network = sequential(dense(), keras_bdl.VariationalDense(width))
    return keras_bdl.BayesianRegressor(network, noise, **options)


MODELS = {
    "variational_dense": lambda: sequential(dense(), dense(estimator="flipout")),
    "variational_dense_float16": lambda: sequential(dense(dtype="mixed_float16")),
    "sparse_vd_dense": lambda: sequential(keras_bdl.SparseVDDense(3, num_examples=7)),
    "drop_connect_dense": lambda: sequential(keras_bdl.DropConnectDense(3, rate=0.3)),
    "variational_embedding": lambda: sequential(
        keras_bdl.VariationalEmbedding(5, 3, num_examples=7)
    ),
    "variational_depthwise_conv1d": lambda: sequential(
        keras_bdl.VariationalDepthwiseConv1D(2, num_examples=7), shape=(4, 2)
    ),
    "variational_depthwise_conv2d": lambda: sequential(
        keras_bdl.VariationalDepthwiseConv2D(2, num_examples=7), shape=(4, 4, 2)
    ),
    **{f"variational_conv{rank}d_transpose": transposed(rank) for rank in (1, 2, 3)},
    **{f"variational_separable_conv{rank}d": separable(rank) for rank in (1, 2)},
    **{
        f"variational_{name.lower()}": recurrent(name)
        for name in ("SimpleRNN", "GRU", "LSTM")
    },
    **{
        f"variational_conv_lstm{rank}d": recurrent(f"ConvLSTM{rank}D", rank)
        for rank in (1, 2, 3)
    },
    "wrapper": lambda: wrapped(lambda: layers.Bidirectional(layers.LSTM(2))),
    "wrapped_model": wrapped_model,
    "variational_einsum_dense": lambda: sequential(
        keras_bdl.VariationalEinsumDense("ab,bc->ac", 3, bias_axes="c", num_examples=7)
    ),
    "variational_multi_head_attention": lambda: attention(
        keras_bdl.VariationalMultiHeadAttention, 2, 3, use_gate=True
    ),
    "variational_group_query_attention": lambda: attention(
        keras_bdl.VariationalGroupQueryAttention, 3, 4, 2, posterior="low_rank"
    ),
    "low_rank": lambda: sequential(
        dense(posterior=keras_bdl.posteriors.LowRank(rank=3)),
        dense(posterior="low_rank"),
    ),
    "mc_dropout": lambda: sequential(keras_bdl.MCDropout(0.3), layers.Dense(2)),
    "concrete_dropout": lambda: sequential(
        keras_bdl.ConcreteDropout(layers.Dense(3)), keras_bdl.ConcreteDropout()
    ),
    "variational_gaussian_dropout": lambda: sequential(
        keras_bdl.VariationalGaussianDropout(layer=layers.Dense(3), alpha_per="weight"),
        keras_bdl.VariationalGaussianDropout(alpha_per="unit"),
    ),
    "last_layer": lambda: sequential(
        layers.Dense(3), keras_bdl.BayesianLastLayer(2), layers.Softmax()
    ),
    "last_layer_probit": lambda: sequential(
        keras_bdl.BayesianLastLayer(3, covariance="full", probit=True, seed=1)
    ),
    "early_exit": early_exit,
    "early_exit_elbo": lambda: early_exit(objective="elbo", estimator="expected"),
    "gaussian_latent": lambda: sequential(
        keras_bdl.GaussianLatent(2, keras_bdl.layers.GaussianMixture(3)),
        layers.Dense(4),
    ),
    "binarization": lambda: sequential(keras_bdl.layers.DynamicBinarization(seed=1)),
    **{
        f"{name.lower()}_conv{rank}d": convolution(name, rank)
        for name in ("Variational", "SparseVD")
        for rank in (1, 2, 3)
    },
    **{
        f"prior_{name}": lambda prior=prior: sequential(dense(prior))
        for name, prior in {
            "normal": priors.Normal(0.1, 0.5),
            "per_weight": priors.NormalPerWeight(0.5),
            "learned": priors.LearnedNormal(0.4),
            "mixture": priors.ScaleMixture(),
            "laplace": priors.Laplace(0.1, 0.5),
            "student_t": priors.StudentT(3.0),
            "log_uniform": priors.LogUniform(),
        }.items()
    },
    "classifier": classifier,
    "regressor": lambda: regressor("heteroscedastic", normalize=True),
    "regressor_student_t": lambda: regressor("student_t"),
    "vae": vae,
    "vae_vamp": lambda: vae(prior=keras_bdl.layers.VampPrior(3), kl_weight=0.5),
    "semi_supervised_vae": lambda: keras_bdl.SemiSupervisedVAE.dense(
        (6,), 2, num_classes=3, hidden=(5,), seed=1
    ),
}
# The TensorFlow Probability ones run on TensorFlow alone.
TFP_MODELS = {
    "prior_tfp": lambda: sequential(
        dense(priors.TFPPrior("Cauchy", loc=0.0, scale=1.0))
    )
}


def make(name):
    """A model with weights that are not those of its initializers."""
    keras.utils.set_random_seed(0)
    model = {**MODELS, **TFP_MODELS}[name]()
    if not model.built:
        model.build((None, 6 if "vae" in name else 4))
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    return model


def inputs_of(model):
    shape = model.input_shape if hasattr(model, "inputs") and model.inputs else None
    if shape is None:
        shape = model.get_build_config()["input_shape"]
    return np.random.default_rng(1).uniform(size=(3, *shape[1:])).astype("float32")


def main(folder):
    folder = pathlib.Path(folder)
    for name in (*MODELS, *TFP_MODELS):
        path = folder / f"{name}.keras"
        if path.exists():
            continue
        model = make(name)
        x = inputs_of(model)
        model.save(path)
        outputs = keras.ops.convert_to_numpy(model(x))
        np.savez_compressed(folder / f"{name}.npz", inputs=x, outputs=outputs)
        print(path)


if __name__ == "__main__":
    main(sys.argv[1])
