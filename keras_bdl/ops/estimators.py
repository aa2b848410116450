"""Noisy linear maps, masks, and sums over discrete latents.

Every estimator of a linear map takes the map as a function `linear(inputs, kernel)`,
so that one formula serves both matrix products and convolutions. Means have the
compute dtype. Log standard deviations have float32 (or float64), in which variances and
square roots are computed, because s^2 underflows and x^2 overflows in float16.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from keras import backend, ops, random

from keras_bdl.core.typing import Tensor

__all__ = [
    "check_generator",
    "concrete_keep_mask",
    "dropout_per_sample",
    "flipout",
    "gaussian_noise",
    "local_reparameterization",
    "lookup_noise",
    "moments",
    "multiply_by_sample",
    "partial_enumeration",
    "reparameterization",
    "row_signs",
    "score_function",
]

# Keeps the gradient of the square root finite where the variance is zero.
TINY_VARIANCE = 1e-16

_Linear: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_Axes: TypeAlias = int | tuple[int, ...]


def moments(
    linear: _Linear,
    inputs: Tensor,
    mean: Tensor,
    log_stddev: Tensor,
    bias_mean: Tensor = None,
    bias_log_stddev: Tensor = None,
    *,
    square: Callable[[Tensor], Tensor] = ops.square,
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of `linear(inputs, w) + b` over Gaussian w, b.

    For independent w ~ N(m, s^2) the map is Gaussian with mean `x m + b` and
    variance `x^2 s^2 + s_b^2` (Kingma, Salimans and Welling, "Variational
    dropout and the local reparameterization trick", 2015, eq. 6).

    Args:
        linear: function `(inputs, kernel) -> outputs`, linear in both.
        inputs: tensor, float.
        mean: kernel means, in the dtype of `inputs`.
        log_stddev: log standard deviations of the kernel, float32 or float64.
        bias_mean: optional bias means, broadcastable to the outputs.
        bias_log_stddev: optional log standard deviations of the bias.
        square: function from the inputs to the squared inputs, by which `linear`
            multiplies variances. Inputs such as indices need another one.

    Returns:
        `(mean, stddev)` of the outputs: the mean in the dtype of `inputs`, the
        standard deviation in the dtype of `log_stddev`.
    """
    outputs = linear(inputs, mean)
    if bias_mean is not None:
        outputs = outputs + bias_mean
    wide = inputs
    if backend.is_float_dtype(backend.standardize_dtype(inputs.dtype)):  # keeps indices
        wide = ops.cast(inputs, log_stddev.dtype)
    variance = linear(square(wide), ops.exp(2.0 * log_stddev))
    if bias_log_stddev is not None:
        variance = variance + ops.exp(2.0 * bias_log_stddev)
    return outputs, ops.sqrt(variance + TINY_VARIANCE)


def local_reparameterization(
    linear: _Linear,
    inputs: Tensor,
    mean: Tensor,
    log_stddev: Tensor,
    bias_mean: Tensor = None,
    bias_log_stddev: Tensor = None,
    *,
    square: Callable[[Tensor], Tensor] = ops.square,
    seed: random.SeedGenerator,
) -> Tensor:
    """Samples outputs instead of weights, with separate noise per row and unit.

    Args:
        linear, inputs, mean, log_stddev, bias_mean, bias_log_stddev, square: as in
            `moments`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        One draw of the outputs, in the dtype of `inputs`. It is exact for each
        position alone, and not for functions of several positions.
    """
    check_generator(seed)
    centre, stddev = moments(
        linear, inputs, mean, log_stddev, bias_mean, bias_log_stddev, square=square
    )
    noise = random.normal(ops.shape(centre), dtype=stddev.dtype, seed=seed)
    return centre + ops.cast(stddev * noise, centre.dtype)


