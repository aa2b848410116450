"""The contract of a layer with a posterior over weights, kept in one place.

`BayesianLayer` is a mixin put before a public Keras layer. It owns the KL term and
the number of examples.
"""

import warnings

import keras
from keras import ops

from keras_bdl import priors
from keras_bdl.core import scopes, validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.layers.kl_weight import WeightedLayer

# What no layer with a posterior takes, by the end of its name, and what to do.
_REFUSED = {
    "_regularizer": "the prior is the regularizer: use `prior`",
    "_constraint": "a posterior has no constraint: use `prior`",
    "lora_rank": "convert the layer by `to_keras()` first",
    "quantization_config": "convert the layer by `to_keras()` first",
}


def bayesian_layers(model):
    """Every layer of a model (or the layer itself) with a posterior over weights."""
    return [
        layer for layer in flatten_layers(model) if isinstance(layer, BayesianLayer)
    ]


class KLTerm(keras.layers.Layer):
    """Adds a KL to the loss once per forward pass, however often it is called.

    It calls for the KL itself: inside it variables are read in their own dtype.
    """

    def __init__(self, **kwargs):
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.built = True

    def call(self, factor, kl):
        # Its losses are its own: no regularizer or sublayer can hide the guard.
        if not self.losses:
            value = kl()
            # Keras adds up losses, which are in `floatx`.
            term = ops.cast(factor, value.dtype) * value
            self.add_loss(ops.cast(term, keras.config.floatx()))
        return factor


