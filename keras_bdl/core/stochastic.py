"""What every layer with noise has in common, and finding such layers in a model.

`StochasticLayer` is a mixin put before a public Keras layer. It owns the noise,
saving, and the choice between the mean and a sample. `layers.bayesian` adds
what posteriors over weights need, `layers.latent` what latent variables need.
"""

import contextlib
import functools
import inspect

import keras
from keras import backend, ops

from keras_bdl.core import noise, validation

PACKAGE = "keras_bdl"
REGISTRY = {}


def register(cls):
    """Registers a layer class for serialisation and for the tools."""
    REGISTRY[cls.__name__] = cls
    return keras.saving.register_keras_serializable(PACKAGE)(cls)


def flatten_layers(model):
    """The model and every layer below it, also inside custom layers, once each.

    `model.layers` stops at custom layers; this one private method does not.
    """
    seen = {id(layer): layer for layer in model._flatten_layers()}
    return list(seen.values())


def stochastic_layers(model):
    """Every layer of a model (or the layer itself) that can be sampled, in order."""
    return [
        layer for layer in flatten_layers(model) if isinstance(layer, StochasticLayer)
    ]


def places(model):
    """Place of the noise of every layer that samples, by the id of its generator.

    Equal models have equal places in every process, which names and keys have not.
    """
    return {id(x.noise): place for place, x in enumerate(stochastic_layers(model))}


def is_graph(model):
    """Whether a model is the plain graph of its layers, without a `call` of its own."""
    if isinstance(model, keras.Sequential):
        # One that Keras could not call on symbols has no inputs.
        symbolic = model.built and hasattr(model, "inputs")
        return symbolic and type(model).call is keras.Sequential.call
    return is_functional(model) and type(model).call is _functional_class().call


def is_functional(model):
    """Whether a model is made of inputs and outputs, perhaps with its own `call`."""
    return isinstance(model, _functional_class())


@functools.cache
def _functional_class():
    """The class that Keras makes of inputs and outputs; it has no public name."""
    with keras.name_scope("functional_class"):
        inputs = keras.Input((1,), name="functional_class_input")
        return type(keras.Model(inputs, inputs, name="functional_class"))


def graph_input(model):
    """The symbolic inputs of a graph, nested as its `call` takes them."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0]
    return model.input


def graph_output(model):
    """The symbolic outputs of a graph, nested as its `call` gives them."""
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    return model.output


def fresh_inputs(model):
    """New symbolic inputs like those of a graph."""
    return keras.tree.map_structure(
        lambda x: keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name),
        graph_input(model),
    )


def live_config(cls, layer):
    """`cls.get_config()` of a layer, with its functions as they are.

    A config holds a function by a name or bytecode that may not load.
    """
    config = cls.get_config(layer)
    for name in config:
        function = getattr(layer, name, None)
        is_function = name == "activation" or name.endswith("_initializer")
        # Attention, for one, keeps them under other names.
        known = hasattr(layer, name) and not isinstance(function, keras.layers.Layer)
        if is_function and known:
            config[name] = function
    return config


def check_weights(weights):
    """Refuses other weights of a plain copy than the mean or a sample."""
    validation.choice("weights", weights, ("mean", "sample"))


def assign_copy(variable, value):
    """Assigns a copy: on JAX two variables would share what training gives away."""
    variable.assign(ops.copy(ops.convert_to_tensor(value)))


def copy_activation(layer, copy):
    """Gives a copy of a layer the weights of an activation that is a layer."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and activation.variables:
        if not copy.activation.built:
            copy.activation.build(activation.get_build_config()["input_shape"])
        copy.activation.set_weights(activation.get_weights())


def assign_weights(layer, weights):
    """`layer.set_weights`, and what Keras derives from weights only when asked."""
    layer.set_weights(weights)
    for inner in flatten_layers(layer):
        if isinstance(inner, keras.layers.Normalization):
            inner.finalize_state()


def own_weights(layer):
    """Weights at inference of a layer itself: what reports count.

    A layer that has `inference_weights()` says it. Of any other they are its variables
    of more than one axis (biases and scales have one); layers inside have their own.
    """
    if hasattr(layer, "inference_weights"):
        return layer.inference_weights()
    return own_matrices(layer)


def own_matrices(layer):
    """Variables of more than one axis that are of no layer inside."""
    inner = {id(w) for x in flatten_layers(layer) if x is not layer for w in x.weights}
    return [w for w in layer.weights if len(w.shape) > 1 and id(w) not in inner]


@contextlib.contextmanager
def method_replaced(layer, name, function):
    """Within, a method of one layer is another function; its class is untouched."""
    own = vars(layer).get(name)  # Keras gives a layer a `build` of its own
    object.__setattr__(layer, name, function)
    try:
        yield
    finally:
        object.__delattr__(layer, name)
        if own is not None:
            object.__setattr__(layer, name, own)