def flipout(
    linear: _Linear,
    inputs: Tensor,
    mean: Tensor,
    log_stddev: Tensor,
    bias_mean: Tensor = None,
    bias_log_stddev: Tensor = None,
    *,
    channel_axis: _Axes = -1,
    output_axis: _Axes | None = None,
    flip_inputs: bool = True,
    seed: random.SeedGenerator,
) -> Tensor:
    """Draws one weight perturbation per batch, and decorrelates rows by signs.

    `y = x m + b + ((x o r) dW + db) o c` with dW = s eps and with signs r, c of
    +-1 drawn per row and channel (Wen, Vicol, Ba, Tran and Grosse, "Flipout:
    efficient pseudo-independent weight perturbations on mini-batches", 2018,
    eq. 4). All positions of a row share its signs, so a row sees one weight.

    Args:
        linear, inputs, mean, log_stddev, bias_mean, bias_log_stddev: as in
            `moments`.
        channel_axis: axis of the channels in inputs and outputs, or several such axes.
            Each index on these axes has weights of its own.
        output_axis: axis of the channels in the outputs, if it differs.
        flip_inputs: whether the inputs get signs. Signs of outputs alone decorrelate
            rows too; inputs that are indices allow nothing else.
        seed: `keras.random.SeedGenerator`.

    Returns:
        One draw of the outputs, in the dtype of `inputs`.
    """
    check_generator(seed)
    outputs = linear(inputs, mean)
    if bias_mean is not None:
        outputs = outputs + bias_mean
    delta = gaussian_noise(log_stddev, mean.dtype, seed)
    if flip_inputs:
        inputs = inputs * row_signs(inputs, channel_axis, seed)
    noise = linear(inputs, delta)
    if bias_log_stddev is not None:
        noise = noise + gaussian_noise(bias_log_stddev, mean.dtype, seed)
    output_axis = channel_axis if output_axis is None else output_axis
    return outputs + noise * row_signs(outputs, output_axis, seed)


def reparameterization(
    linear: _Linear,
    inputs: Tensor,
    mean: Tensor,
    log_stddev: Tensor,
    bias_mean: Tensor = None,
    bias_log_stddev: Tensor = None,
    *,
    seed: random.SeedGenerator,
) -> Tensor:
    """Draws weights `w = m + s eps` once for the whole call (Blundell et al., 2015).

    Args:
        linear, inputs, mean, log_stddev, bias_mean, bias_log_stddev: as in
            `moments`.
        seed: `keras.random.SeedGenerator`.

    Returns:
        One draw of the outputs, in the dtype of `inputs`.
    """
    check_generator(seed)
    outputs = linear(inputs, mean + gaussian_noise(log_stddev, mean.dtype, seed))
    if bias_mean is not None:
        outputs = outputs + bias_mean
    if bias_log_stddev is not None:
        outputs = outputs + gaussian_noise(bias_log_stddev, mean.dtype, seed)
    return outputs


def gaussian_noise(
    log_stddev: Tensor,
    dtype: str,
    seed: random.SeedGenerator,
    num_samples: int | None = None,
) -> Tensor:
    """Draws `exp(log_stddev) * eps`, with a first axis of `num_samples` if given."""
    shape = tuple(log_stddev.shape)
    if num_samples is not None:
        shape = (num_samples, *shape)
    noise = random.normal(shape, dtype=log_stddev.dtype, seed=seed)
    return ops.cast(ops.exp(log_stddev) * noise, dtype)


def lookup_noise(
    indices: Tensor, size: int, dtype: str, seed: random.SeedGenerator
) -> Tensor:
    """Draws a standard normal vector per index, which equal indices of a row share.

    These are the looked-up rows of normal tables, with one table per row of the batch.

    Args:
        indices: integers `(batch, ...)`.
        size: integer, size of the vectors.
        dtype: of the vectors.
        seed: `keras.random.SeedGenerator`.

    Returns:
        Tensor `(batch, ..., size)`.
    """
    check_generator(seed)
    shape = ops.shape(indices)
    noise = random.normal((*shape, size), dtype=dtype, seed=seed)
    if len(shape) == 1:
        return noise
    flat = ops.reshape(indices, (shape[0], math.prod(shape[1:])))
    # Numbers the distinct indices of each row: the k-th one has the k-th vector.
    order = ops.argsort(flat, axis=-1)
    ascending = ops.take_along_axis(flat, order, axis=-1)
    is_new = ops.cast(ascending[:, 1:] != ascending[:, :-1], "int32")
    numbers = ops.pad(ops.cumsum(is_new, axis=-1), ((0, 0), (1, 0)))
    numbers = ops.take_along_axis(numbers, ops.argsort(order, axis=-1), axis=-1)
    vectors = ops.reshape(noise, (shape[0], math.prod(shape[1:]), size))
    vectors = ops.take_along_axis(vectors, ops.expand_dims(numbers, -1), axis=1)
    return ops.reshape(vectors, (*shape, size))


