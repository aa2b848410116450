"""The Keras model that `predict` runs to sample another model.

Its `call` runs the part of the model before the first sampled layer once. It runs the
rest once per block of samples, inside the private sampling scope. The blocks run in a
loop of the backend, so that memory does not grow with the number of samples. Inside a
block, tensors are sample-major: `(block * rows, ...)`.
"""

import contextlib
import math

import keras
from keras import ops

from keras_bdl.core import dtypes, finding, scopes, stochastic, validation
from keras_bdl.core.cache import kept_with
from keras_bdl.core.stochastic import check_no_recurrent_cells
from keras_bdl.graphs.split import split
from keras_bdl.ops import uncertainty
from keras_bdl.prediction.mc_dropout import DropoutSampling, dropout_layers, rates
from keras_bdl.prediction.program import SeededModel

CLASSIFICATION = ("logits", "probabilities", "binary_logits", "binary_probabilities")

# Samples per block if the model's graph is known. The number is fixed, so that the
# draws of one seed do not depend on the batch size.
_BLOCK = 8

# Samples of a posterior with any number of draws, if the user gives no number.
DEFAULT = 32


def make_sampler(model, num_samples, reduction, kind, mc_dropout=False, joint=False):
    """Returns the `Sampler` for a model and options.

    It is made once and kept with the model.
    """
    mc_dropout = validation.boolean("mc_dropout", mc_dropout)
    network = getattr(model, "sampled_network", model)
    if not isinstance(network, keras.Model):
        raise TypeError(
            f"Expected `model` to be a Keras model. Received: model={model!r}"
        )
    num_samples = sample_count(network, num_samples)
    dropped = tuple(map(rates, dropout_layers(network))) if mc_dropout else None
    cut = (dropped, joint)
    options = (num_samples, reduction, kind)

    def make():
        return Sampler(network, *options, kept_with(network, "cuts", cut, make_cut))

    def make_cut():
        return Cut(network, mc_dropout, joint)

    return kept_with(network, "samplers", (*options, *cut), make)


def cycle_of(model):
    """Returns the number of samples that has all members alike, or None without any.

    Raises:
        ValueError: if the members of layers are not those of the others.
    """
    layers = [x for x in stochastic.stochastic_layers(model) if x.cycle is not None]
    shared = {x.cycle for x in layers if x.posterior.splits_rows}
    if len(shared) > 1:
        raise ValueError(
            "Expected the same number of members in all layers, because member i of "
            "one is the member i of the others. "
            f"Received: layers with {', '.join(map(str, sorted(shared)))} members"
        )
    return math.lcm(*(layer.cycle for layer in layers)) if layers else None


def sample_count(model, num_samples):
    """Returns a valid number of samples.

    None stands for 32, or for all members; if these sample themselves, for as many
    samples of each as make at least 32.
    """
    cycle = cycle_of(model)
    if num_samples is None:
        layers = stochastic.stochastic_layers(model)
        if cycle is not None and all(x.num_draws is not None for x in layers):
            return cycle
        return filled_up(DEFAULT, cycle)
    num_samples = validation.integer("num_samples", num_samples, 1, 10**9)
    if cycle is not None and num_samples % cycle:
        raise ValueError(
            f"The posterior has {cycle} members, each of which counts alike: expected "
            f"`num_samples` to be None or a multiple of {cycle}. "
            f"Received: num_samples={num_samples}"
        )
    return num_samples