def call_with_training(layer, x, training):
    """Calls a layer, with `training` if it takes it."""
    if "training" in inspect.signature(layer.call).parameters:
        return layer(x, training=training)
    return layer(x)


class StochasticLayer:
    """Mixin of all layers that sample.

    A subclass implements three forward passes: `call_mean`, `call_noisy` (training)
    and `call_sampled` (inside the sampling scope).

    Args:
        *args: positional arguments of the Keras layer.
        sample_at_inference: whether to sample outside training too.
        seed: integer for the noise, or None for a random one. Layers of equal
            seed and different name have independent noise; so name a layer whose
            noise shall repeat in a second model of the same process, where Keras
            would number it anew.
        **kwargs: keyword arguments of the Keras layer.
    """

    # Whether `call_sampled` takes inputs that all samples share once, `(rows, ...)`,
    # where the scope says so.
    takes_shared_inputs = False
    # Whether the outputs are the inputs where nothing is sampled.
    is_identity = False

    def __init__(self, *args, sample_at_inference=False, seed=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.sample_at_inference = validation.boolean(
            "sample_at_inference", sample_at_inference
        )
        self.seed = None if seed is None else validation.integer("seed", seed)
        self.noise = noise.NoiseGenerator(seed, salt=self.name)

    def build(self, input_shape):
        # Overridden, because Keras closes a layer without a `build` of its own to new
        # state in the constructor.
        super().build(input_shape)

    def add_scalar(self, name, value):
        """A variable for what the user says of the data or the objective."""
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
            autocast=False,
        )

    def told_variables(self):
        """What the constructor says of the data and the objective, by name."""
        return {}

    def epoch_variables(self):
        """The state of one epoch of training, which no file keeps, by name."""
        return {}

    def inference_weights(self):
        """Weights of this layer itself at inference, a list: what reports count.

        Without biases and without what is known of weights, as their deviations are;
        0 where a weight is pruned. Layers inside say their own. Override it in a layer
        whose variables of more than one axis are not its weights.
        """
        return own_matrices(self)

    def to_keras(self, weights="mean", seed=None):
        """The plain Keras layer in place of this one."""
        raise ValueError(
            f"`{type(self).__name__}` has no plain Keras counterpart; save or export "
            f"the model as it is. Received: layer={self.name!r}"
        )

    def posterior_as_prior(self):
        """A layer like this one, its prior and its posterior the posterior of this one.

        Only where weights have Gaussian posteriors and any Gaussian can be the prior.
        """
        raise ValueError(
            f"The posterior of `{type(self).__name__}` cannot become the prior of its "
            "weights; that of `VariationalDense` and `VariationalConv*D` can. "
            f"Received: layer={self.name!r}"
        )

    @property
    def weights(self):
        # `set_weights` must not carry what was told from one model to another.
        others = {**self.told_variables(), **self.epoch_variables()}.values()
        return [w for w in super().weights if all(w is not v for v in others)]

    def call(self, inputs, training=None):
        inputs = as_floats(inputs, self.compute_dtype)
        scope = noise.current_scope()
        if scope is not None:
            scope.restart(self.noise)
            return self.call_sampled(inputs, scope)
        if training or self.sample_at_inference:
            return self.call_noisy(inputs)
        return self.call_mean(inputs)

    def get_config(self):
        return {
            **super().get_config(),
            "sample_at_inference": self.sample_at_inference,
            "seed": self.seed,
        }

    def saved_variables(self):
        """Variables by the name under which they are saved."""
        return self.told_variables()

    def save_own_variables(self, store):
        if not self.built:
            return
        for name, variable in self.saved_variables().items():
            store[name] = ops.convert_to_numpy(variable)
        store["seed_state"] = ops.convert_to_numpy(self.noise.state).astype("int64")

    def load_own_variables(self, store):
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

    def load_told(self, name, value):
        """Reads a saved value of `told_variables`; the constructor's holds."""


def as_floats(inputs, dtype):
    """Integers and booleans in a dtype of floats; Keras casts only between those."""
    if backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):
        return inputs
    return ops.cast(inputs, dtype)


def with_channels(inputs, count, axis=-1):
    """The inputs, refused if they have another number of channels.

    For arithmetic that would widen inputs of a single channel.
    """
    channels = inputs.shape[axis]
    if channels is None and backend.backend() == "tensorflow":
        from keras_bdl.interop import tensorflow

        return tensorflow.with_size(inputs, axis, count)
    if channels not in (None, count):
        raise ValueError(
            f"Expected inputs with {count} channels on axis {axis}, as the layer was "
            f"built. Received: inputs of shape {tuple(inputs.shape)}"
        )
    return inputs


def wide(variable):
    """A variable's value in float32, or in float64 if that is what it is."""
    value = ops.convert_to_tensor(variable)
    if backend.standardize_dtype(value.dtype) == "float64":
        return value
    return ops.cast(value, "float32")