def row_signs(
    tensor: Tensor, channel_axis: _Axes, seed: random.SeedGenerator
) -> Tensor:
    """Draws signs +-1 per row and channel of `tensor`; positions have size 1."""
    shape = list(ops.shape(tensor))
    given = channel_axis if isinstance(channel_axis, tuple) else (channel_axis,)
    axes = {axis % len(shape) for axis in given}
    for axis in range(1, len(shape)):
        if axis not in axes:
            shape[axis] = 1
    uniform = random.uniform(shape, dtype="float32", seed=seed)
    return ops.cast(ops.where(uniform < 0.5, -1.0, 1.0), tensor.dtype)


def concrete_keep_mask(
    logit: Tensor,
    shape: Sequence[int],
    temperature: float,
    seed: random.SeedGenerator,
) -> Tensor:
    """Draws relaxed dropout factors (1 - z) / (1 - p), differentiable in p.

    z = sigmoid((logit + log u - log(1 - u)) / t) with p = sigmoid(logit) and u
    uniform on (0, 1): Gal, Hron and Kendall, "Concrete dropout", 2017, eq. 5. As t
    falls z becomes Bernoulli(p); at every t, P(z > 1/2) = p. The relaxation is
    biased: at p = 0.1 the factor's mean is .998 for t = 0.1 and .950 for t = 2/3.

    Args:
        logit: logit of the dropout rate p, float32 or float64, broadcastable.
        shape: shape of the mask.
        temperature: positive float t.
        seed: `keras.random.SeedGenerator`.
    """
    check_generator(seed)
    u = random.uniform(shape, 1e-7, 1.0 - 1e-7, dtype=logit.dtype, seed=seed)
    kept = ops.sigmoid(-(logit + ops.log(u) - ops.log1p(-u)) / temperature)
    return kept / ops.sigmoid(-logit)


def score_function(
    values: Tensor, log_probs: Tensor, baseline: Tensor = "leave_one_out"
) -> Tensor:
    """Returns a loss with the gradient of an expectation over discrete samples.

    For K samples z_k ~ q with f_k = `values[k]`, its value is the mean of f_k, and its
    gradient is 1/K sum_k [grad f_k + (f_k - b_k) grad log q(z_k)]. This is unbiased for
    every baseline b_k that does not depend on z_k. With the mean of the other samples
    as b_k the second part is 1/(K - 1) sum_k (f_k - mean f) grad log q(z_k): Kool, van
    Hoof and Welling, "Buy 4 REINFORCE samples, get a baseline for free!", 2019, eq. 8.

    Args:
        values: `(K, ...)`, the quantity whose expectation is to be minimised.
        log_probs: `(K, ...)`, log q of the samples, differentiable in q's parameters.
        baseline: "leave_one_out" (K at least 2), or a constant: a number or a tensor
            that broadcasts to `values` and does not depend on the samples.

    Returns:
        Tensor `(...)`.

    Example:

    >>> loss = keras.ops.mean(score_function(losses, log_probs))
    """
    num_samples = values.shape[0]
    if isinstance(baseline, str):
        if baseline != "leave_one_out":
            raise ValueError(
                "Expected `baseline` to be 'leave_one_out' or a constant. "
                f"Received: baseline={baseline!r}"
            )
        if num_samples is None or num_samples < 2:
            raise ValueError(
                "The leave-one-out baseline needs at least 2 samples on the first "
                f"axis. Received: values.shape={tuple(values.shape)}"
            )
        others = ops.sum(values, axis=0, keepdims=True) - values
        baseline = others / (num_samples - 1)
    signal = ops.stop_gradient(values - baseline)
    score = log_probs - ops.stop_gradient(log_probs)  # 0, with a gradient
    return ops.mean(values + signal * score, axis=0)


