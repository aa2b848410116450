"""What every layer with noise has in common.

`StochasticLayer` is a mixin put before a public Keras layer. It owns the noise,
saving, and the choice between the mean and a sample. `layers.bayesian` adds
what posteriors over weights need, `layers.latent` what latent variables need.
"""

import keras
from keras import ops

from keras_bdl.core import finding, scopes, validation
from keras_bdl.core.dtypes import as_floats
from keras_bdl.core.noise import NoiseGenerator

PACKAGE = "keras_bdl"
REGISTRY = {}


def register(cls):
    """Registers a layer class for serialisation and for the tools."""
    REGISTRY[cls.__name__] = cls
    return keras.saving.register_keras_serializable(PACKAGE)(cls)


def stochastic_layers(model):
    """Every layer of a model (or the layer itself) that can be sampled, in order."""
    return [
        layer
        for layer in finding.flatten_layers(model)
        if isinstance(layer, StochasticLayer)
    ]


def places(model):
    """Place of the noise of every layer that samples, by the id of its generator.

    Equal models have equal places in every process, which names and keys have not.
    """
    return {id(x.noise): place for place, x in enumerate(stochastic_layers(model))}


def own_weights(layer):
    """Weights at inference of a layer itself: what reports count.

    A layer that has `inference_weights()` says it. Of any other they are its variables
    of more than one axis (biases and scales have one); layers inside have their own.
    """
    if hasattr(layer, "inference_weights"):
        return layer.inference_weights()
    return own_matrices(layer)


def own_matrices(layer):
    """Variables of more than one axis, but biases, that are of no layer inside."""
    inner = {
        id(w)
        for x in finding.flatten_layers(layer)
        if x is not layer
        for w in x.weights
    }
    own = [w for w in layer.weights if w.name != "bias" and id(w) not in inner]
    return [w for w in own if len(w.shape) > 1]


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
        self.noise = NoiseGenerator(seed, salt=self.name)

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

    def prepare_inputs(self, inputs):
        """Inputs as the forward passes take them."""
        return as_floats(inputs, self.compute_dtype)

    def call(self, inputs, training=None):
        inputs = self.prepare_inputs(inputs)
        scope = scopes.SamplingScope.current()
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


def check_no_recurrent_cells(model):
    """Refuses Bayesian layers in RNN cells: their KL cannot leave the time loop."""
    for layer in finding.flatten_layers(model):
        if isinstance(layer, keras.layers.RNN):
            inner = stochastic_layers(layer)
            if inner:
                raise ValueError(
                    f"Layer '{inner[0].name}' is in the cell of the recurrent layer "
                    f"'{layer.name}', where its KL term cannot reach the loss; use it "
                    "outside the cell (`TimeDistributed` works). "
                    f"Received: layer={inner[0].name!r}"
                )
