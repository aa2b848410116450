"""The contract of layers with a posterior over weights, in one place.

`BayesianLayer` is a mixin, which precedes a public Keras layer among the bases of a
class. It owns the KL term and the number of examples.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_bdl import priors
from keras_bdl.core import scopes, validation
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.stochastic import StochasticGroup
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.kl_weight import WeightedLayer

# Ends of the names of arguments that no layer with a posterior takes, with advice.
_REFUSED = {
    "_regularizer": "the prior is the regularizer: use `prior`",
    "_constraint": "a posterior has no constraint: use `prior`",
    "lora_rank": "convert the layer by `to_keras()` first",
    "quantization_config": "convert the layer by `to_keras()` first",
}


def bayesian_layers(model: keras.layers.Layer) -> list["BayesianLayer"]:
    """Returns all layers of a model (or a layer) with a posterior over weights."""
    return [
        layer for layer in flatten_layers(model) if isinstance(layer, BayesianLayer)
    ]


def counted_layers(model: keras.layers.Layer) -> list[Any]:
    """Returns the layers of a model that must know the number of training examples.

    These are `bayesian_layers` and the groups, which make theirs when they are built.
    """
    return [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, (BayesianLayer, StochasticGroup))
    ]


def refuse_options(layer: keras.layers.Layer) -> None:
    """Raises an error for an argument that no layer with a posterior takes."""
    # Recurrent layers have them as properties.
    for name in sorted({*vars(layer), *dir(type(layer))}):
        fix = next((f for end, f in _REFUSED.items() if name.endswith(end)), None)
        value, name = getattr(layer, name, None) if fix else None, name.lstrip("_")
        if value is not None and name != "activity_regularizer":
            raise ValueError(
                f"`{type(layer).__name__}` takes no `{name}`; {fix}. "
                f"Received: {name}={value!r}"
            )


class KLTerm(keras.layers.Layer):
    """Adds a KL to the loss once per forward pass, however often it is called.

    It computes the KL in its own `call`, where variables are read in their own dtype.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(dtype="float32", autocast=False, **kwargs)
        self.built = True
        self._added: weakref.ref | None = None

    def call(self, factor: Tensor, kl: Callable[[], Tensor]) -> Tensor:
        # Keras knows the losses of a layer by their ids. Where a layer is called with
        # the weights of several networks in turn, the loss of another layer may have
        # the id of a loss that is gone. So the term itself has to be among them.
        added = None if self._added is None else self._added()
        if added is None or all(loss is not added for loss in self.losses):
            value = kl()
            # Keras adds up the losses in `floatx`.
            term = ops.cast(factor, value.dtype) * value
            term = ops.cast(term, keras.config.floatx())
            self.add_loss(term)
            self._added = weakref.ref(term)
        return factor


