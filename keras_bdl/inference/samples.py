"""Samples of a chain of weights, kept during training."""

import collections
import math
from typing import Any

import keras
from keras import ops

from keras_bdl.conversion.whole import BayesianModel
from keras_bdl.core import finding, validation
from keras_bdl.inference.fitted import around, check_plain
from keras_bdl.maps.wrapped import check_no_constraint, weights_inside
from keras_bdl.posteriors import Particles


class PosteriorSamples(keras.callbacks.Callback):
    """Keeps weights of the chain that an optimizer such as `optimizers.SGLD` runs.

    Without `cycles` the callback records the weights at the end of every epoch from
    `start` on. With `cycles` the epochs of `fit` are cut into equal cycles. In each of
    them the learning rate falls from its full value to 0, along a cosine, and weights
    are recorded in the last `share`, when the chain stays near a mode. Before that the
    noise is left out, so that the chain finds one. The last `keep` records stay.

    With a plain optimizer it keeps snapshots of one run.

    Args:
        keep: positive integer, number of samples.
        start: integer >= 0, first epoch that is recorded, without cycles.
        every: positive integer, epochs from one record to the next.
        cycles: positive integer, number of cycles, or None.
        share: share of a cycle that is recorded, in (0, 1].

    Raises:
        ValueError: on a wrong argument; in `bayesian_model` before the first record.

    Example:

    >>> samples = keras_bdl.callbacks.PosteriorSamples(keep=12, cycles=4)
    >>> network.fit(x, y, epochs=80, callbacks=[samples])
    >>> model = samples.bayesian_model()

    Reference: Zhang, Li, Zhang, Chen and Wilson, "Cyclical stochastic gradient MCMC for
    Bayesian deep learning", 2020, eq. 7 and algorithm 1.
    """

    def __init__(
        self,
        keep: int,
        start: int = 0,
        every: int = 1,
        cycles: int | None = None,
        share: float = 0.25,
    ) -> None:
        super().__init__()
        self.keep = validation.integer("keep", keep, least=1)
        self.start = validation.integer("start", start, least=0)
        self.every = validation.integer("every", every, least=1)
        self.cycles = validation.optional_integer("cycles", cycles, least=1)
        self.share = validation.positive("share", share)
        if self.share > 1.0:
            raise ValueError(f"Expected `share` in (0, 1]. Received: share={share!r}")
        self._records: collections.deque = collections.deque(maxlen=self.keep)
        self._rate: float | None = None

    @property
    def num_records(self) -> int:
        """Number of samples that are kept."""
        return len(self._records)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        check_plain(self.model)
        check_no_constraint(self.model.trainable_variables)
        if self.cycles is None:
            return
        if self._rate is not None:  # an earlier `fit` was interrupted
            self.on_train_end()
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        rate = self.model.optimizer.learning_rate
        if not isinstance(rate, keras.Variable):
            raise ValueError(
                "`cycles` set the learning rate: expected an optimizer whose "
                f"`learning_rate` is a number. Received: learning_rate={rate!r}"
            )
        if self.params["epochs"] < self.cycles:
            raise ValueError(
                "Expected at least one epoch for each cycle. "
                f"Received: epochs={self.params['epochs']}, cycles={self.cycles}"
            )
        self._rate = float(ops.convert_to_numpy(rate))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def _phase(self, epoch, batch):
        """Returns the part of the cycle that is over, in [0, 1)."""
        steps = self.params.get("steps")
        # Of data of unknown length the rate falls from epoch to epoch.
        part = min(batch / steps, 1.0) if steps else 0.0
        return ((epoch + part) * self.cycles / self.params["epochs"]) % 1.0

    def _set_noise(self, share):
        optimizer = finding.inner_optimizer(self.model.optimizer)
        if hasattr(optimizer, "noise_share"):
            optimizer.noise_share.assign(share)

    def on_train_batch_begin(
        self, batch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if self._rate is None:
            return
        phase = self._phase(self._epoch, batch)
        optimizer = self.model.optimizer
        optimizer.learning_rate = 0.5 * self._rate * (math.cos(math.pi * phase) + 1.0)
        self._set_noise(float(phase >= 1.0 - self.share))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.cycles is None:
            due = epoch >= self.start and (epoch - self.start) % self.every == 0
        else:
            # Parts of a cycle of which an epoch has `cycles`, left to its end.
            length = self.params["epochs"]
            left = (-(epoch + 1) * self.cycles) % length
            recorded = max(self.share * length, self.cycles)
            due = left < recorded and left // self.cycles % self.every == 0
        if due:
            self.record()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._rate is not None:
            self.model.optimizer.learning_rate = self._rate
            self._set_noise(1.0)
            self._rate = None

    def record(self) -> None:
        """Records the present weights of the model, also in a loop of one's own."""
        found = weights_inside(self.model, "all", with_state=True)
        self._records.append({n: ops.convert_to_numpy(v) for n, v in found.items()})

    def bayesian_model(self) -> BayesianModel:
        """Returns a model whose posterior are the samples, `posteriors.Particles`.

        It is around a copy of the trained model, and compiled with its loss.
        """
        if not self._records:
            raise ValueError(
                "No weights were recorded: expected more epochs than `start`. "
                f"Received: start={self.start}, cycles={self.cycles}"
            )
        model = around(self.model, Particles(self.num_records))
        model.bayesian.posterior.assign_all(self._records)  # type: ignore[attr-defined]
        return model