class BayesianLayer(WeightedLayer):
    """Mixin of all layers with a posterior over weights.

    A subclass says what its posterior is by `kl()`, beside the forward passes.

    Args:
        *args: positional arguments of the Keras layer.
        prior: a `keras_bdl.priors.Prior` or its name.
        num_examples: number N of training examples, so that the KL term added
            to the loss is `kl_weight * kl() / N`. May be given later by
            `keras_bdl.set_num_examples` or read off the data by a keras_bdl
            model.
        **kwargs: of `WeightedLayer`, such as `kl_weight`, and of the Keras layer.
    """

    def __init__(
        self,
        *args,
        prior="normal",
        num_examples=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        for name in [name for name in vars(self) if name != "activity_regularizer"]:
            fix = next((f for end, f in _REFUSED.items() if name.endswith(end)), None)
            if fix is not None and getattr(self, name) is not None:
                raise ValueError(
                    f"`{type(self).__name__}` takes no `{name}`; {fix}. "
                    f"Received: {name}={getattr(self, name)!r}"
                )
        self.prior = priors.get(prior)
        self.num_examples = (
            None
            if num_examples is None
            else validation.integer("num_examples", num_examples, least=1)
        )
        # 0 stands for unknown; an inferred N is here and not in `num_examples`.
        self._num_examples = self.add_scalar("num_examples", self.num_examples or 0)
        self._num_examples_known = self.num_examples is not None
        self._kl_term = KLTerm(name="kl")

    def told_variables(self):
        return {**super().told_variables(), "num_examples": self._num_examples}

    def add_weight(self, *args, **kwargs):
        # Posterior parameters stay in their own dtype under mixed precision.
        kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        weights = {w.name for w in self.weights}
        self.build_posterior()
        shapes = self.prior_shapes()
        self._prior_variables = self.prior.build(self.add_weight, shapes)
        for name, variable in self._prior_variables.items():
            setattr(self, name, variable)
        names = frozenset(w.name for w in self.weights)
        self._names_of_beliefs = names - weights
        if not self._num_examples_known:
            # Called only when somebody reads `losses`: fit and evaluate.
            self._guarded_variable().regularizer = self._require_num_examples

    def build_posterior(self):
        """Makes the posterior's variables beside those of the Keras layer."""

    def inference_weights(self):
        beliefs = self._names_of_beliefs if self.built else ()
        return [w for w in super().inference_weights() if w.name not in beliefs]

    def prior_shapes(self):
        """Shapes of what the prior is over, by name."""
        return {}

    def _guarded_variable(self):
        return next(iter(self.saved_variables().values()))

    def _require_num_examples(self, _):
        raise ValueError(
            f"Layer '{self.name}' does not know the number of training examples, "
            "by which its KL term is divided. Give it in one of three ways: "
            f"`{type(self).__name__}(..., num_examples=n)`, "
            "`keras_bdl.set_num_examples(model, n)`, or train a keras_bdl model "
            "such as `keras_bdl.BayesianClassifier`, which reads it off the data. "
            f"Received: num_examples={self.num_examples}"
        )

    def set_num_examples(self, num_examples, inferred=False):
        """Sets N. An inferred N never overrides one that the user gave."""
        num_examples = validation.integer("num_examples", num_examples, least=1)
        if inferred and self.num_examples is not None:
            return
        if not inferred:
            self.num_examples = num_examples
        self._num_examples.assign(num_examples)
        self._num_examples_now_known()

    def _num_examples_now_known(self):
        self._num_examples_known = True
        if self.built:
            self._guarded_variable().regularizer = None

    def kl(self):
        """KL(posterior || prior) in nats, summed over weights: a float32 scalar."""
        raise NotImplementedError

    def posterior_distribution(self):
        """The weight posterior as a TensorFlow Probability joint distribution."""
        raise NotImplementedError

    def posterior(self):
        """The old name of `posterior_distribution`."""
        warnings.warn(
            "`layer.posterior()` is `layer.posterior_distribution()` now.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.posterior_distribution()

    def call(self, inputs, training=None):
        if (
            scopes.SamplingScope.current() is None
            and scopes.KLAddedElsewhere.current() is None
        ):
            self.add_kl(training)
        shared = scopes.SharedWeights.current()
        if shared is None:
            return super().call(inputs, training=training)
        with scopes.SamplingScope(shared.seed, 0, num_samples=1):
            return super().call(inputs, training=training)

    def measured_kl(self):
        """`kl()` without using up training noise."""
        with scopes.FrozenNoise():
            return self.kl()

    def add_kl(self, training):
        """Adds the KL term to the loss, unless this forward pass has done so."""
        if not (self.trainable and self._num_examples_known):
            return
        factor = self.current_kl_weight(training) / ops.convert_to_tensor(
            self._num_examples
        )
        self._kl_term(factor, kl=self.kl if training else self.measured_kl)

    def get_config(self):
        return {
            **super().get_config(),
            "prior": keras.saving.serialize_keras_object(self.prior),
            "num_examples": self.num_examples,
        }

    def saved_variables(self):
        """Variables by the name under which they are saved; the posterior's first."""
        variables = {**super().saved_variables(), **self._prior_variables}
        return {name: v for name, v in variables.items() if v is not None}

    def load_own_variables(self, store):
        # Weights of another prior may be loaded, but not one that was made for them.
        lost = [n for n in store.keys() if n.startswith("prior_") and "_mean" in n]
        lost = [name for name in lost if name not in self.saved_variables()]
        if self.built and lost:
            raise ValueError(
                f"The file has a prior of its own for each weight of layer "
                f"'{self.name}', which this layer's prior cannot hold. Load it into "
                "the model that it was saved from, made anew (a subclassed one by "
                "`to_bayesian` or `prior_from_posterior`). "
                f"Received: prior={self.prior!r}"
            )
        super().load_own_variables(store)

    def load_told(self, name, value):
        # The constructor's weight holds, not that of another objective.
        if name == "num_examples" and self.num_examples is None and value > 0:
            self._num_examples.assign(value)
            self._num_examples_now_known()

    def enable_lora(self, *args, **kwargs):
        raise ValueError(
            f"`{type(self).__name__}` has no LoRA; convert the layer by `to_keras()` "
            f"first. Received: layer={self.name!r}"
        )

    def quantize(self, mode=None, **kwargs):
        raise ValueError(
            f"`{type(self).__name__}` cannot be quantized; convert the layer by "
            f"`to_keras()` first. Received: mode={mode!r}"
        )
