"""The common part of all layers with noise.

`StochasticLayer` is a mixin that comes before a public Keras layer. It owns the noise,
the saving, and the choice between the mean and a sample. `layers.bayesian` adds the
part for posteriors over weights, `layers.latent` the part for latent variables. A
`StochasticGroup` does not sample by itself: its inner layers do.
"""

from typing import Any, Literal, TypeVar

import keras
from keras import ops

from keras_bdl.core import finding, scopes, validation
from keras_bdl.core.dtypes import as_floats
from keras_bdl.core.noise import NoiseGenerator
from keras_bdl.core.typing import Tensor

PACKAGE = "keras_bdl"
REGISTRY: dict[str, type] = {}

# The base of the mixin: for type checkers, the Keras layer that follows it.
_Base: Any = object
_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Registers a layer class for serialisation and for the tools."""
    REGISTRY[cls.__name__] = cls
    return keras.saving.register_keras_serializable(PACKAGE)(cls)


def stochastic_layers(model):
    """Returns every layer of a model that can be sampled, in order.

    If `model` is a layer, it may be one of them.
    """
    return [
        layer
        for layer in finding.flatten_layers(model)
        if isinstance(layer, StochasticLayer)
    ]


def whole_layers(model):
    """Returns every layer of a model that tools take as a whole, in order.

    These are the groups, also those that are not built, and the layers outside of
    groups that sample.
    """
    layers = finding.flatten_layers(model)
    inside = {
        id(inner)
        for layer in layers
        if isinstance(layer, StochasticGroup)
        for inner in finding.flatten_layers(layer)
        if inner is not layer
    }
    return [x for x in layers if is_whole(x) and id(x) not in inside]


def is_whole(layer):
    """Whether a layer samples, or is a group of layers that do."""
    return isinstance(layer, (StochasticLayer, StochasticGroup))


def places(model):
    """Returns the place of each noise generator in the model, by its id.

    Equal models have equal places in every process; names and keys may differ.
    """
    return {id(x.noise): place for place, x in enumerate(stochastic_layers(model))}


def own_weights(layer):
    """Returns the weights of a layer itself at inference, which reports count.

    These are `inference_weights()` if the layer has that method. Otherwise they are its
    variables of more than one axis (biases and scales have one). Layers inside it are
    counted by themselves.
    """
    if hasattr(layer, "inference_weights"):
        return layer.inference_weights()
    return own_matrices(layer)


def own_matrices(layer):
    """Returns variables of more than one axis, without biases and layers inside."""
    own = finding.own_variables(layer)
    return [w for w in own if w.name != "bias" and len(w.shape) > 1]


class StochasticLayer(_Base):
    """Mixin of all layers that sample.

    A subclass implements three forward passes: `call_mean`, `call_noisy` (training)
    and `call_sampled` (inside the sampling scope).

    Args:
        *args: positional arguments of the Keras layer.
        sample_at_inference: whether to sample outside training too.
        seed: integer for the noise, or None for a random one. Layers with equal seeds
            and different names have independent noise. So give a name to a layer whose
            noise is to repeat in a second model of the same process, where Keras would
            number it differently.
        **kwargs: keyword arguments of the Keras layer.
    """

    # Whether `call_sampled` takes inputs `(rows, ...)` that all samples share, for
    # layers that the scope names.
    takes_shared_inputs = False
    # Whether the Keras layer takes the seed too, for noise of its own.
    shares_seed = False
    # Number of different draws if there are only so many, else None.
    num_draws: int | None = None
    # Number of samples after which the members of its posterior begin again, else None.
    cycle: int | None = None
    # Whether the outputs are the inputs if nothing is sampled.
    is_identity = False

    def __init__(
        self,
        *args,
        sample_at_inference: bool = False,
        seed: int | None = None,
        **kwargs,
    ) -> None:
        seed = validation.optional_integer("seed", seed)
        if self.shares_seed:
            kwargs["seed"] = seed
        super().__init__(*args, **kwargs)
        self.sample_at_inference = validation.boolean(
            "sample_at_inference", sample_at_inference
        )
        self.seed = seed
        self.noise = NoiseGenerator(seed, salt=self.name)

    def build(self, input_shape: Any) -> None:
        # A layer without a `build` of its own could get no new variables after its
        # constructor.
        super().build(input_shape)

    def add_scalar(self, name: str, value: float) -> keras.Variable:
        """Adds a scalar variable for a setting of the data or the objective."""
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def told_variables(self) -> dict[str, keras.Variable]:
        """Returns the variables of settings of the data and the objective, by name.

        The constructor sets them, and a file replaces them only by `load_told`.
        """
        return {}

    def epoch_variables(self) -> dict[str, keras.Variable]:
        """Returns the state of one epoch of training, by name; no file keeps it."""
        return {}

    def inference_weights(self) -> list[Tensor]:
        """Returns the weights of this layer itself at inference, which reports count.

        They do not include biases, parameters about weights such as their standard
        deviations, or weights of layers inside. Pruned weights are 0. Override this
        method in a layer whose variables of more than one axis are not its weights.
        """
        return own_matrices(self)

    def to_keras(
        self, weights: Literal["mean", "sample"] = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain Keras layer that replaces this one.

        Raises:
            ValueError: if the layer has no plain counterpart.
        """
        raise ValueError(
            f"`{type(self).__name__}` has no plain Keras counterpart; save or export "
            f"the model as it is. Received: layer={self.name!r}"
        )

    def posterior_as_prior(self) -> keras.layers.Layer:
        """Returns a layer like this one whose prior is the posterior of this one.

        The posterior of the new layer starts there too. This needs Gaussian posteriors
        of the weights, and a layer that takes any Gaussian as its prior.

        Raises:
            ValueError: if the layer does not fulfil this.
        """
        raise ValueError(
            f"The posterior of `{type(self).__name__}` cannot become the prior of its "
            "weights; that of `VariationalDense` and `VariationalConv*D` can. "
            f"Received: layer={self.name!r}"
        )

    @property
    def weights(self) -> list[keras.Variable]:
        # `set_weights` must not carry settings from one model to another.
        others = {**self.told_variables(), **self.epoch_variables()}.values()
        return [w for w in super().weights if all(w is not v for v in others)]

    def prepare_inputs(self, inputs: Tensor) -> Tensor:
        """Converts inputs to the form that the forward passes take."""
        return as_floats(inputs, self.compute_dtype)

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        return self.call_in_mode(inputs, training)

    def call_in_mode(self, inputs: Any, training: bool | None, **arguments: Any) -> Any:
        """Runs the forward pass that is asked for: mean, noisy or sampled.

        Args:
            inputs: inputs of `call`.
            training: argument of `call`.
            **arguments: further arguments of `call`, which the passes take too.
        """
        inputs = self.prepare_inputs(inputs)
        scope = scopes.SamplingScope.current()
        if scope is not None:
            scope.restart(self.noise)
            return self.call_sampled(inputs, scope, **arguments)
        if training or self.sample_at_inference:
            return self.call_noisy(inputs, **arguments)
        return self.call_mean(inputs, **arguments)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sample_at_inference": self.sample_at_inference,
            "seed": self.seed,
        }

    def saved_variables(self) -> dict[str, keras.Variable]:
        """Returns variables by the names under which they are saved."""
        return self.told_variables()

    def save_own_variables(self, store: Any) -> None:
        if not self.built:
            return
        for name, variable in self.saved_variables().items():
            store[name] = ops.convert_to_numpy(variable)
        store["seed_state"] = ops.convert_to_numpy(self.noise.state).astype("int64")

    def load_own_variables(self, store: Any) -> None:
        if not self.built:
            raise ValueError(
                f"Layer '{self.name}' has no variables yet; build the model (call it "
                "on a batch) before loading weights."
            )
        told = self.told_variables()
        for name, variable in self.saved_variables().items():
            if name not in store.keys():
                raise ValueError(
                    f"The file has no variable '{name}' for layer '{self.name}' of "
                    f"class {type(self).__name__}: it holds another layer's weights. "
                    f"Received: {sorted(store.keys())}"
                )
            value = store[name][()] if hasattr(store[name], "shape") else store[name]
            if tuple(value.shape) != tuple(variable.shape):
                raise ValueError(
                    f"Expected shape {tuple(variable.shape)} for '{name}' of layer "
                    f"'{self.name}'. Received: shape={tuple(value.shape)}"
                )
            if name in told:
                self.load_told(name, value)
            else:
                variable.assign(value)
        if "seed_state" in store.keys():
            state = store["seed_state"][()]
            self.noise.state.assign(state.astype(self.noise.state.dtype))

    def load_told(self, name: str, value: Any) -> None:
        """Reads a saved value of `told_variables`.

        The default ignores it and keeps the value of the constructor.
        """


