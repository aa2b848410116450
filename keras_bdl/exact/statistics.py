"""Sums over rows, which are all that Gaussian linear regression needs of its data."""

import dataclasses

import numpy as np

_BLOCK_VALUES = 2**19  # in a block of rows, 4 MiB of float64
_LEAST_BLOCK_ROWS = 256


@dataclasses.dataclass
class RegressionStatistics:
    """Means of columns, and sums over rows of products of what the means leave.

    A row of weight w counts as w rows. Without centring the means stay 0. Memory is
    that of `xx`, whatever the number of rows. Merging is exact, so that batches give
    the same as all rows at once.

    Attributes:
        centred: whether means are subtracted.
        count: N, the number of rows, or the sum of their weights.
        x_mean, y_mean: `(d,)` and `(t,)`.
        xx, xy: `(d, d)` and `(d, t)`.
        yy: `(t,)`, the product of each target with itself.

    Reference: Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
    1983, eq. 2.1 (merging of centred sums).
    """

    centred: bool
    count: float
    x_mean: np.ndarray
    y_mean: np.ndarray
    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray

    @classmethod
    def empty(cls, num_features, num_targets, centred):
        """Returns the statistics of no rows."""
        x, y = np.zeros(num_features), np.zeros(num_targets)
        return cls(centred, 0, x, y, np.outer(x, x), np.outer(x, y), y)

    @classmethod
    def of(cls, x, y, centred, weights=None):
        """Sums over all rows, a block at a time.

        Args:
            x: `(n, d)` of any real dtype.
            y: `(n, t)`.
            centred: whether to subtract means.
            weights: float64 `(n,)`, 0 or more, or None for 1 each.

        Raises:
            ValueError: on NaN, infinity, or numbers whose squares overflow.
        """
        num_features, num_targets = x.shape[1], y.shape[1]
        total = cls.empty(num_features, num_targets, centred)
        rows = _BLOCK_VALUES // max(num_features, num_targets)
        rows = max(_LEAST_BLOCK_ROWS, rows)
        with np.errstate(invalid="ignore", over="ignore"):  # `check_finite` refuses it
            for start in range(0, len(x), rows):
                block = slice(start, start + rows)
                part = None if weights is None else weights[block]
                total = total.merge(cls._of_block(x[block], y[block], centred, part))
        total.check_finite()
        return total

    @classmethod
    def _of_block(cls, x, y, centred, weights):
        x, y = x.astype("float64"), y.astype("float64")  # copies to change in place
        x_mean, y_mean = np.zeros(x.shape[1]), np.zeros(y.shape[1])
        count = len(x) if weights is None else float(weights.sum())
        if centred and count:
            x_mean = np.average(x, axis=0, weights=weights)
            y_mean = np.average(y, axis=0, weights=weights)
            x -= x_mean
            y -= y_mean
        if weights is not None:
            root = np.sqrt(weights)[:, None]
            x *= root
            y *= root
        yy = np.array([column @ column for column in y.T])
        return cls(centred, count, x_mean, y_mean, x.T @ x, x.T @ y, yy)

    def merge(self, other):
        """Returns the statistics of the rows of both."""
        count = self.count + other.count
        share = other.count / count if count else 0.0
        weight = self.count * share
        x_step, y_step = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        return RegressionStatistics(
            self.centred,
            count,
            self.x_mean + share * x_step,
            self.y_mean + share * y_step,
            self.xx + other.xx + weight * np.outer(x_step, x_step),
            self.xy + other.xy + weight * np.outer(x_step, y_step),
            self.yy + other.yy + weight * y_step**2,
        )

    def of_target(self, index):
        """Returns those of one target: numbers `y_mean` and `yy`, and `xy` `(d,)`."""
        return dataclasses.replace(
            self,
            y_mean=float(self.y_mean[index]),
            xy=self.xy[:, index],
            yy=float(self.yy[index]),
        )

    def check_finite(self):
        """Refuses sums that are NaN or infinite.

        Raises:
            ValueError: if there are such sums.
        """
        columns = np.flatnonzero(~np.isfinite(np.diag(self.xx)))
        fix = "drop those rows, fill them in, or rescale the column"
        if len(columns):
            raise ValueError(
                "Expected `X` without NaN, infinity or numbers too large to square; "
                f"{fix}. Received: such values in X[:, {columns[0]}]"
            )
        targets = np.flatnonzero(~np.isfinite(self.yy))
        if len(targets):
            raise ValueError(
                "Expected `y` without NaN, infinity or numbers too large to square; "
                f"{fix}. Received: such values in target {targets[0]} of y"
            )

    @property
    def degrees_of_freedom(self):
        """Returns N, or N - 1 if centred, because the mean takes one row.

        It is below 0 if all weights together are less than that of one row.
        """
        return self.count - self.centred if self.count else 0

    @property
    def least_energy(self):
        """Returns what rounding leaves of a sum of squared residuals that is 0."""
        return max(1e-13 * self.yy, 1e-24 * self.count * self.y_mean**2, 1e-200)
