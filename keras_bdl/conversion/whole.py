"""`Bayesian`: a posterior over the weights of any layer or model as it is."""

from typing import Any, Self

import keras

from keras_bdl.core import copies
from keras_bdl.core.stochastic import PACKAGE
from keras_bdl.core.typing import Tensor, Weights
from keras_bdl.graphs.copy import ModelCopier
from keras_bdl.layers.wrapper import BayesianWrapper
from keras_bdl.posteriors import Posterior
from keras_bdl.priors import Prior


@keras.saving.register_keras_serializable(PACKAGE)
class BayesianModel(keras.Model):
    """Any Keras model, with a posterior over its weights, as `Bayesian` makes it.

    `model(x)` and `predict` are those of the posterior-mean network.
    `keras_bdl.predict` samples it.

    Args:
        model: Keras model, which holds the means.
        name: name of this model, or None.
        **options: arguments of `keras_bdl.layers.BayesianWrapper`.
    """

    def __init__(
        self, model: keras.Model, name: str | None = None, **options: Any
    ) -> None:
        # By the policy of the model `compile` scales the loss; the inputs are left for
        # it to cast.
        policy = getattr(model, "dtype_policy", None)
        super().__init__(dtype=policy, autocast=False, name=name)
        options = {k: v for k, v in options.items() if k != "dtype"}
        self.bayesian = BayesianWrapper(model, **options)
        self.supports_masking = True
        self.built = self.bayesian.built

    @property
    def model(self) -> keras.Model:
        """The model of the means."""
        return self.bayesian.layer

    def build(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing, because the model inside builds itself when it is called."""
        self.built = True

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return self.bayesian(*args, training=training, **kwargs)

    def kl(self) -> Tensor:
        """Returns KL(posterior || prior) in nats over all weights, a float32 scalar."""
        return self.bayesian.kl()

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.model.compute_mask(inputs, previous_mask)

    def to_keras(
        self, weights: Weights = "mean", seed: int | None = None
    ) -> keras.Model:
        """Returns a plain Keras model with these weights; see `keras_bdl.to_keras`."""
        copies.check_weights(weights)
        copy = ModelCopier([], lambda layer: layer, plain=True).copy(self.model)
        return self.bayesian.assign_to(copy, weights, seed)

    def prior_from_posterior(self) -> Self:
        """Returns a copy, not compiled, as in `keras_bdl.prior_from_posterior`."""
        layer = self.bayesian.posterior_as_prior()
        copy = type(self)(layer.layer, name=self.name)
        copy.bayesian = layer
        return copy

    def get_config(self) -> dict[str, Any]:
        config = self.bayesian.get_config()
        return {**config, "name": self.name, "model": config.pop("layer")}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None
    ) -> Self:
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": model})


def Bayesian(
    layer: keras.layers.Layer,
    weights: str = "matrices",
    *,
    prior: str | Prior = "normal",
    posterior: str | Posterior = "gaussian",
    num_examples: int | None = None,
    kl_weight: float = 1.0,
    initial_log_stddev: float | None = None,
    sample_at_inference: bool = False,
    seed: int | None = None,
    name: str | None = None,
) -> keras.layers.Layer:
    """Gives the weights of any Keras layer or model a posterior.

    The layer may be a third party's or the user's own, and needs no config. It is not
    copied: it holds the means. In training every call draws its weights once for all
    rows of the batch. `keras_bdl.to_bayesian` puts Bayesian layers in the places of
    those that have a counterpart, which trains with less noise, and wraps the others.

    Args:
        layer: Keras layer or model, built or not.
        weights: "matrices" for a posterior over the weights of all layers inside that
            have one of at least two axes, or "all" for every trainable weight. Frozen
            weights have none.
        prior, posterior, num_examples, kl_weight, initial_log_stddev,
            sample_at_inference, seed: as in `VariationalDense`. The prior takes the
            place of regularizers of these weights.
        name: name of the wrapper, or None.

    Returns:
        `BayesianModel` for a Keras model, `layers.BayesianWrapper` for another layer.

    Raises:
        TypeError: if `layer` is not a Keras layer.
        ValueError: on another wrong argument; if the layer holds keras_bdl layers, has
            nothing to train, or a constraint on a weight.

    Example:

    >>> model = keras_bdl.Bayesian(keras_model, num_examples=len(x))
    >>> model.compile("adam", loss)
    >>> model.fit(x, y, epochs=10)
    >>> keras_bdl.predict_uncertainty(model, x_test, outputs="logits")

    Reference: Blundell, Cornebise, Kavukcuoglu and Wierstra, "Weight uncertainty in
    neural networks", 2015, section 3.2.
    """
    cls = BayesianModel if isinstance(layer, keras.Model) else BayesianWrapper
    return cls(
        layer,
        weights=weights,
        prior=prior,
        posterior=posterior,
        num_examples=num_examples,
        kl_weight=kl_weight,
        initial_log_stddev=initial_log_stddev,
        sample_at_inference=sample_at_inference,
        seed=seed,
        name=name,
    )