class BayesianLayer(WeightedLayer):
    """Mixin of all layers with a posterior over weights.

    A subclass implements `kl()` and the forward passes.

    Args:
        *args: positional arguments of the Keras layer.
        prior: a `keras_bdl.priors.Prior` or its name.
        num_examples: number N of training examples. The KL term in the loss is
            `kl_weight * kl() / N`. `keras_bdl.set_num_examples` can set N later, and
            a keras_bdl model can read it from the data.
        **kwargs: arguments of `WeightedLayer`, such as `kl_weight`, and of the Keras
            layer.
    """

    # Made by `build`.
    _prior_variables: dict[str, keras.Variable]
    # Name and class of the group that the layer is in, for messages.
    group_name: tuple[str, str] | None = None

    def __init__(
        self,
        *args: Any,
        prior: str | priors.Prior = "normal",
        num_examples: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        refuse_options(self)
        self.prior = priors.get(prior)
        self.num_examples = validation.optional_integer(
            "num_examples", num_examples, least=1
        )
        # 0 stands for an unknown N. An inferred N is kept here and not in
        # `num_examples`.
        self._num_examples = self.add_scalar("num_examples", self.num_examples or 0)
        self._num_examples_known = self.num_examples is not None
        self._kl_term = KLTerm(name="kl")

    def told_variables(self) -> dict[str, keras.Variable]:
        return {**super().told_variables(), "num_examples": self._num_examples}

    def add_weight(self, *args: Any, **kwargs: Any) -> keras.Variable:
        # Posterior parameters stay in their own dtype under mixed precision.
        kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        weights = {w.name for w in self.weights}
        self.build_posterior()
        shapes = self.prior_shapes()
        self._prior_variables = self.prior.build(self.add_weight, shapes)
        for name, variable in self._prior_variables.items():
            setattr(self, name, variable)
        names = frozenset(w.name for w in self.weights)
        self._names_of_beliefs = names - weights
        if self.has_kl and not self._num_examples_known:
            # Keras calls it only to read `losses`, in `fit` and `evaluate`.
            self._guarded_variable().regularizer = self._require_num_examples

    def build_posterior(self) -> None:
        """Makes the posterior's variables beside those of the Keras layer."""

    def inference_weights(self) -> list[Tensor]:
        beliefs = self._names_of_beliefs if self.built else ()
        return [w for w in super().inference_weights() if w.name not in beliefs]

    def prior_shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns the shapes of the weights that the prior is over, by name."""
        return {}

    def _guarded_variable(self):
        return next(iter(self.saved_variables().values()))

    def _require_num_examples(self, _):
        name, kind = self.group_name or (self.name, type(self).__name__)
        raise ValueError(
            f"Layer '{name}' does not know the number of training examples, "
            "which divides its KL term. Set it in one of three ways: "
            f"`{kind}(..., num_examples=n)`, "
            "`keras_bdl.set_num_examples(model, n)`, or train a keras_bdl model "
            "such as `keras_bdl.BayesianClassifier`, which reads it from the data. "
            f"Received: num_examples={self.num_examples}"
        )

    @property
    def has_kl(self) -> bool:
        """Whether there is a KL, which needs the number of examples."""
        return True

    def set_num_examples(self, num_examples: int, inferred: bool = False) -> None:
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
        if self.built and self.has_kl:
            self._guarded_variable().regularizer = None

    def kl(self) -> Tensor:
        """Returns KL(posterior || prior) in nats over all weights, a float32 scalar."""
        raise NotImplementedError

    def posterior_distribution(self) -> Any:
        """Returns the posterior as a TensorFlow Probability joint distribution."""
        raise NotImplementedError

    def posterior(self) -> Any:
        """Returns `posterior_distribution()`, whose old name this is."""
        warnings.warn(
            "`layer.posterior()` is `layer.posterior_distribution()` now.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.posterior_distribution()

    def call_in_mode(self, inputs: Any, training: bool | None, **arguments: Any) -> Any:
        if (
            scopes.SamplingScope.current() is None
            and scopes.KLAddedElsewhere.current() is None
        ):
            self.add_kl(training)
        shared = scopes.SharedWeights.current()
        if shared is None:
            return super().call_in_mode(inputs, training, **arguments)
        with scopes.SamplingScope(shared.seed, 0, num_samples=1):
            return super().call_in_mode(inputs, training, **arguments)

    def training_kl(self) -> Tensor:
        """Returns `kl()`, or an unbiased estimate of it that costs less."""
        return self.kl()

    def measured_kl(self) -> Tensor:
        """Returns `kl()` without using up training noise."""
        with scopes.FrozenNoise():
            return self.kl()

    def add_kl(self, training: bool | None) -> None:
        """Adds the KL term to the loss, at most once per forward pass."""
        if not (self.trainable and self._num_examples_known and self.has_kl):
            return
        factor = self.current_kl_weight(training) / ops.convert_to_tensor(
            self._num_examples
        )
        self._kl_term(factor, kl=self.training_kl if training else self.measured_kl)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "prior": keras.saving.serialize_keras_object(self.prior),
            "num_examples": self.num_examples,
        }

    def saved_variables(self) -> dict[str, keras.Variable]:
        """Returns the variables by their names in files, the posterior's first."""
        variables = {**super().saved_variables(), **self._prior_variables}
        return {name: v for name, v in variables.items() if v is not None}

    def load_own_variables(self, store: Any) -> None:
        # A file may come from a layer with another prior, but not from one whose prior
        # has a mean of its own for each weight.
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

    def load_told(self, name: str, value: Any) -> None:
        # The KL weight of the constructor stays: the file may be of another objective.
        if name == "num_examples" and self.num_examples is None and value > 0:
            self._num_examples.assign(value)
            self._num_examples_now_known()

    def enable_lora(self, *args: Any, **kwargs: Any) -> None:
        raise ValueError(
            f"`{type(self).__name__}` has no LoRA; convert the layer by `to_keras()` "
            f"first. Received: layer={self.name!r}"
        )

    def quantize(self, mode: Any = None, **kwargs: Any) -> None:
        raise ValueError(
            f"`{type(self).__name__}` cannot be quantized; convert the layer by "
            f"`to_keras()` first. Received: mode={mode!r}"
        )
