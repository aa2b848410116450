"""A residual block that decides for each row how many of its units to run.

Figurnov, Sobolev and Vetrov, "Probabilistic adaptive computation time", 2017; Graves,
"Adaptive computation time for recurrent neural networks", 2016.
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_bdl.core import latents, scopes, validation
from keras_bdl.core.dtypes import as_floats, wide
from keras_bdl.core.finding import flatten_layers
from keras_bdl.core.scopes import KLAddedElsewhere
from keras_bdl.core.stochastic import StochasticLayer, register
from keras_bdl.core.typing import Tensor
from keras_bdl.layers.bayesian import bayesian_layers
from keras_bdl.layers.latent import LatentLayer
from keras_bdl.layers.residual import (
    call_with_mask,
    channel_axis,
    check_layers,
    gated_sum,
    mean_pool,
    run_until_stopped,
    where_rows,
)
from keras_bdl.ops import halting

_ESTIMATORS = ("concrete", "expected", *latents.DISCRETE)
_OBJECTIVES = ("map", "elbo")

# Probability of running all units at the start of training.
_START = 0.9


@register
class EarlyExitResBlock(LatentLayer, keras.layers.Layer):
    """Runs residual units of one shape, of which each row uses the first z.

    x_l = x_{l-1} + F_l(x_{l-1}) for l = 1 ... z. After unit l < L a row stops with
    probability h_l = sigmoid(head_l(x_l)), so q(z = l | x) = h_l prod_{i<l} (1 - h_i),
    and h_L = 1. The prior is the truncated geometric p(z) ~ exp(-prior_rate z).

    `add_loss` adds a term of each row, averaged over the batch. With `objective="map"`
    it is prior_rate * E_q z, and q becomes certain. With "elbo" it is KL(q || p), and q
    stays a distribution. A higher `prior_rate`, the price of a unit in nats, gives
    fewer units. `callbacks.KLWarmup` warms the term up.

    The estimators of training are:

    - "concrete": a relaxed draw of z weights the units. It is biased, and less so at a
      lower temperature.
    - "expected": the states are averaged under q. It is biased unless all layers that
      follow are affine.
    - "score_function": states are drawn. It is unbiased without batch normalisation.
    - "enumerate": the exact expected loss, in L passes. Like "score_function" it needs
      the loss of each row and so a model of `keras_bdl.models`.

    At inference a row stops after the first unit with h_l > exit_threshold ("map"), or
    with a cumulative halting mass of at least exit_threshold ("elbo", where the default
    is the median of q). Rows that have stopped are not computed. TensorFlow gathers
    live rows, runs them and scatters them back. JAX and PyTorch skip a unit once no row
    is live. The loss of `evaluate` then has the term of the units that were run,
    prior_rate * z or -log p(z); models of `keras_bdl.models` evaluate the term of q.
    `keras_bdl.predict` samples z with one uniform number per sample and unit for all
    rows, so that a draw is one function.

    Gathering does not work with XLA, which the layer turns off, or with LiteRT: use
    `skip=False` there. Units with `sample_at_inference` or an activity regulariser are
    never skipped.

    Args:
        units: list of L Keras layers, the residual branches F_1 ... F_L. Each keeps the
            shape of its inputs, treats every row separately and contains no early
            exits.
        prior_rate: float >= 0, nats per unit.
        estimator: "concrete", "expected", "score_function" or "enumerate".
        objective: "map" or "elbo".
        temperature: positive float for "concrete".
        exit_threshold: float between 0 and 1.
        halting_heads: list of L - 1 layers from the state x_l to one logit `(n, 1)`.
            None averages over positions and applies a Dense layer, which at the start
            runs all units with probability 0.9.
        skip: whether inference skips rows that have stopped.
        kl_weight: factor of the term, kept in a variable.
        sample_at_inference, seed: as in `VariationalDense`.

    Input and output shape: equal, `(n, ...)`.

    Raises:
        ValueError, TypeError: on a wrong argument, or a unit that changes the shape.

    Example:

    >>> units = [keras.layers.Dense(64, activation="relu") for _ in range(4)]
    >>> model = keras.Sequential([
    ...     keras.Input((64,)),
    ...     keras_bdl.EarlyExitResBlock(units, prior_rate=0.01),
    ...     keras.layers.Dense(10),
    ... ])
    >>> keras_bdl.depth(model, x).shape  # (n, 1): units run per row and block

    Reference: Figurnov, Sobolev and Vetrov, "Probabilistic adaptive computation
    time", 2017, sections 2 and 3.
    """

    def __init__(
        self,
        units: Sequence[keras.layers.Layer],
        prior_rate: float = 0.01,
        *,
        estimator: str = "concrete",
        objective: str = "map",
        temperature: float = 2.0 / 3.0,
        exit_threshold: float = 0.5,
        halting_heads: Sequence[keras.layers.Layer] | None = None,
        skip: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.units = check_layers("units", units)
        self.num_states = len(self.units)
        self.prior_rate = validation.number("prior_rate", prior_rate, least=0.0)
        self.estimator = validation.choice("estimator", estimator, _ESTIMATORS)
        self.objective = validation.choice("objective", objective, _OBJECTIVES)
        self.temperature = validation.positive("temperature", temperature)
        self.exit_threshold = validation.share("exit_threshold", exit_threshold)
        self.skip = validation.boolean("skip", skip)
        self._has_own_heads = halting_heads is not None
        self.halting_heads = self._heads(halting_heads)
        self.supports_masking = True
        if keras.backend.backend() == "tensorflow" and self.skip:
            self.supports_jit = False

    def _heads(self, heads):
        if heads is None:
            share = 1.0 - _START ** (1.0 / max(self.num_states - 1, 1))
            bias = keras.initializers.Constant(math.log(share / (1.0 - share)))
            double = self.compute_dtype == "float64"
            options = {
                "bias_initializer": bias,
                "dtype": "float64" if double else "float32",
            }
            heads = [
                keras.layers.Dense(1, name=f"halt_{index + 1}", **options)
                for index in range(self.num_states - 1)
            ]
        elif len(check_layers("halting_heads", heads, least=0)) != self.num_states - 1:
            raise ValueError(
                f"Expected {self.num_states - 1} `halting_heads`, one for each unit "
                f"but the last. Received: {len(heads)} halting_heads"
            )
        return list(heads)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        inputs = keras.Input(batch_shape=input_shape, dtype=self.compute_dtype)
        for index, unit in enumerate(self.units):
            # A symbolic call builds any kind of layer and gives its output shape.
            shape = unit(inputs).shape
            if tuple(shape) != tuple(inputs.shape):
                raise ValueError(
                    "Expected units with outputs of the shape of their inputs, "
                    f"{tuple(inputs.shape)}. Received: unit {index + 1}, "
                    f"'{unit.name}', with outputs of shape {tuple(shape)}"
                )
        for head in self.halting_heads:
            pooled = inputs
            if not self._has_own_heads:
                channel = channel_axis(len(input_shape))
                pooled = keras.Input((input_shape[channel],), dtype=head.compute_dtype)
            shape = head(pooled).shape
            if tuple(shape[1:]) != (1,):
                raise ValueError(
                    "Expected halting heads with one logit `(n, 1)` as output. "
                    f"Received: '{head.name}' with outputs of shape {tuple(shape)}"
                )
        # The sum of E_q z over this epoch's training rows, and their number.
        self._depth_sums = self.add_weight(
            name="depth_sums",
            shape=(2,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        self.built = True

    def epoch_variables(self) -> dict[str, keras.Variable]:
        variables = super().epoch_variables()
        if self.built:
            variables["depth_sums"] = self._depth_sums
        return variables

    def compute_output_shape(
        self, input_shape: tuple[int | None, ...]
    ) -> tuple[int | None, ...]:
        return input_shape

    # The forward pass

    def call(
        self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None
    ) -> Tensor:
        inputs = as_floats(inputs, self.compute_dtype)
        latent, sampled = latents.LatentScope.current(), scopes.SamplingScope.current()
        if self.chooses(latent):
            return self._choose(inputs, mask, latent)
        if sampled is not None:
            sampled.restart(self.noise)
            noise = self.repeat_rows(self._logistic_noise(sampled.num_samples), inputs)
            return self._run(inputs, mask, noise, skip=self._skips_samples())[0]
        if training:
            return self._train(inputs, mask, latent)
        noise = None
        if self.sample_at_inference:
            noise = self._logistic_noise(ops.shape(inputs)[0])
        if latent is not None:
            return self._report(inputs, mask, noise, latent)
        return self._infer(inputs, mask, noise)

    def _train(self, inputs, mask, latent):
        """Weights the units by a relaxed or expected [z >= l]."""
        if self.estimator in latents.DISCRETE:
            self.refuse_training()
        increments, logits = self._states(inputs, mask)
        if self.estimator == "expected":
            survival = ops.exp(halting.log_survival(logits))
        else:
            survival = halting.relaxed_survival(logits, self.temperature, self.noise)
        self.add_term(self._term(logits))
        self._tell(logits, latent)
        return gated_sum(inputs, increments, survival)

    def _choose(self, inputs, mask, latent):
        """Runs the units up to a state that is drawn or enumerated."""
        increments, logits = self._states(inputs, mask)
        if not latent.forced:
            self.add_term(self._term(logits))
            self._tell(logits, latent)
        states = latent.choose(halting.log_probs(logits), self.noise)
        if latent.forced:
            latent.depths.append((self, states + 1))
            prior = halting.prior_log_probs(self.num_states, self.prior_rate)
            latent.log_priors.append(ops.take(ops.cast(prior, logits.dtype), states))
        indices = ops.arange(1, self.num_states, dtype=states.dtype)
        survival = ops.cast(ops.expand_dims(states, 1) >= indices, logits.dtype)
        return gated_sum(inputs, increments, survival)

    def _report(self, inputs, mask, noise, latent):
        """Does what `_infer` does, with the term of q, which needs all units."""
        increments, logits = self._states(inputs, mask)
        self.add_term(self._term(logits), training=False)
        stops = self._stops(logits, halting.log_survival(logits), noise)
        runs = ops.cumprod(ops.cast(ops.logical_not(stops), "int32"), axis=-1)
        depth = 1 + ops.sum(runs, axis=-1)
        latent.depths.append((self, ops.cast(depth, logits.dtype)))
        outputs = inputs + increments[0]
        for index, increment in enumerate(increments[1:]):
            outputs = where_rows(runs[:, index] > 0, outputs + increment, outputs)
        return outputs

    def _infer(self, inputs, mask, noise):
        """Runs the units until each row stops, and adds the term of their number."""
        skip = self._can_skip()
        if skip:
            for layer in bayesian_layers(self):
                layer.add_kl(training=False)
        with KLAddedElsewhere() if skip else contextlib.nullcontext():
            outputs, depth = self._run(inputs, mask, noise, skip)
        term = self.prior_rate * ops.cast(depth, "float32")
        if self.objective == "elbo":
            first = halting.prior_log_probs(self.num_states, self.prior_rate)[0]
            term = term - float(first + self.prior_rate)
        self.add_term(term, training=False)
        return outputs

    def _term(self, logits):
        """Returns prior_rate * E_q z or KL(q || p) of each row, `(n,)`."""
        if self.objective == "map":
            return self.prior_rate * halting.expected_depth(logits)
        return halting.kl_to_prior(logits, self.prior_rate)

    def _states(self, inputs, mask):
        """Returns every F_l(x_{l-1}), and the logits `(n, L - 1)` of stopping."""
        increments, logits = [], []
        x = inputs
        for index in range(self.num_states):
            increments.append(self.increment(index, x, mask))
            x = x + increments[-1]
            if index < self.num_states - 1:
                logits.append(self.logit(index, x, mask))
        if not logits:
            return increments, ops.zeros((ops.shape(inputs)[0], 0), dtype="float32")
        return increments, ops.concatenate(logits, axis=-1)

    def increment(self, index: int, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the tensor that unit `index` adds to `x`."""
        with scopes.UnitOfBlock(self, index):
            return ops.cast(call_with_mask(self.units[index], x, mask), x.dtype)

    def logit(self, index: int, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the float32 or float64 logit `(n, 1)` of stopping after a unit."""
        head = self.halting_heads[index]
        with scopes.UnitOfBlock(self, index):
            if self._has_own_heads:
                return wide(call_with_mask(head, x, mask))
            return wide(head(mean_pool(x, mask)))

    def _tell(self, logits, latent):
        """Records the expected number of units of training rows."""
        depth = ops.stop_gradient(halting.expected_depth(logits))
        weights = ops.ones_like(depth)
        if latent is not None:
            latent.depths.append((self, depth))
            weights = weights * ops.cast(latent.weights(), depth.dtype)
        sums = ops.stack([ops.sum(weights * depth), ops.sum(weights)])
        sums = ops.cast(sums, "float32")
        self._depth_sums.assign(ops.convert_to_tensor(self._depth_sums) + sums)

    def _run(self, inputs, mask, noise, skip):
        """Runs units until each row stops; returns outputs and units run `(n,)`."""
        rows = ops.shape(inputs)[0]
        state = {"x": inputs, "depth": ops.zeros((rows,), dtype="int32")}
        about = {}
        if mask is not None:
            about["mask"] = mask
        if noise is not None:
            about["noise"] = noise
        elif self.objective == "elbo":
            state["log_survival"] = ops.zeros((rows,), dtype="float32")
        state = run_until_stopped(self._step, self.num_states, state, about, skip)
        return state["x"], state["depth"]

    def _step(self, index, state, about):
        """Runs a unit on rows and returns their new state, and which of them stop."""
        mask = about.get("mask")
        x = state["x"] + self.increment(index, state["x"], mask)
        state = {**state, "x": x, "depth": state["depth"] + 1}
        if index == self.num_states - 1:
            return state, ops.ones_like(state["depth"], dtype="bool")
        logit = self.logit(index, x, mask)[:, 0]
        if "log_survival" in state:
            state["log_survival"] -= ops.cast(ops.softplus(logit), "float32")
        noise = about["noise"][:, index] if "noise" in about else None
        return state, self._stops(logit, state.get("log_survival"), noise)

    def _stops(self, logits, log_survival, noise):
        """Returns whether rows stop, by the rule of the objective or by a sample."""
        if noise is not None:
            return logits + ops.cast(noise, logits.dtype) > 0.0
        if self.objective == "map":
            threshold = math.log(self.exit_threshold / (1.0 - self.exit_threshold))
            return logits > threshold
        return log_survival <= math.log1p(-self.exit_threshold)

    def _logistic_noise(self, rows):
        shape = (rows, self.num_states - 1)
        return halting.logistic_noise(shape, "float32", self.noise)

    def _can_skip(self):
        """Whether the units make no losses or noise, which could not leave a branch."""
        return self.skip and not any(
            getattr(layer, "activity_regularizer", None) is not None
            or getattr(layer, "sample_at_inference", False)
            for part in self._parts()
            for layer in flatten_layers(part)
        )

    def _skips_samples(self):
        # The rows of a sample share weights or masks, so layers need all rows.
        return self._can_skip() and not any(
            isinstance(layer, (StochasticLayer, keras.layers.Dropout))
            for part in self._parts()
            for layer in flatten_layers(part)
        )

    def _parts(self):
        return [*self.units, *self.halting_heads]

    def mean_depth(self) -> float:
        """Returns the mean E_q z of training rows since `reset_depth`, NaN if none."""
        total, count = ops.convert_to_numpy(self._depth_sums)
        return float(total / count) if count else math.nan

    def reset_depth(self) -> None:
        """Starts the mean of `mean_depth` again."""
        self._depth_sums.assign(ops.zeros((2,)))

    def get_config(self) -> dict[str, Any]:
        def serialized(layers):
            return [keras.saving.serialize_keras_object(layer) for layer in layers]

        own = serialized(self.halting_heads) if self._has_own_heads else None
        return {
            **super().get_config(),
            "units": serialized(self.units),
            "prior_rate": self.prior_rate,
            "estimator": self.estimator,
            "objective": self.objective,
            "temperature": self.temperature,
            "exit_threshold": self.exit_threshold,
            "halting_heads": own,
            "skip": self.skip,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        for name in ("units", "halting_heads"):
            if config[name] is not None:
                config[name] = [
                    keras.saving.deserialize_keras_object(layer)
                    for layer in config[name]
                ]
        return cls(**config)
