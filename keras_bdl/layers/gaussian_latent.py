"""A sampled code between an encoder and a decoder.

Kingma and Welling, "Auto-encoding variational Bayes", 2013, section 2.4.
"""

from typing import Any

import keras
from keras import ops, random

from keras_bdl.core import scopes, validation
from keras_bdl.core.dtypes import wide
from keras_bdl.core.stochastic import register
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.latent import LatentLayer
from keras_bdl.ops import divergences
from keras_bdl.priors import codes as latent_priors


@register
class GaussianLatent(LatentLayer, keras.layers.Layer):
    """Gives each example a code z ~ N(mean, stddev^2), and adds its KL to the loss.

    In training the layer draws the code as z = mean + stddev * noise, so that gradients
    pass (reparameterisation). At inference the code is the mean. In `keras_bdl.predict`
    it is a sample with one noise vector for all rows, so that a draw is one function.

    KL(q(z | x) || p(z)) is summed over the code of each example, averaged over the
    batch, multiplied by `kl_weight` (beta, which `callbacks.KLWarmup` warms up) and
    added by `add_loss`. If the prior has no closed form, one draw estimates the KL.

    Args:
        latent_dim: d for inputs that are features, from which a Dense layer computes
            mean and log standard deviation. None for inputs that are both already.
        prior: "standard_normal" or a `keras_bdl.layers.LatentPrior`:
            `GaussianMixture`, `VampPrior`, `TFPLatentPrior`.
        kl_weight: factor of the KL, kept in a variable.
        sample_at_inference, seed: as in `VariationalDense`.

    Input shape: features `(n, ..., f)`. Without `latent_dim`, one tensor
    `(n, ..., 2 d)` of d means and then d log standard deviations, or a pair of tensors
    `(n, ..., d)`.

    Output shape: `(n, ..., d)`.

    Raises:
        ValueError, TypeError: on a wrong argument or an input of odd width.

    Example:

    >>> x = keras.Input((784,))
    >>> h = keras.layers.Dense(200, activation="tanh")(x)
    >>> z = keras_bdl.GaussianLatent(20)(h)
    >>> outputs = keras.layers.Dense(784)(z)
    >>> model = keras.Model(x, outputs)
    >>> model.compile("adam", keras_bdl.losses.BernoulliNLL())

    Reference: Kingma and Welling, "Auto-encoding variational Bayes", 2013, eq. 10.
    """

    def __init__(
        self,
        latent_dim: int | None = None,
        prior: str | latent_priors.LatentPrior = "standard_normal",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.latent_dim = (
            None
            if latent_dim is None
            else validation.integer("latent_dim", latent_dim, 1, 10**6)
        )
        self.prior = latent_priors.get(prior)
        self.supports_masking = True
        self._dense = None
        if self.latent_dim is not None:
            self._dense = keras.layers.Dense(2 * self.latent_dim, name="parameters")

    def build(self, input_shape: Any) -> None:
        shape = self.compute_output_shape(input_shape)
        if self._dense is not None:
            self._dense.build(input_shape)
        if not self.prior.built:
            self.prior.build(shape)
        shapes = input_shape if isinstance(input_shape[0], (list, tuple)) else None
        specs = [keras.InputSpec(axes={-1: s[-1]}) for s in shapes or [input_shape]]
        self.input_spec = specs if shapes else specs[0]
        self.built = True

    def compute_output_shape(self, input_shape: Any) -> tuple[int | None, ...]:
        if isinstance(input_shape[0], (list, tuple)):
            mean, log_stddev = (tuple(shape) for shape in input_shape)
            if self._dense is not None or mean != log_stddev:
                raise ValueError(
                    "Expected a pair of inputs, mean and log stddev, to have one shape "
                    "and `latent_dim` to be None. Received: input shapes "
                    f"{input_shape}, latent_dim={self.latent_dim}"
                )
            return mean
        *rows, width = input_shape
        if self._dense is not None:
            return (*rows, self.latent_dim)
        if width % 2:
            raise ValueError(
                "Expected inputs of an even width, means and then log standard "
                "deviations; give `latent_dim` for features. Received: inputs of shape "
                f"{tuple(input_shape)}"
            )
        return (*rows, width // 2)

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        mean, log_stddev = self.parameters(inputs)
        scope = scopes.SamplingScope.current()
        if scope is not None:
            scope.restart(self.noise)
            shape = (scope.num_samples, *mean.shape[1:])
            noise = random.normal(shape, dtype=mean.dtype, seed=self.noise)
            codes = mean + ops.exp(log_stddev) * self.repeat_rows(noise, mean)
            return ops.cast(codes, self.compute_dtype)
        self.add_term(self.kl(mean, log_stddev, mask), training)
        if training or self.sample_at_inference:
            mean = self.draw(mean, log_stddev, 1)[0]
        return ops.cast(mean, self.compute_dtype)

    def parameters(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation of the code, `(n, ..., d)` each."""
        if isinstance(inputs, (list, tuple)):
            mean, log_stddev = inputs
        else:
            both = inputs if self._dense is None else self._dense(inputs)
            mean, log_stddev = ops.split(both, 2, axis=-1)
        return wide(mean), wide(log_stddev)

    def draw(self, mean: Tensor, log_stddev: Tensor, num_samples: int) -> Tensor:
        """Draws codes `(num_samples, n, ..., d)` from q(z | x)."""
        shape = (num_samples, *ops.shape(mean))
        noise = random.normal(shape, dtype=mean.dtype, seed=self.noise)
        return mean + ops.exp(log_stddev) * noise

    def kl(
        self, mean: Tensor, log_stddev: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Returns KL(q(z | x) || p(z)) of each row in nats, `(n,)`.

        It is exact if the prior has a closed form, or else estimated by one draw.
        """
        values = self.prior.kl(mean, log_stddev)
        if values is None:
            with scopes.FrozenNoise():
                codes = self.draw(mean, log_stddev, 1)[0]
            entropy = ops.sum(divergences.normal_entropy(log_stddev), axis=-1)
            values = -entropy - self.prior.log_prob(codes)
        mask = mask[0] if isinstance(mask, (list, tuple)) else mask
        if mask is not None:
            values = values * ops.cast(mask, values.dtype)
        positions = tuple(range(1, len(values.shape)))
        return ops.sum(values, axis=positions) if positions else values

    def to_keras(
        self, weights: str = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Raises a `ValueError`, because there is no plain Keras counterpart."""
        raise ValueError(
            "`GaussianLatent` has no plain Keras counterpart; save or export the model "
            f"as it is. Received: layer={self.name!r}"
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "latent_dim": self.latent_dim,
            "prior": keras.saving.serialize_keras_object(self.prior),
        }
