"""Batches with labelled rows in every one."""

import keras
import numpy as np


class MixedBatches(keras.utils.PyDataset):
    """All unlabelled rows once in an epoch, and labelled rows as often as needed.

    Args:
        x, labels: arrays; labels are -1 where there is none.
        batch_size: rows of a batch.
        labeled_share: share of labelled rows in a batch, unless more of all rows are.
        shuffle: whether the order is another one in every epoch.
    """

    def __init__(self, x, labels, batch_size, labeled_share, shuffle):
        super().__init__()
        self._x, self._labels = x, labels
        self._labeled = np.flatnonzero(labels >= 0)
        self._unlabeled = np.flatnonzero(labels < 0)
        share = max(labeled_share, len(self._labeled) / len(labels))
        self._num_labeled = max(1, min(batch_size, round(batch_size * share)))
        self._num_unlabeled = batch_size - self._num_labeled
        if len(self._unlabeled) and not self._num_unlabeled:
            self._num_unlabeled = 1
        if not len(self._unlabeled):
            self._num_labeled, self._num_unlabeled = batch_size, 0
        # Follows `keras.utils.set_random_seed`.
        self._rng = np.random.default_rng(np.random.randint(2**31))
        self._shuffle = shuffle
        self._order()

    @property
    def num_batches(self):
        if self._num_unlabeled:
            return -(-len(self._unlabeled) // self._num_unlabeled)
        return -(-len(self._labeled) // self._num_labeled)

    def _order(self):
        if self._shuffle:
            self._rng.shuffle(self._unlabeled)
        if not self._num_unlabeled:
            if self._shuffle:
                self._rng.shuffle(self._labeled)
            self._repeated = self._labeled
            return
        count = self.num_batches * self._num_labeled
        rounds = [
            self._rng.permutation(self._labeled) if self._shuffle else self._labeled
            for _ in range(-(-count // len(self._labeled)))
        ]
        self._repeated = np.concatenate(rounds)[:count]

    def __len__(self):
        return self.num_batches

    def __getitem__(self, index):
        rows = np.concatenate(
            [
                self._repeated[index * self._num_labeled :][: self._num_labeled],
                self._unlabeled[index * self._num_unlabeled :][: self._num_unlabeled],
            ]
        )
        return self._x[rows], self._labels[rows]

    def on_epoch_end(self):
        self._order()
