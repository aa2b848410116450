"""The contract of a Bayesian layer, kept in one place.

`BayesianLayer` is a mixin put before a public Keras layer. It owns the KL term,
the number of examples, the noise, saving, and the choice between the mean and a
sample. A subclass says what its posterior is: `kl()` and three forward passes,
`call_mean`, `call_noisy` (training) and `call_sampled` (inside the scope).
"""

import keras
from keras import backend, ops

from keras_bdl import priors, sampling, validation

PACKAGE = "keras_bdl"
REGISTRY = {}

_REFUSED = {
    "kernel_regularizer": "the prior is the regularizer: use `prior`",
    "bias_regularizer": "the prior is the regularizer: use `prior`",
    "kernel_constraint": "a posterior has no constraint: use `prior`",
    "bias_constraint": "a posterior has no constraint: use `prior`",
    "lora_rank": "convert the layer by `to_keras()` first",
    "quantization_config": "convert the layer by `to_keras()` first",
}


def register(cls):
    """Registers a Bayesian layer class for serialisation and for the tools."""
    REGISTRY[cls.__name__] = cls
    return keras.saving.register_keras_serializable(PACKAGE)(cls)


def flatten_layers(model):
    """The model and every layer below it, also inside custom layers, once each.

    `model.layers` stops at custom layers; this one private method does not.
    """
    seen = {id(layer): layer for layer in model._flatten_layers()}
    return list(seen.values())


def bayesian_layers(model):
    """Every Bayesian layer of a model (or the layer itself), in order."""
    return [
        layer for layer in flatten_layers(model) if isinstance(layer, BayesianLayer)
    ]


def is_graph(model):
    """Whether a model is the plain graph of its layers, without a `call` of its own."""
    if isinstance(model, keras.Sequential):
        return model.built and type(model).call is keras.Sequential.call
    inputs = keras.Input((1,))
    functional = type(keras.Model(inputs, inputs + 1.0))
    return isinstance(model, functional) and type(model).call is functional.call


def live_config(cls, layer):
    """`cls.get_config()` of a layer, with its functions as they are.

    A config holds a function by a name or bytecode that may not load.
    """
    config = cls.get_config(layer)
    for name in config:
        function = getattr(layer, name, None)
        is_function = name == "activation" or name.endswith("_initializer")
        if is_function and not isinstance(function, keras.layers.Layer):
            config[name] = function
    return config


def copy_activation(layer, copy):
    """Gives a copy of a layer the weights of an activation that is a layer."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and activation.variables:
        if not copy.activation.built:
            copy.activation.build(activation.get_build_config()["input_shape"])
        copy.activation.set_weights(activation.get_weights())


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


class BayesianLayer:
    """Mixin of all layers with a posterior over weights.

    Args:
        *args: positional arguments of the Keras layer.
        prior: a `keras_bdl.priors.Prior` or its name.
        num_examples: number N of training examples, so that the KL term added
            to the loss is `kl_weight * kl() / N`. May be given later by
            `keras_bdl.set_num_examples` or read off the data by a keras_bdl
            model.
        kl_weight: factor of the KL; a variable, `layer.kl_weight`.
        sample_at_inference: whether to sample outside training too.
        seed: integer for the noise, or None for a random one. Layers of equal
            seed and different name have independent noise; so name a layer whose
            noise shall repeat in a second model of the same process, where Keras
            would number it anew.
        **kwargs: keyword arguments of the Keras layer.
    """

    has_kl = True  # whether there is a KL term, for which N must be known

    def __init__(
        self,
        *args,
        prior="normal",
        num_examples=None,
        kl_weight=1.0,
        sample_at_inference=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        for name, fix in _REFUSED.items():
            if getattr(self, name, None) is not None:
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
        self.sample_at_inference = validation.boolean(
            "sample_at_inference", sample_at_inference
        )
        self.seed = None if seed is None else validation.integer("seed", seed)
        self.full_kl_weight = validation.number("kl_weight", kl_weight, least=0.0)
        self.kl_weight = self._scalar("kl_weight", self.full_kl_weight)
        # 0 stands for unknown; an inferred N is here and not in `num_examples`.
        self._num_examples = self._scalar("num_examples", self.num_examples or 0)
        self._num_examples_known = self.num_examples is not None or not self.has_kl
        self._kl_term = KLTerm(name="kl")
        self.noise = sampling.NoiseGenerator(seed, salt=self.name)

    def _scalar(self, name, value):
        return self.add_weight(
            name=name,
            shape=(),
            initializer=keras.initializers.Constant(value),
            dtype="float32",
            trainable=False,
        )

    @property
    def weights(self):
        # What the constructor says of the data and the objective is no weight:
        # `set_weights` must not carry it from one model to another.
        told = (self.kl_weight, self._num_examples)
        return [w for w in super().weights if all(w is not t for t in told)]

    def add_weight(self, *args, **kwargs):
        # Posterior parameters stay in their own dtype under mixed precision.
        kwargs["autocast"] = False
        return super().add_weight(*args, **kwargs)

    def build(self, input_shape):
        super().build(input_shape)
        self.build_posterior()
        self._prior_variables = self.prior.build(self.add_weight)
        for name, variable in self._prior_variables.items():
            setattr(self, name, variable)
        if not self._num_examples_known:
            # Called only when somebody reads `losses`: fit and evaluate.
            self._guarded_variable().regularizer = self._require_num_examples

    def build_posterior(self):
        """Makes the posterior's variables beside those of the Keras layer."""

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

    def posterior(self):
        """The weight posterior as a TensorFlow Probability joint distribution."""
        raise NotImplementedError

    def call(self, inputs, training=None):
        scope = sampling.current_scope()
        if scope is not None:
            scope.restart(self.noise)
            return self.call_sampled(inputs, scope)
        self._add_kl(training)
        if training or self.sample_at_inference:
            return self.call_noisy(inputs)
        return self.call_mean(inputs)

    def measured_kl(self):
        """`kl()` without using up training noise."""
        with sampling.frozen_noise():
            return self.kl()

    def _add_kl(self, training):
        if not (self.has_kl and self.trainable and self._num_examples_known):
            return
        factor = ops.convert_to_tensor(self.kl_weight) / ops.convert_to_tensor(
            self._num_examples
        )
        self._kl_term(factor, kl=self.kl if training else self.measured_kl)

    def get_config(self):
        return {
            **super().get_config(),
            "prior": keras.saving.serialize_keras_object(self.prior),
            "num_examples": self.num_examples,
            "kl_weight": self.full_kl_weight,
            "sample_at_inference": self.sample_at_inference,
            "seed": self.seed,
        }

    def saved_variables(self):
        """Variables by the name under which they are saved; the posterior's first."""
        variables = {
            "kl_weight": self.kl_weight,
            "num_examples": self._num_examples,
            **self._prior_variables,
        }
        return {name: v for name, v in variables.items() if v is not None}

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
            if name == "kl_weight":
                continue  # the constructor's holds; a checkpoint may be mid-warm-up
            if name == "num_examples":
                if self.num_examples is None and value > 0:
                    variable.assign(value)
                    self._num_examples_now_known()
                continue
            variable.assign(value)
        if "seed_state" in store.keys():
            state = store["seed_state"][()]
            self.noise.state.assign(state.astype(self.noise.state.dtype))

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


def wide(variable):
    """A variable's value in float32, or in float64 if that is what it is."""
    value = ops.convert_to_tensor(variable)
    if backend.standardize_dtype(value.dtype) == "float64":
        return value
    return ops.cast(value, "float32")