class StochasticGroup(_Base):
    """Mixin of a Keras layer that does not sample by itself: its inner layers do.

    The Keras layer makes the inner layers in its `build` and calls them in its own
    way. A subclass sees to it that they are stochastic layers. Tools that replace
    layers take the group as a whole, all others find its inner layers.

    Attributes:
        num_examples: number of training examples, or None. The group keeps it for the
            layers that its `build` makes.
    """

    # Inner layers take inputs that have the rows of all samples.
    takes_shared_inputs = False
    is_identity = False
    num_examples: int | None

    def set_num_examples(self, num_examples: int, inferred: bool = False) -> None:
        """Sets the number in the group and its inner layers.

        An inferred number never overrides one that the user gave.
        """
        raise NotImplementedError

    def to_keras(
        self, weights: Literal["mean", "sample"] = "mean", seed: int | None = None
    ) -> keras.layers.Layer:
        """Returns the plain Keras layer that replaces this one."""
        raise NotImplementedError

    def posterior_as_prior(self) -> keras.layers.Layer:
        """Returns a layer like this one whose prior is the posterior of this one."""
        raise NotImplementedError


def check_no_recurrent_cells(model):
    """Raises an error if an RNN cell has Bayesian layers.

    Their KL cannot leave the time loop.

    Raises:
        ValueError: if there is such a layer.
    """
    for layer in finding.flatten_layers(model):
        if isinstance(layer, keras.layers.RNN):
            inner = [x for x in stochastic_layers(layer) if x is not layer]
            if inner:
                raise ValueError(
                    f"Layer '{inner[0].name}' is in the cell of the recurrent layer "
                    f"'{layer.name}', where its KL term cannot reach the loss; use it "
                    "outside the cell (`TimeDistributed` works), or a layer such as "
                    "`keras_bdl.VariationalLSTM`. "
                    f"Received: layer={inner[0].name!r}"
                )