def partial_enumeration(
    log_q: Tensor, num_summed: int, seed: random.SeedGenerator
) -> tuple[Tensor, Tensor]:
    """Chooses categories and weights to estimate a sum over all categories.

    sum_y q(y) f(y) is estimated by `sum(weights * f(categories))`: the most probable
    categories are summed, and one drawn from the others has the weight of all of them.
    Values and gradients, including gradients through the weights, are unbiased. A
    baseline that does not depend on the draw, such as f of the first category, reduces
    the noise of the latter. Liu, Regier, Tripuraneni, Jordan and McAuliffe,
    "Rao-Blackwellized stochastic gradients for discrete distributions", 2019, eq. 5.

    Args:
        log_q: finite log probabilities, `(n, categories)`.
        num_summed: number of categories that are summed, at least 1 and less than all.
        seed: `keras.random.SeedGenerator`.

    Returns:
        `(categories, weights)`, both `(n, num_summed + 1)`. Categories are int32;
        weights have the dtype of `log_q` and are differentiable.

    Example:

    >>> categories, weights = partial_enumeration(log_q, 1, seed)
    >>> losses = loss_of(categories)  # (n, 2)
    >>> first = keras.ops.stop_gradient(losses[:, :1])
    >>> loss = keras.ops.sum(weights * (losses - first) + first, axis=-1)
    """
    check_generator(seed)
    if not 1 <= num_summed < log_q.shape[-1]:
        raise ValueError(
            f"Expected `num_summed` from 1 to {log_q.shape[-1] - 1}, one less than the "
            f"number of categories. Received: num_summed={num_summed!r}"
        )
    fixed = ops.stop_gradient(log_q)
    _, summed = ops.top_k(fixed, num_summed)
    is_summed = ops.sum(ops.one_hot(summed, log_q.shape[-1]), axis=1) > 0.0
    rest = ops.where(is_summed, -1e30, fixed)
    drawn = random.categorical(rest, 1, dtype="int32", seed=seed)
    log_rest = ops.logsumexp(rest, axis=-1, keepdims=True)
    log_drawn = ops.take_along_axis(log_q, drawn, axis=-1)
    # The value is q(rest), the gradient that of log q of the drawn category.
    weight = ops.exp(log_drawn + (log_rest - ops.stop_gradient(log_drawn)))
    summed = ops.cast(summed, "int32")
    weights = ops.exp(ops.take_along_axis(log_q, summed, axis=-1))
    return (
        ops.concatenate([summed, drawn], axis=-1),
        ops.concatenate([weights, weight], axis=-1),
    )


def multiply_by_sample(inputs: Tensor, factors: Tensor) -> Tensor:
    """Multiplies the rows of sample s by `factors[s]`.

    Args:
        inputs: `(num_samples * rows, ...)`.
        factors: `(num_samples, ...)`; each must broadcast to a row.
    """
    shape = ops.shape(inputs)
    rows = ops.reshape(inputs, (factors.shape[0], -1, *shape[1:]))
    factors = ops.cast(ops.expand_dims(factors, 1), inputs.dtype)
    return ops.reshape(rows * factors, (-1, *shape[1:]))


def dropout_per_sample(
    inputs: Tensor,
    rate: float,
    sizes: Sequence[int | None],
    num_samples: int,
    seed: random.SeedGenerator,
) -> Tensor:
    """Applies inverted dropout with one mask per sample, shared by its rows.

    Args:
        inputs: `(num_samples * rows, ...)`.
        rate: float, dropout rate.
        sizes: size of the mask on each axis after the first; None takes the size of
            the inputs.
        num_samples: number of masks.
        seed: `keras.random.SeedGenerator`.
    """
    check_generator(seed)
    shape = [
        given if size is None else size
        for given, size in zip(ops.shape(inputs)[1:], sizes)
    ]
    ones = ops.ones((num_samples, *shape), dtype=inputs.dtype)
    return multiply_by_sample(inputs, random.dropout(ones, rate, seed=seed))


def check_generator(seed: random.SeedGenerator) -> None:
    """Raises an error on an integer seed, with which all draws would be equal.

    Raises:
        TypeError: if the seed is not a `keras.random.SeedGenerator`.
    """
    if not isinstance(seed, random.SeedGenerator):
        raise TypeError(
            "Expected `seed` to be a `keras.random.SeedGenerator`. "
            f"Received: seed={seed!r}"
        )
