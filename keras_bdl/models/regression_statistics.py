"""Sums over rows: all that Gaussian linear regression needs to know of its data."""

import dataclasses

import numpy as np

_BLOCK_VALUES = 2**19  # of a block of rows in float64: 4 MiB
_LEAST_BLOCK_ROWS = 256


@dataclasses.dataclass
class RegressionStatistics:
    """Means, and products summed over rows of what is left after subtracting them.

    Without centring the means stay 0. Memory is that of `xx`, whatever the number of
    rows. Merging is exact, so batches give what all rows at once give.

    Attributes:
        centred: whether means are subtracted.
        count: number of rows, N.
        x_mean, y_mean: `(d,)` and a number.
        xx, xy, yy: `(d, d)`, `(d,)` and a number.

    Reference: Chan, Golub and LeVeque, "Algorithms for computing the sample variance",
    1983, eq. 2.1 (merging of centred sums).
    """

    centred: bool
    count: int
    x_mean: np.ndarray
    y_mean: float
    xx: np.ndarray
    xy: np.ndarray
    yy: float

    @classmethod
    def empty(cls, num_features, centred):
        zeros = np.zeros(num_features)
        products = np.zeros((num_features, num_features))
        return cls(centred, 0, zeros, 0.0, products, zeros, 0.0)

    @classmethod
    def of(cls, x, y, centred):
        """Of all rows, a block at a time.

        Args:
            x: `(n, d)`, of any real dtype.
            y: `(n,)`.
            centred: whether to subtract means.

        Raises:
            ValueError: on NaN, infinity, or numbers whose squares overflow.
        """
        total = cls.empty(x.shape[1], centred)
        rows = max(_LEAST_BLOCK_ROWS, _BLOCK_VALUES // x.shape[1])
        with np.errstate(invalid="ignore", over="ignore"):  # refused below
            for start in range(0, len(x), rows):
                block = slice(start, start + rows)
                total = total.merge(cls._of_block(x[block], y[block], centred))
        total.check_finite()
        return total

    @classmethod
    def _of_block(cls, x, y, centred):
        x, y = x.astype("float64"), y.astype("float64")  # copies: changed in place
        x_mean, y_mean = np.zeros(x.shape[1]), 0.0
        if centred:
            x_mean, y_mean = x.mean(axis=0), float(y.mean())
            x -= x_mean
            y -= y_mean
        return cls(centred, len(x), x_mean, y_mean, x.T @ x, x.T @ y, float(y @ y))

    def merge(self, other):
        """Statistics of the rows of both."""
        count = self.count + other.count
        if count == 0:
            return self
        share = other.count / count
        weight = self.count * share
        x_step, y_step = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        return RegressionStatistics(
            self.centred,
            count,
            self.x_mean + share * x_step,
            self.y_mean + share * y_step,
            self.xx + other.xx + weight * np.outer(x_step, x_step),
            self.xy + other.xy + weight * y_step * x_step,
            self.yy + other.yy + weight * y_step**2,
        )

    def check_finite(self):
        columns = np.flatnonzero(~np.isfinite(np.diag(self.xx)))
        fix = "drop those rows, fill them in, or rescale the column"
        if len(columns):
            raise ValueError(
                "Expected `X` without NaN, infinity or numbers too large to square; "
                f"{fix}. Received: such values in X[:, {columns[0]}]"
            )
        if not np.isfinite(self.yy):
            raise ValueError(
                "Expected `y` without NaN, infinity or numbers too large to square; "
                f"{fix}. Received: such values in y"
            )

    @property
    def degrees_of_freedom(self):
        """Rows left after the mean is taken out: N, or N - 1 where centred."""
        return max(self.count - self.centred, 0)

    @property
    def least_energy(self):
        """What rounding leaves of a sum of squares of residuals that is 0."""
        return max(1e-13 * self.yy, 1e-24 * self.count * self.y_mean**2, 1e-200)
