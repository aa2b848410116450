"""Types of public arguments."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np

DType: TypeAlias = str | keras.DTypePolicy | None
Activation: TypeAlias = str | Callable | None
Initializer: TypeAlias = str | keras.initializers.Initializer | Callable
ArrayLike: TypeAlias = np.ndarray | keras.KerasTensor | Sequence
Tensor: TypeAlias = Any
# The weights that a plain copy gets.
Weights: TypeAlias = Literal["mean", "sample"]
