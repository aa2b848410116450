"""Variational autoencoders with a choice of likelihoods, priors and bounds.

Kingma and Welling, "Auto-encoding variational Bayes", 2013; Burda, Grosse and
Salakhutdinov, "Importance weighted autoencoders", 2015; Tucker, Lawson, Gu and
Maddison, "Doubly reparameterized gradient estimators", 2018.
"""

from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np
from keras import ops

from keras_bdl import metrics
from keras_bdl.core import dtypes, event_loss, validation
from keras_bdl.core.renamed import renamed
from keras_bdl.core.scopes import BoundScope
from keras_bdl.core.typing import Activation
from keras_bdl.generative import initialization, observations
from keras_bdl.generative import networks as vae_networks
from keras_bdl.generative.queries import VAEUse
from keras_bdl.ops import divergences, mixtures
from keras_bdl.priors.codes import LatentPrior
from keras_bdl.training.data import extent_of, hold_out

PACKAGE = "keras_bdl"
GRADIENTS = ("elbo", "iwae", "dreg")


@keras.saving.register_keras_serializable(PACKAGE)
class VAE(VAEUse):
    """An encoder q(z | x) and a decoder p(x | z), trained by a bound on log p(x).

    `compile("adam")` and `fit(x)` suffice. With k importance samples z_i from the
    encoder and w_i = p(x, z_i) / q(z_i | x) the bound of an example is

        gradient="elbo": mean_i log w_i (with the KL in closed form if there is one);
        gradient="iwae": log mean_i w_i, which is tighter;
        gradient="dreg": the same, with the doubly reparameterised gradient for the
            encoder (squared normalised weights), which has less variance once q is
            near the posterior. It runs the decoder twice, so use no dropout there.

    If the networks have posteriors over weights, the mean bound of n rows minus the KL
    of the weights over n is a bound on log p(data) / n. The k codes of a row share a
    draw of the decoder's weights, and `evaluate` draws weights too.

    The log has `loss` (the negative bound, nats per example), `reconstruction`
    (-E log p(x | z)), `kl` and `active_units` (the number of code entries whose mean
    has a variance over the data above .01). `evaluate` samples codes as training does,
    so that its loss is a bound, which the mean code would not give. Before the first
    step `fit` sets the decoder's last bias, if it is zero, to the mean of the data.

    `model(x)`, `predict` and `reconstruct` give the mean of p(x | z) at the mean code.
    Images are channels-last.

    Args:
        encoder: Keras model from x to mean and log standard deviation of the code,
            with one output `(n, 2 d)` or two outputs `(n, d)`.
        decoder: Keras model from codes `(n, d)` to the likelihood's parameters on the
            last axis, one or more for each value of x.
        likelihood: "bernoulli" (logits, or their sigmoid), "gaussian" (mean and log
            stddev), "categorical" (x holds levels; logits on another axis, or their
            softmax), "discretized_logistic" (mean and log scale), or a loss:
            `GaussianNLL(stddev)`, `DiscretizedLogisticNLL(...)`, `TFPNLL(...)`.
        prior: "standard_normal" or a `keras_bdl.layers.LatentPrior`.
        kl_weight: factor of the KL. It is the variable `latent.kl_weight`, which
            `callbacks.KLWarmup` warms up. At 1 the loss is a bound. Above 1 it is a
            bound with "elbo", which only falls. With k > 1 importance samples it is
            not a bound at any other weight, and may exceed log p(x) by far.
        num_importance_samples: number k of importance samples.
        gradient: "elbo", "iwae" or "dreg".
        preprocessing: Keras layer applied to x, also as the target of the decoder,
            such as `keras_bdl.layers.DynamicBinarization()`; or None.
        num_examples: number of training examples, needed if layers have a posterior
            over weights; None reads it off the data.
        seed: integer for the noise of the codes.
        name, **kwargs: as in `keras.Model`.

    Raises:
        TypeError, ValueError: on a wrong argument, if encoder, decoder and likelihood
            do not fit together, or on data outside of the likelihood's range.

    Example:

    >>> vae = keras_bdl.VAE.dense((784,), latent_dim=20)
    >>> vae.compile("adam")
    >>> vae.fit(x_train, epochs=20, batch_size=128)
    >>> images = vae.sample(16, seed=0)  # (16, 784)
    >>> vae.log_prob(x_test).mean()  # nats

    Reference: Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders",
    2015, eq. 8.
    """

    outputs_kind = "mean"

    @renamed(beta="kl_weight")
    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: str | keras.losses.Loss = "bernoulli",
        prior: str | LatentPrior = "standard_normal",
        kl_weight: float = 1.0,
        num_importance_samples: int = 1,
        gradient: str = "elbo",
        preprocessing: keras.layers.Layer | None = None,
        num_examples: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        networks = {"encoder": encoder, "decoder": decoder}
        super().__init__(
            networks,
            {"encoder": 1, "decoder": 1},
            likelihood,
            prior,
            kl_weight,
            preprocessing,
            seed,
            num_examples,
            **kwargs,
        )
        self.num_importance_samples = validation.integer(
            "num_importance_samples", num_importance_samples, 1, 10**6
        )
        self.gradient = validation.choice("gradient", gradient, GRADIENTS)
        self._active_units: Any = None  # made by `build`
        if preprocessing is None and encoder.built and hasattr(encoder, "input_shape"):
            self.build(encoder.input_shape)

    @classmethod
    def dense(
        cls,
        input_shape: tuple[int, ...],
        latent_dim: int,
        hidden: Sequence[int] = (200, 200),
        activation: Activation = "tanh",
        likelihood: str | keras.losses.Loss = "bernoulli",
        **options: Any,
    ) -> Self:
        """Makes a VAE of dense layers.

        Args:
            input_shape: tuple, shape of one example.
            latent_dim: size d of a code.
            hidden: widths of the encoder's hidden layers; the decoder's mirror them.
            activation: activation of the hidden layers.
            likelihood, **options: as in `VAE`. A categorical likelihood needs
                `num_levels`.

        Example:

        >>> vae = keras_bdl.VAE.dense((28, 28, 1), latent_dim=20)
        """
        make = vae_networks.dense
        return cls._from_builder(
            make, input_shape, latent_dim, hidden, activation, likelihood, options
        )

    @classmethod
    def convolutional(
        cls,
        input_shape: tuple[int, int, int],
        latent_dim: int,
        filters: Sequence[int] = (32, 64),
        activation: Activation = "relu",
        likelihood: str | keras.losses.Loss = "bernoulli",
        **options: Any,
    ) -> Self:
        """Makes a VAE of strided convolutions, each of which halves height and width.

        Args:
            input_shape: `(height, width, channels)`.
            latent_dim: size d of a code.
            filters: filters of the encoder's convolutions; the decoder's mirror them.
            activation: activation of the hidden layers.
            likelihood, **options: as in `dense`.
        """
        make = vae_networks.convolutional
        return cls._from_builder(
            make, input_shape, latent_dim, filters, activation, likelihood, options
        )

    @classmethod
    def _from_builder(
        cls, make, input_shape, latent_dim, sizes, activation, likelihood, options
    ):
        levels = options.pop("num_levels", None)
        observation = observations.get(likelihood)
        outputs = vae_networks.output_shape(input_shape, observation, levels)
        encoder, decoder = make(input_shape, outputs, latent_dim, sizes, activation)
        return cls(encoder, decoder, likelihood, **options)

    def build(self, input_shape: Any) -> None:
        if self.built:
            return
        self.example_shape = tuple(input_shape[1:])
        x = keras.Input(batch_shape=input_shape)
        if self.preprocessing is not None:
            x = self.preprocessing(x)
        shape = vae_networks.code_shapes(self.encoder(x))
        self.latent.prior.connect(self.posterior, x.shape[1:])
        self.latent.build(shape)
        codes_shape: Any = self.latent.compute_output_shape(shape)
        outputs = self.decoder(keras.Input(codes_shape[1:]))
        vae_networks.check_outputs(outputs, x.shape, self.observation)
        self.observation.read_head(self.decoder)
        self.decoded_shape = tuple(outputs.shape)
        self._active_units = metrics.ActiveUnits(codes_shape[-1])
        self.build_scores()
        self._tell_num_examples()
        self.built = True

    # The forward pass and the bound

    def posterior(self, x: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Returns mean and log standard deviation of q(z | x), `(n, d)` each."""
        return self.latent.parameters(self.encoder(x, training=training))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = self.preprocess(inputs, training)
        if BoundScope.current() is not None:
            return self.mean_over_weights(lambda: self._bound(x, training), training)
        codes = self.latent(self.encoder(x, training=training), training=training)
        return self.explained(codes, training)

    def explained(self, codes: Any, training: bool | None = False) -> Any:
        """Returns the mean of p(x | z) of codes `(n, d)`, as a tensor."""
        return self.observation.mean(
            dtypes.wide(self.decoder(codes, training=training))
        )

    def log_likelihood(self, x: Any, codes: Any, training: bool | None = None) -> Any:
        """Returns log p(x | z) of codes `(k, n, d)` in nats, `(k, n)`."""
        num_codes = codes.shape[0]
        flat = ops.reshape(codes, (-1, *codes.shape[2:]))
        outputs = dtypes.wide(self.decoder(flat, training=training))
        x = ops.tile(dtypes.wide(x), (num_codes,) + (1,) * (len(x.shape) - 1))
        values = self.observation.log_prob(x, outputs)
        return ops.reshape(values, (num_codes, -1))

    def log_ratio(self, codes: Any, mean: Any, log_stddev: Any) -> Any:
        """Returns log p(z) - log q(z | x) of codes `(k, n, d)` in nats, `(k, n)`."""
        log_q = ops.sum(divergences.normal_log_prob(codes, mean, log_stddev), axis=-1)
        return self.latent.prior.log_prob(codes) - log_q

    def _bound(self, x, training):
        """Returns the bound of each row `(n,)`, its parts in nats, and mean codes."""
        with self.weights_drawn_once(not training):
            mean, log_stddev = self.posterior(x, training)
        kl = self.latent.kl(mean, log_stddev)
        num_codes = self.num_importance_samples
        codes = self.latent.draw(mean, log_stddev, num_codes)
        kl_weight = ops.cast(self.latent.current_kl_weight(training), mean.dtype)
        # Codes inside the logarithm of a mean share the decoder's weights. A mean of
        # logarithms has the same expectation, and less variance, if each code has its
        # own weights.
        is_joint = self.gradient != "elbo" and num_codes > 1
        decoder_draw = self.weights_drawn_once(is_joint or not training)
        with decoder_draw:
            likelihood = self.log_likelihood(x, codes, training)  # (k, n)
        if self.gradient == "elbo":
            bound = ops.mean(likelihood, axis=0) - kl_weight * kl
        else:
            ratio = self.log_ratio(codes, mean, log_stddev)
            log_weights = likelihood + kl_weight * ratio
            bound = mixtures.log_mean_exp(log_weights)
        if self.gradient == "dreg" and training:
            # For log w_i = log p(x | z_i) + b (log p(z_i) - log q(z_i)) and normalised
            # weights v_i, v_i d log w_i has a path through the code z_i and, of q's own
            # parameters, -b v_i d log q(z_i). By E f d log q = E df/dz dz this term is
            # in expectation the path of -b dv_i/dz_i = -b (v_i - v_i^2) d log w_i/dz_i.
            # So the codes' path has the factor (1 - b) v_i + b v_i^2, at b = 1 eq. 8 of
            # Tucker et al. All other paths of log w_i have the factor v_i.
            weights = ops.stop_gradient(ops.softmax(log_weights, axis=0))
            mean_, log_stddev_, codes_ = map(
                ops.stop_gradient, (mean, log_stddev, codes)
            )
            share = 1.0 - kl_weight + kl_weight * weights
            codes = codes_ + ops.expand_dims(share, -1) * (codes - codes_)
            with decoder_draw:
                log_weights = self.log_likelihood(x, codes, training)
            log_weights += kl_weight * self.log_ratio(codes, mean_, log_stddev_)
            surrogate = ops.sum(weights * log_weights, axis=0)
            bound = ops.stop_gradient(bound - surrogate) + surrogate
        return {
            "bound": bound,
            "reconstruction": -ops.mean(likelihood, axis=0),
            "kl": kl,
            "mean": mean,
        }

    # Training

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        **kwargs: Any,
    ) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does, on data without targets.

        Args:
            x: array `(n, ...)`, `tf.data.Dataset`, `PyDataset` or `DataLoader` of x,
                or of tuples that begin with x, whose other parts are not used.
            y: None.
            batch_size, epochs, **kwargs: as in `keras.Model.fit`, but without
                `class_weight`. `validation_data` is like x, or `(x, None, weights)`.

        Raises:
            ValueError: on targets, or data outside of the likelihood's range.
        """
        self._refuse_targets(y)
        if kwargs.get("class_weight") is not None:
            raise ValueError("`VAE` knows no classes. Received: class_weight")
        initialization.check(self, x)
        held_out = kwargs.get("validation_data")
        if isinstance(held_out, (tuple, list)) and len(held_out) > 1:
            x_val, y_val, *weights = held_out
            self._refuse_targets(y_val, "validation_data=x")
            if weights:
                kwargs["validation_data"] = (x_val, _no_targets(x_val), *weights)
        elif hasattr(held_out, "shape"):
            initialization.check(self, held_out)
        weighted = kwargs.get("sample_weight") is not None and hasattr(x, "shape")
        if weighted:
            weights = kwargs["sample_weight"]
            x, _, weights = hold_out(x, _no_targets(x), weights, kwargs)
            kwargs["sample_weight"] = weights
        self._read_num_examples(x, kwargs)
        if self.optimizer is not None and not int(self.optimizer.iterations):
            initialization.start(self, x, extent_of(kwargs))
        y = None if kwargs.get("sample_weight") is None else _no_targets(x)
        return super().fit(x, y, batch_size=batch_size, epochs=epochs, **kwargs)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Evaluates as `keras.Model.evaluate` does, with sampled codes and weights."""
        self._refuse_targets(y)
        y = None if sample_weight is None else _no_targets(x)
        return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def _refuse_targets(self, y, instead="vae.fit(x)"):
        if y is not None and not isinstance(y, _NoTargets):
            raise ValueError(
                f"`VAE` explains x itself and takes no targets: `{instead}`. "
                f"Received: y of type {type(y).__name__}"
            )

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Returns the mean negative bound over examples, and updates the metrics."""
        values = -y_pred["bound"]
        if sample_weight is not None:
            sample_weight = event_loss.align_weights(sample_weight, values)
            values = values * sample_weight
        for metric, name in (
            (self._reconstruction, "reconstruction"),
            (self._kl, "kl"),
        ):
            metric.update_state(ops.stop_gradient(y_pred[name]), sample_weight)
        self._active_units.update_state(ops.stop_gradient(y_pred["mean"]))
        return self.add_losses(ops.mean(values))

    # Serialisation

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_importance_samples": self.num_importance_samples,
            "gradient": self.gradient,
        }


class _NoTargets(np.ndarray):
    """Zeros instead of targets, because Keras drops weights of rows without targets."""


def _no_targets(x):
    return np.zeros(len(x)).view(_NoTargets)
