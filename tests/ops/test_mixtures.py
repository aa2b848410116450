"""Mixtures: distribution functions and quantiles against SciPy."""

import numpy as np
import pytest
from contract import to_numpy
from keras import ops

from keras_bdl.ops import mixtures

stats = pytest.importorskip("scipy.stats", reason="SciPy is not installed")
optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")

Z = np.r_[-1e4, np.linspace(-40, 40, 2001), 1e4]


def test_normal_cdf():
    cdf = to_numpy(mixtures.normal_cdf(ops.convert_to_tensor(Z.astype("float32"))))
    exact = stats.norm.cdf(Z.astype("float32"))
    np.testing.assert_allclose(cdf, exact, atol=2e-7)
    middle = np.abs(Z) < 8
    np.testing.assert_allclose(cdf[middle], exact[middle], rtol=1e-4)


def test_student_t_cdf():
    df = np.array([2.001, 2.5, 5.0, 30.0, 1e3, 1e6], "float32")
    z = np.repeat(Z[:, None].astype("float32"), len(df), axis=1)
    cdf = to_numpy(
        mixtures.student_t_cdf(ops.convert_to_tensor(df))(ops.convert_to_tensor(z))
    )
    exact = stats.t.cdf(z.astype("float64"), df.astype("float64"))
    np.testing.assert_allclose(cdf, exact, atol=2e-6)
    tail = (exact > 1e-5) & (exact < 1e-2)
    np.testing.assert_allclose(cdf[tail], exact[tail], rtol=2e-3)


@pytest.mark.parametrize("name", ["normal", "student_t"])
def test_quantiles_of_a_mixture_against_root_finding(name):
    rng = np.random.default_rng(0)
    location = rng.normal(3.0, 4.0, size=(7, 5, 2)).astype("float32")
    scale = np.exp(rng.normal(size=(7, 5, 2))).astype("float32")
    df = np.array([2.5, 9.0], "float32")
    levels = (0.001, 0.05, 0.5, 0.975)
    family = stats.norm() if name == "normal" else stats.t(df.astype("float64"))
    if name == "normal":
        standard = mixtures.normal_cdf
    else:
        standard = mixtures.student_t_cdf(ops.convert_to_tensor(df))

    def cdf(y):  # (levels, 5, 2)
        z = (ops.expand_dims(y, 0) - location[:, None]) / scale[:, None]
        return ops.mean(standard(z), axis=0)

    mean = location.mean(axis=0)
    variance = (scale**2 * family.var()).mean(axis=0) + location.var(axis=0)
    result = to_numpy(
        mixtures.quantiles(
            cdf,
            levels,
            ops.convert_to_tensor(mean),
            ops.convert_to_tensor(np.sqrt(variance).astype("float32")),
        )
    )
    assert result.shape == (4, 5, 2)
    for i, level in enumerate(levels):
        for n in range(5):
            for d in range(2):
                single = stats.norm() if name == "normal" else stats.t(float(df[d]))

                def excess(y, n=n, d=d, level=level, single=single):
                    z = (y - location[:, n, d]) / scale[:, n, d]
                    return single.cdf(z).mean() - level

                exact = optimize.brentq(excess, -1e4, 1e4, xtol=1e-10)
                error = abs(result[i, n, d] - exact)
                assert error < 1e-3 * np.sqrt(variance[n, d]), (i, n, d)


def test_log_mean_exp():
    log_probs = np.array([[-1000.0, 0.0], [-1001.0, -1.0]], "float32")
    result = to_numpy(mixtures.log_mean_exp(ops.convert_to_tensor(log_probs)))
    shift = np.log(0.5 * (1 + np.exp(-1)))
    np.testing.assert_allclose(result, [-1000 + shift, shift], rtol=1e-5)
