"""Batches that all have labelled rows."""

import keras
import numpy as np


class MixedBatches(keras.utils.PyDataset):
    """Takes unlabelled rows once in an epoch, and labelled rows as often as needed.

    A batch is x, labels and weights. The weights make labelled rows count at their
    share of all rows, however many of them the batch has.

    Args:
        x, labels: arrays; an unknown label is -1.
        batch_size: number of rows of a batch.
        labeled_share: share of labelled rows in a batch, unless that of all rows is
            larger.
        shuffle: whether every epoch has another order.
        epoch_seed: function that returns integers which set the order of an epoch. It
            is called when an epoch begins. The integers come from the model, so that
            another process that resumes training continues in the same order.
    """

    def __init__(self, x, labels, batch_size, labeled_share, shuffle, epoch_seed):
        super().__init__()
        self._x, self._labels = x, labels
        self._labeled = np.flatnonzero(labels >= 0)
        self._unlabeled = np.flatnonzero(labels < 0)
        self._fraction = len(self._labeled) / len(labels)
        share = max(labeled_share, self._fraction)
        self._num_labeled = max(1, min(batch_size, round(batch_size * share)))
        self._num_unlabeled = batch_size - self._num_labeled
        if len(self._unlabeled) and not self._num_unlabeled:
            self._num_unlabeled = 1
        if not len(self._unlabeled):
            self._num_labeled, self._num_unlabeled = batch_size, 0
        self._shuffle = shuffle
        self._epoch_seed = epoch_seed
        self._order(
            np.random.default_rng(0)
        )  # Keras reads batches before an epoch begins

    @property
    def num_batches(self):
        """Number of batches of an epoch."""
        if self._num_unlabeled:
            return -(-len(self._unlabeled) // self._num_unlabeled)
        return -(-len(self._labeled) // self._num_labeled)

    def _order(self, rng):
        def ordered(rows):
            return rng.permutation(rows) if self._shuffle else rows

        self._once = ordered(self._unlabeled)
        if not self._num_unlabeled:
            self._repeated = ordered(self._labeled)
            return
        count = self.num_batches * self._num_labeled
        rounds = -(-count // len(self._labeled))
        repeated = [ordered(self._labeled) for _ in range(rounds)]
        self._repeated = np.concatenate(repeated)[:count]

    def __len__(self):
        return self.num_batches

    def __getitem__(self, index):
        rows = np.concatenate(
            [
                self._repeated[index * self._num_labeled :][: self._num_labeled],
                self._once[index * self._num_unlabeled :][: self._num_unlabeled],
            ]
        )
        labels = self._labels[rows]
        is_labeled = labels >= 0
        share = is_labeled.mean()
        of_others = (1.0 - self._fraction) / max(1.0 - share, 1e-6)
        weights = np.where(is_labeled, self._fraction / share, of_others)
        return self._x[rows], labels, weights.astype("float32")

    def on_epoch_begin(self):
        self._order(np.random.default_rng(self._epoch_seed()))
