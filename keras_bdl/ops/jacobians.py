"""Jacobians of outputs by matrices of weights, from what the matrices multiply."""

from keras import ops

from keras_bdl.core.typing import Tensor

__all__ = ["flat_jacobian", "scaled_jacobian"]


def flat_jacobian(
    rows: Tensor, gradients: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Returns the Jacobian of the outputs by a matrix of weights.

    It is `(rows, outputs, inputs * units)`: the sum over positions of the products.

    Args:
        rows: what the matrix is multiplied with, `(rows, positions, inputs)`.
        gradients: of the outputs, by the products, `(rows, positions, outputs, units)`.
        scale: factors of the weights, `(inputs, units)`, or None.
    """
    jacobian = ops.einsum("bti,btco->bcio", rows, gradients)
    if scale is not None:
        jacobian = jacobian * scale
    _, outputs, inputs, units = jacobian.shape
    return ops.reshape(jacobian, (-1, outputs, inputs * units))


def scaled_jacobian(rows: Tensor, gradients: Tensor, stddev: Tensor) -> Tensor:
    """Returns a square root of the covariance of outputs, `(rows, outputs, any)`.

    Args:
        rows, gradients: as in `flat_jacobian`.
        stddev: of the weights, which are independent, `(inputs, units)`.
    """
    if rows.shape[1] != 1:
        return flat_jacobian(rows, gradients, stddev)
    # The weights of a unit matter by their sum alone.
    variance = ops.matmul(ops.square(rows[:, 0]), ops.square(stddev))
    return gradients[:, 0] * ops.expand_dims(ops.sqrt(variance), 1)