def filled_up(num_samples, cycle):
    """Returns the least number of samples from `num_samples` of whole cycles."""
    return num_samples if cycle is None else -(-num_samples // cycle) * cycle


class Cut:
    """A model cut before its first sampled layer, for any number of samples.

    Args:
        model: the model to sample.
        mc_dropout: whether plain Dropout layers, and dropout inside of recurrent
            ones, sample.
        joint: whether a sample is one weight draw for all rows. Otherwise only
            the marginal distributions of the rows are exact, which is faster.
    """

    def __init__(self, model, mc_dropout, joint):
        check_no_recurrent_cells(model)
        check_pure(model)
        self.places = stochastic.places(model)
        dropouts = DropoutSampling(model, len(self.places)) if mc_dropout else None
        check_sampled(model, dropouts)
        self._dropouts = dropouts
        if dropouts is None:
            self.parts = split(model, stochastic.stochastic_layers, moments=not joint)
            return
        self.places |= dropouts.places
        self.parts = split(
            model,
            lambda x: stochastic.stochastic_layers(x) or dropouts.affects(x),
            moments=not joint,
            replace=dropouts.replace,
        )

    def check_called(self):
        """Warns of Dropout that the model did not sample. Call it after a run."""
        if self._dropouts is not None:
            self._dropouts.check_called()


class Sampler(SeededModel):
    """Runs a model once per posterior sample and reduces the outputs.

    Args:
        model: the model to sample.
        num_samples: positive integer S, number of posterior samples.
        reduction: "mean", "samples" or "uncertainty".
        kind: kind of the model's outputs, or None if it is unknown, or a tuple of the
            kinds of its flat outputs.
        cut: the `Cut` of the model.

    Attributes:
        structure: the model's outputs with 0 in place of tensors, once it has run.
    """

    def __init__(self, model, num_samples, reduction, kind, cut):
        super().__init__(name="sampler")
        # Keras tracks the model, so that JAX passes its variables to the compiled
        # function. Other variables would keep their values of the first call.
        self.network = model
        self.num_samples = num_samples
        self.reduction = reduction
        self.kind = kind
        self.structure = None
        self.cut = cut
        self.block = min(_BLOCK, num_samples) if cut.parts.batched else 1

    def input_network(self):
        return self.network

    def run(self, x, seed, batch_size, steps, verbose, callbacks):
        result = super().run(x, seed, batch_size, steps, verbose, callbacks)
        if self.reduction == "samples":  # Keras's predict has rows first
            return keras.tree.map_structure(lambda y: y.swapaxes(0, 1), result)
        return result

    def answer(self, inputs, seed, number):
        return self.sample(inputs, seed)

    def sample(self, inputs, seed):
        """Returns the reduced outputs of all samples.

        `seed` is an int or an integer tensor.
        """
        parts = self.cut.parts
        boundary = parts.prefix(inputs)
        num_blocks = math.ceil(self.num_samples / self.block)

        def run_block(index):
            with contextlib.ExitStack() as stack:
                scope = stack.enter_context(
                    scopes.SamplingScope(
                        seed,
                        index,
                        self.block,
                        self.cut.places,
                        parts.moment_layers,
                        parts.shared_layers,
                    )
                )
                stack.enter_context(_no_changes(self.network))
                outputs = parts.suffix(boundary, scope)
            # Keras would make a class of its own of a dict that it tracks.
            structure = keras.tree.map_structure(lambda _: 0, outputs)
            object.__setattr__(self, "structure", structure)
            outputs = keras.tree.flatten(outputs)
            return list(map(self._link, outputs, self._kinds(len(outputs))))

        reduce = self._reduce_blocks
        if self.reduction == "samples":
            reduce = self._stack_blocks
        outputs = reduce(run_block, num_blocks)
        self.cut.check_called()
        if self.reduction != "uncertainty":
            return keras.tree.pack_sequence_as(self.structure, outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def _kinds(self, count):
        """Returns the kinds of `count` flat outputs."""
        if not isinstance(self.kind, tuple):
            return (self.kind,) * count
        if len(self.kind) != count:
            raise ValueError(
                f"Expected `outputs` to give the kind of each of {count} outputs. "
                f"Received: {len(self.kind)} kinds"
            )
        return self.kind

    def _link(self, outputs, kind):
        """Returns one block's outputs with the sample axis first: `(block, n, ...)`.

        Logits are converted to probabilities.
        """
        shape = ops.shape(outputs)
        outputs = ops.reshape(outputs, (self.block, -1, *shape[1:]))
        if kind in ("logits", "binary_logits"):
            outputs = dtypes.wide(outputs)
            if outputs.shape[-1] == 1 or kind == "binary_logits":
                return ops.sigmoid(outputs)
            return ops.softmax(outputs, axis=-1)
        return outputs

    def _stack_blocks(self, run_block, num_blocks):
        if num_blocks == 1:
            blocks = keras.tree.map_structure(
                lambda y: ops.expand_dims(y, 0), run_block(0)
            )
        else:
            blocks = ops.map(run_block, ops.arange(num_blocks, dtype="int32"))

        def rows_first(y):  # (blocks, block, n, ...) -> (n, samples, ...)
            shape = ops.shape(y)
            y = ops.reshape(y, (num_blocks * self.block, *shape[2:]))
            return ops.swapaxes(y[: self.num_samples], 0, 1)

        return keras.tree.map_structure(rows_first, blocks)

    def _reduce_blocks(self, run_block, num_blocks):
        """Sums over samples in a loop that holds one block at a time."""
        first = run_block(0)
        shift = keras.tree.map_structure(lambda y: dtypes.wide(y[0]), first)

        def total(index, outputs):
            sample = index * self.block + ops.arange(self.block, dtype="int32")
            valid = ops.cast(sample < self.num_samples, "float32")

            def over_samples(y):
                y = dtypes.wide(y)
                mask = ops.reshape(valid, (-1,) + (1,) * (len(y.shape) - 1))
                return ops.sum(y * ops.cast(mask, y.dtype), axis=0)

            kinds = self._kinds(len(outputs))
            statistics = list(map(self._statistics, outputs, shift, kinds))
            return keras.tree.map_structure(over_samples, statistics)

        sums = total(0, first)
        if num_blocks > 1:
            sums = ops.fori_loop(
                1,
                num_blocks,
                lambda index, sums: keras.tree.map_structure(
                    ops.add, sums, total(index, run_block(index))
                ),
                sums,
            )
        means = keras.tree.map_structure(lambda y: y / self.num_samples, sums)
        return list(map(self._finish, means, shift, self._kinds(len(shift))))

    def _statistics(self, outputs, shift, kind):
        """Returns the statistics of one output to average over samples.

        Means are shifted before they are summed, to keep the precision of the sums.
        """
        if self.reduction == "mean":
            return outputs
        if kind in CLASSIFICATION:
            return {
                "probabilities": outputs,
                "entropy": uncertainty.entropy(_classes(outputs, kind)),
            }
        mean, log_stddev = _split_moments(outputs, kind)
        centre, _ = _split_moments(shift, kind)
        offset = dtypes.wide(mean) - centre
        statistics = {"offset": offset, "square": ops.square(offset)}
        if log_stddev is not None:
            statistics["noise_variance"] = ops.exp(2.0 * dtypes.wide(log_stddev))
        return statistics

    def _finish(self, means, shift, kind):
        if self.reduction == "mean":
            return means
        if kind in CLASSIFICATION:
            probabilities, expected = means["probabilities"], means["entropy"]
            predictive = uncertainty.entropy(_classes(probabilities, kind))
            return {
                "probabilities": probabilities,
                "predictive_entropy": predictive,
                "expected_entropy": expected,
                "mutual_information": ops.maximum(predictive - expected, 0.0),
            }
        centre, _ = _split_moments(shift, kind)
        offset = means.pop("offset")
        variance = means.pop("square") - ops.square(offset)
        result = {
            "mean": centre + offset,
            "epistemic_stddev": ops.sqrt(ops.maximum(variance, 0.0)),
        }
        if "noise_variance" in means:
            result["aleatoric_stddev"] = ops.sqrt(means["noise_variance"])
        return result


def _classes(probabilities, kind):
    """Returns the probabilities of all classes.

    A binary problem has two classes, and the outputs give only one of them.
    """
    if probabilities.shape[-1] == 1:
        return ops.concatenate([1.0 - probabilities, probabilities], axis=-1)
    if kind in ("binary_logits", "binary_probabilities"):
        return ops.stack([1.0 - probabilities, probabilities], axis=-1)
    return probabilities


def _split_moments(outputs, kind):
    if kind != "mean_and_log_stddev":
        return outputs, None
    width = outputs.shape[-1]
    if width % 2:
        raise ValueError(
            "Expected an even number of outputs for 'mean_and_log_stddev', means "
            f"first. Received: width={width}"
        )
    return outputs[..., : width // 2], outputs[..., width // 2 :]


def check_sampled(model, dropouts):
    """Raises an error for a model whose samples would all be equal."""
    if stochastic.stochastic_layers(model) or (
        dropouts is not None and dropouts.places
    ):
        return
    raise ValueError(
        f"Nothing in model '{model.name}' is sampled, so all samples would be equal. "
        "Use keras_bdl layers, or `mc_dropout=True` for a model with Dropout. "
        f"Received: model={model.name!r}, mc_dropout={dropouts is not None}"
    )


def check_pure(model):
    """Raises an error for layers whose state would leak from sample to sample."""
    for layer in finding.flatten_layers(model):
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"Layer '{layer.name}' carries its state from call to call, so one "
                "sample would change the next; use `stateful=False`. "
                f"Received: layer={layer.name!r}, stateful=True"
            )


@contextlib.contextmanager
def _no_changes(model):
    """Raises an error on JAX if the loop over samples changes a variable.

    Otherwise JAX would raise an error about tracers, which would not help the user.
    """
    if keras.backend.backend() != "jax":
        yield
        return
    values = [(variable, variable.value) for variable in model.variables]
    with keras.StatelessScope(state_mapping=values) as scope:
        yield
    idle = finding.idle_seeds(model)
    for variable, value in values:
        if id(variable) not in idle and scope.get_current_value(variable) is not value:
            raise ValueError(
                "A layer changes a variable in every forward pass, by noise of its "
                "own or a running statistic. This cannot be sampled on JAX. Draw its "
                "noise only in training, or use a keras_bdl layer. "
                f"Received: variable={variable.path!r}"
            )
