"""The generalised Gauss-Newton matrix of a network's likelihood, in three forms.

With the Jacobian J of the outputs of an example and the second derivatives L of its
negative log likelihood by these outputs, it is H = sum over examples of J' L J.
Schraudolph, "Fast curvature matrix-vector products for second-order gradient descent",
2002; Martens and Grosse, "Optimizing neural networks with Kronecker-factored
approximate curvature", 2015; Grosse and Martens, "A Kronecker-factored approximate
Fisher matrix for convolution layers", 2016 (whose factors are summed over positions).
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_bdl.graphs.linearized import jacobians
from keras_bdl.inference.linearized import linearization
from keras_bdl.inference.trained import VALUES
from keras_bdl.ops.jacobians import flat_jacobian


class Curvature(keras.Model):
    """Sums of a batch, of which `Fit` makes the matrix.

    Args:
        wrapper: the wrapper of a network of logits or of means, with its weights.
        kind: "classification" for the softmax of the outputs, or the sigmoid of a
            single one; "regression" for Gaussian noise.
        structure: "diagonal", "kronecker" or "full".
        precisions: of Gaussian noise, of each output, `(units,)`.
    """

    def __init__(self, wrapper, kind, structure, precisions=None):
        super().__init__()
        self.wrapper = wrapper
        self.kind = kind
        self.structure = structure
        self.precisions = precisions
        self.built = True

    def call(self, inputs: Any) -> dict[str, Any]:
        outputs, calls, names = linearization(self.wrapper, inputs)
        roots = self._roots(outputs)
        found = jacobians(calls, names)
        weighted = {
            name: (rows, ops.einsum("bck,btco->btko", roots, gradients))
            for name, (rows, gradients) in found.items()
        }
        return getattr(self, f"_{self.structure}")(weighted)

    def _roots(self, outputs):
        """Returns a matrix S of each row with S S' = L, `(rows, units, columns)`."""
        if self.kind == VALUES:
            root = np.diag(np.sqrt(self.precisions)).astype("float32")
            root = ops.cast(ops.convert_to_tensor(root), outputs.dtype)
            return ops.broadcast_to(root, (ops.shape(outputs)[0], *root.shape))
        if outputs.shape[-1] == 1:
            p = ops.sigmoid(outputs)
            return ops.expand_dims(ops.sqrt(p * (1.0 - p)), -1)
        p = ops.softmax(outputs)
        root = ops.sqrt(p)
        identity = ops.eye(outputs.shape[-1], dtype=outputs.dtype)
        diagonal = ops.expand_dims(root, -1) * identity
        return diagonal - ops.expand_dims(p, -1) * ops.expand_dims(root, -2)

    def _kronecker(self, factors):
        found = {}
        for name, (rows, weighted) in factors.items():
            positions = ops.cast(ops.shape(rows)[1], rows.dtype)
            of_rows = ops.einsum("bti,btj->ij", rows, rows)
            of_units = ops.einsum("btko,btkp->op", weighted, weighted)
            found[name] = (of_rows / positions, of_units)
        return found

    def _diagonal(self, factors):
        found = {}
        for name, (rows, weighted) in factors.items():
            if rows.shape[1] == 1:
                squares = ops.sum(ops.square(weighted), axis=(1, 2))
                found[name] = ops.matmul(ops.transpose(ops.square(rows[:, 0])), squares)
                continue
            total = 0.0
            for k in range(weighted.shape[2]):
                own = ops.einsum("bti,bto->bio", rows, weighted[:, :, k])
                total = total + ops.sum(ops.square(own), axis=0)
            found[name] = total
        return found

    def _full(self, factors):
        kernels = [name for name in self.wrapper.chosen if name in factors]
        flat = [flat_jacobian(*factors[name]) for name in kernels]
        flat = ops.concatenate(flat, axis=-1)
        flat = ops.reshape(flat, (-1, flat.shape[-1]))
        return {"full": ops.matmul(ops.transpose(flat), flat)}
