"""Models that `encode`, `decode` and `log_prob` of a VAE run by Keras's `predict`."""

from keras import ops

from keras_bdl.core import dtypes, scopes, stochastic
from keras_bdl.core.cache import kept_with
from keras_bdl.core.noise import NoiseGenerator, fold_in
from keras_bdl.prediction.program import SeededModel

# The number of rows of decoder outputs that the loop over codes holds at a time. It is
# large enough for efficient matrix products, and small enough for the cache
# (benchmarks/README.md).
ROWS = 4096

# The number of codes held at a time if each has a draw of the decoder's weights.
_DRAWS = 8

# The log of zero, but finite, so that differences are finite.
_NEVER = -1e30


class Runner(SeededModel):
    """A model whose noise differs from batch to batch and repeats for a seed.

    Args:
        vae: the `VAE`. It is tracked, so that JAX passes its variables.
    """

    def __init__(self, vae):
        super().__init__(name=type(self).__name__.lower())
        self.vae = vae
        self.noise = NoiseGenerator(0, salt=self.name)

    def run(self, x, seed, batch_size, verbose):
        return super().run(x, seed, batch_size, None, verbose, None)


class Encoding(Runner):
    """Mean and standard deviation of q(z | x), at the mean weights of the encoder."""

    def answer(self, inputs, seed, number):
        return encoding(self.vae, inputs)


def encoding(vae, inputs):
    """Returns mean and standard deviation of q(z | x) of data, as tensors by name."""
    mean, log_stddev = vae.posterior(vae.preprocess(inputs))
    return {"mean": mean, "stddev": ops.exp(log_stddev)}


class Decoding(Runner):
    """Mean of p(x | z), or a draw of it."""

    def __init__(self, vae, draw):
        super().__init__(vae)
        self.draw = draw

    def answer(self, codes, seed, number):
        if not self.draw:
            return self.vae.explained(codes)
        outputs = dtypes.wide(self.vae.decoder(codes, training=False))
        with scopes.SamplingScope(seed, number, 1):
            return self.vae.observation.draw(outputs, self.noise)


class Evidence(Runner):
    """log p(x) and the evidence lower bound of each row.

    Args:
        vae: the `VAE`.
        num_samples: number of codes for each row.
        block: number of codes of each row that are held at a time.
    """

    def __init__(self, vae, num_samples, block):
        super().__init__(vae)
        self.num_samples = num_samples
        self.block = block

    def answer(self, inputs, seed, number):
        seed = fold_in(seed, number)
        return evidence(self.vae, inputs, self.num_samples, self.block, seed)


def codes_at_a_time(vae, num_samples, batch_size):
    """Returns the number of codes of each row to hold at a time.

    It is a power of two, so that many batch sizes share a program, and at most
    `num_samples`. It is small if each code has its own weights.
    """
    most = max(1, ROWS // batch_size)
    most = codes_held(vae, 1 << (most.bit_length() - 1))
    return min(num_samples, most)


def codes_held(vae, most):
    """Returns `most` codes to hold at a time, or few if each has its own weights."""
    return min(most, _DRAWS) if stochastic.stochastic_layers(vae.decoder) else most


def evidence(vae, inputs, num_samples, block, seed):
    """Estimates log p(x) by importance sampling, and the evidence lower bound.

    log p(x) >= E log 1/k sum_i w_i, w_i = p(x, z_i) / q(z_i | x), and the bound tends
    to log p(x) as k grows. The codes are drawn in blocks, of which one is held at a
    time. If the decoder has a posterior over weights w, each code has a draw of them.
    log p(x) is then log E p(x | w), the posterior predictive.

    Args:
        vae: the `VAE`.
        inputs: data `(n, ...)`.
        num_samples: k, an integer or a tensor.
        block: number of codes held at a time.
        seed: integer tensor, or words of `noise.fold_in`.

    Returns:
        Dictionary of "log_prob" and "elbo", `(n,)` each, in nats.
    """
    x = vae.preprocess(inputs)
    mean, log_stddev = vae.posterior(x)
    places = stochastic.places(vae)

    def add(index, sums):
        with scopes.SamplingScope(seed, index, block, places):
            codes = vae.latent.draw(mean, log_stddev, block)
            likelihood = vae.log_likelihood(x, codes)
        log_weights = likelihood + vae.log_ratio(codes, mean, log_stddev)
        sample = index * block + ops.arange(block, dtype="int32")
        valid = ops.expand_dims(sample < num_samples, -1)
        total = ops.sum(ops.where(valid, log_weights, 0.0), axis=0)
        log_sum = ops.logsumexp(ops.where(valid, log_weights, _NEVER), axis=0)
        return ops.logaddexp(sums[0], log_sum), sums[1] + total

    zeros = ops.zeros_like(mean[:, 0])
    num_blocks = (num_samples + block - 1) // block
    log_sum, total = ops.fori_loop(0, num_blocks, add, (zeros + _NEVER, zeros))
    count = ops.cast(num_samples, total.dtype)
    return {"log_prob": log_sum - ops.log(count), "elbo": total / count}


def get(vae, cls, *options):
    """Returns a runner of the VAE, which is made once."""
    return kept_with(vae, cls.__name__, options, lambda: cls(vae, *options))
