"""What the generative models have in common: networks, likelihood, a bound as loss."""

import contextlib
import types

import keras
from keras import ops

from keras_bdl.core import copies, recovery, validation
from keras_bdl.core.scopes import BoundScope, SharedWeights
from keras_bdl.generative import initialization, observations
from keras_bdl.generative import networks as vae_networks
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.layers.gaussian_latent import GaussianLatent
from keras_bdl.layers.latent import latent_layers
from keras_bdl.models import batch_checks
from keras_bdl.prediction import export
from keras_bdl.training import num_examples
from keras_bdl.training.data import extent_of

# Draws of the weights that `evaluate` averages the bound over, for each batch.
_WEIGHT_DRAWS = 4


class GenerativeModel(keras.Model):
    """Networks around a code z, trained by a bound on the likelihood of x.

    A subclass implements `call`, which within the `BoundScope` of a training or test
    step gives what its `compute_loss` takes as `y_pred`.

    Args:
        networks: dict of name to Keras model, kept as attributes.
        num_inputs: dict of name to the number of its inputs.
        likelihood, prior, beta, preprocessing, seed, num_examples: as in `VAE`.
        **kwargs: of `keras.Model`.
    """

    def __init__(
        self,
        networks,
        num_inputs,
        likelihood,
        prior,
        beta,
        preprocessing,
        seed,
        num_examples,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)  # the networks cast themselves
        for name, network in networks.items():
            if not isinstance(network, keras.Model):
                raise TypeError(
                    f"Expected `{name}` to be a Keras model. "
                    f"Received: {name}={network!r}"
                )
            vae_networks.check_num_inputs(name, network, num_inputs[name])
            setattr(self, name, network)
        if not (preprocessing is None or isinstance(preprocessing, keras.layers.Layer)):
            raise TypeError(
                "Expected `preprocessing` to be a Keras layer. "
                f"Received: preprocessing={preprocessing!r}"
            )
        self._networks = tuple(networks)
        # In a namespace, in which Keras looks for nothing to track or save.
        self._made = types.SimpleNamespace()
        self.observation = observations.get(likelihood)
        self.preprocessing = preprocessing
        self.seed = seed
        self.num_examples = (
            None
            if num_examples is None
            else validation.integer("num_examples", num_examples, least=1)
        )
        self.latent = GaussianLatent(
            prior=prior,
            kl_weight=validation.number("beta", beta, least=0.0),
            seed=seed,
            name="latent",
        )
        self._reconstruction = keras.metrics.Mean(name="reconstruction")
        self._kl = keras.metrics.Mean(name="kl")

    def preprocess(self, inputs, training=None):
        """Data as the encoder takes it and the decoder explains it, floats."""
        x = ops.convert_to_tensor(inputs)
        if not keras.backend.is_float_dtype(x.dtype):
            x = ops.cast(x, keras.config.floatx())
        if self.preprocessing is None:
            return x
        return copies.call_with_training(self.preprocessing, x, training)

    # Posteriors over weights. With log p(x | w) under a bound for every w, the mean of
    # those over draws of w, less the KL of the weights, is one of log p(data).

    def weights_drawn_once(self, wanted=True):
        """Within, all calls of the networks have one draw of weights, if `wanted`."""
        if not (wanted and self._posteriors()):
            return contextlib.nullcontext()
        return SharedWeights(self.latent.noise.next())

    def mean_over_weights(self, bound, training):
        """The terms of a bound: in evaluation, their mean over draws of the weights.

        Args:
            bound: function without arguments that gives a dict of tensors.
            training: whether it is training, where each step has its own draw.
        """
        if training or not self._posteriors():
            return bound()
        # What other latent variables add to the loss is added in every call.
        others = any(latent_layers(network) for network in self._network_list())
        draws = [bound() for _ in range(1 if others else _WEIGHT_DRAWS)]
        return {
            name: sum(terms[name] for terms in draws) / len(draws) for name in draws[0]
        }

    def _tell_num_examples(self):
        """Tells layers the number of training examples that the constructor gave."""
        if self.num_examples is not None:
            num_examples.set_num_examples(self, self.num_examples)

    def _read_num_examples(self, x, options):
        """Reads it off the data otherwise; `options` are those of `fit`."""
        if self.num_examples is None:
            num_examples.tell_num_examples(self, x, extent_of(options))

    def _posteriors(self):
        """Layers of the networks with a posterior over weights."""
        return [x for network in self._network_list() for x in bayesian_layers(network)]

    def _network_list(self):
        return [getattr(self, name) for name in self._networks]

    def compile(self, optimizer="adam", **kwargs):
        """Configures training. The loss is the negative bound.

        Args:
            optimizer: Keras optimizer or its name.
            **kwargs: as in `keras.Model.compile`, without losses and metrics.

        Raises:
            ValueError: on a loss or metrics.
        """
        for name in ("loss", "loss_weights", "metrics", "weighted_metrics"):
            if kwargs.pop(name, None) is not None:
                raise ValueError(
                    f"`{type(self).__name__}` has its own loss and reports its parts; "
                    f"leave `{name}` out. Received: {name}"
                )
        super().compile(optimizer=optimizer, **kwargs)

    def export(self, filepath, format="tf_saved_model", **kwargs):
        """As `keras.Model.export`: what `model(x)` gives."""
        export.mark_called(self)
        return super().export(filepath, format=format, **kwargs)

    def to_keras(self, weights="mean", seed=None):
        names = " and ".join(f"`model.{name}`" for name in self._networks)
        raise ValueError(
            f"`{type(self).__name__}` has no plain Keras counterpart; convert its "
            f"networks, {names}. Received: model={self.name!r}"
        )

    def compile_from_config(self, config):
        config = keras.saving.deserialize_keras_object(config)
        self.compile(**config)
        if self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(self, *args, class_weight=None, **kwargs):
        if class_weight is not None:
            raise ValueError(
                f"`{type(self).__name__}.fit` takes no `class_weight`. "
                f"Received: class_weight={class_weight!r}"
            )
        return super().fit(*args, **kwargs)

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        **kwargs,
    ):
        """As `keras.Model.evaluate`, of data as in `fit`."""
        initialization.check(self, x)
        if hasattr(x, "shape"):
            self._check_weights(x, sample_weight)
        with recovery.weights_kept(self):
            return super().evaluate(x, y, batch_size, verbose, sample_weight, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """As `keras.Model.train_on_batch`, of data as in `fit`."""
        y = self._checked_batch(x, y, sample_weight)
        return super().train_on_batch(x, y, sample_weight, **kwargs)

    def test_on_batch(self, x, y=None, sample_weight=None, **kwargs):
        """As `keras.Model.test_on_batch`, of data as in `fit`."""
        y = self._checked_batch(x, y, sample_weight)
        return super().test_on_batch(x, y, sample_weight, **kwargs)

    def predict(self, x, *args, **kwargs):
        """As `keras.Model.predict`."""
        initialization.check_shape(self, x)
        return super().predict(x, *args, **kwargs)

    def _checked_batch(self, x, y, sample_weight):
        """What stands beside a batch, as the steps take it."""
        initialization.check(self, x)
        self._check_weights(x, sample_weight)
        return y

    def _check_weights(self, x, sample_weight):
        """Refuses weights of arrays that are none, or of other rows or positions."""
        batch_checks.check_one_batch(x, None, sample_weight)
        if sample_weight is None:
            return
        batch_checks.check_weights(sample_weight)
        if len(sample_weight.shape) > len(x.shape):
            raise ValueError(
                f"Expected weights `(n,)`, or of the positions of x. Received: x of "
                f"shape {tuple(x.shape)}, sample_weight of shape "
                f"{tuple(sample_weight.shape)}"
            )

    def train_step(self, *args):  # of the data; on JAX of the state and the data
        with BoundScope(args[-1]):
            return super().train_step(*args)

    def test_step(self, *args):
        with BoundScope(args[-1]):
            return super().test_step(*args)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()

    def add_losses(self, value):
        """A loss plus what layers add to it, such as the KL of weights."""
        added = [ops.cast(ops.sum(term), value.dtype) for term in self.losses]
        return sum(added, value)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            **{name: serialize(getattr(self, name)) for name in self._networks},
            "likelihood": serialize(self.observation.loss),
            "prior": serialize(self.latent.prior),
            "beta": self.latent.full_kl_weight,
            "preprocessing": serialize(self.preprocessing),
            "seed": self.seed,
            "num_examples": self.num_examples,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = {
            name: keras.saving.deserialize_keras_object(
                value, custom_objects=custom_objects
            )
            if isinstance(value, dict) and "class_name" in value
            else value
            for name, value in config.items()
        }
        return cls(**config)
