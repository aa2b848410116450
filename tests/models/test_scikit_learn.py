"""The exact models among scikit-learn's estimators, and the tables that they take."""

import pickle
import sys

import keras
import numpy as np
import pytest

from keras_bdl.exact import estimator
from keras_bdl.exact.conjugate import (
    BayesianLinearRegression,
    BetaBernoulli,
    DirichletCategorical,
)

pytest.importorskip("sklearn")
from sklearn import (
    base,
    compose,
    ensemble,
    exceptions,
    metrics,
    model_selection,
    pipeline,
    preprocessing,
)
from sklearn.utils import estimator_checks

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow",
    reason="NumPy and SciPy alone: on one backend is on all",
)
TOSSES = np.array([1, 0, 1, 1, 1, 0, 1, 1])


def make_data(n=60, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x @ [1.0, 2.0, 3.0] + 0.1 * rng.normal(size=n)


# --- scikit-learn's own checks -------------------------------------------------------

EXPECTED_FAILURES = {
    "check_estimators_empty_data_messages": "no rows leave the prior, which is an "
    "answer: a model may be asked before its first row"
}


@estimator_checks.parametrize_with_checks(
    [
        BayesianLinearRegression(),
        BayesianLinearRegression(1.0, (2.0, 3.0), fit_intercept=False),
    ],
    expected_failed_checks=lambda model: EXPECTED_FAILURES,
)
def test_regression_passes_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


# Coins and dice take `(n,)`, for which scikit-learn has no data: of its checks these
# need none.
CHECKS_WITHOUT_DATA = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.mark.parametrize(
    "model",
    [BetaBernoulli(), DirichletCategorical([1.0, 2.0])],
    ids=lambda model: type(model).__name__,
)
def test_coins_and_dice_are_density_estimators(model):
    for name in CHECKS_WITHOUT_DATA:
        getattr(estimator_checks, name)(type(model).__name__, model)
    assert not base.is_regressor(model) and not base.is_classifier(model)
    fitted = base.clone(model).fit(TOSSES)
    copy = pickle.loads(pickle.dumps(fitted))
    assert copy.log_evidence() == fitted.log_evidence()
    assert copy.partial_fit(TOSSES).log_evidence() != fitted.log_evidence()
    scores = model_selection.cross_val_score(model, TOSSES, cv=4)
    expected = [
        base.clone(model).fit(np.delete(TOSSES, part)).score(TOSSES[part])
        for part in np.split(np.arange(8), 4)
    ]
    np.testing.assert_allclose(scores, expected)
    flat, wrong = 1.0, 50.0
    if isinstance(model, DirichletCategorical):
        flat, wrong = [1.0, 1.0], [50.0, 1.0]
    grid = {"alpha": [wrong, flat]}
    search = model_selection.GridSearchCV(model, grid, cv=4).fit(TOSSES)
    assert search.best_params_ == {"alpha": flat}


def test_score_of_coins_and_dice_is_the_mean_log_predictive():
    for model in (BetaBernoulli(0.5, 2.0), DirichletCategorical([2.0, 0.5])):
        model.fit(TOSSES)
        log_prob = np.array(model.posterior_predictive().log_prob([0, 1]))
        got = model.score([0, 1, 1, 1])
        assert got == pytest.approx((log_prob[0] + 3.0 * log_prob[1]) / 4.0)
        weighted = model.score([0, 1], sample_weight=[1.0, 3.0])
        assert weighted == pytest.approx(got)
        assert np.isnan(model.score([]))


def test_models_before_their_first_fit_raise_the_error_of_scikit_learn(monkeypatch):
    models = BayesianLinearRegression(), BetaBernoulli(), DirichletCategorical([1, 1])
    for model in models:
        with pytest.raises(exceptions.NotFittedError, match="call `fit`.*Received"):
            model.map()
    with pytest.raises(exceptions.NotFittedError, match="call `fit`.*Received"):
        BayesianLinearRegression().predict([[1.0]])
    monkeypatch.delitem(sys.modules, "sklearn.exceptions")  # a program without it
    with pytest.raises(estimator.NotFittedError, match="Received") as error:
        BetaBernoulli().mle()
    assert isinstance(error.value, ValueError)
    assert isinstance(error.value, AttributeError)


# --- What scikit-learn does with estimators ------------------------------------------


def test_score_is_r2():
    x, y = make_data()
    y += x[:, 0] ** 2
    weights = np.random.default_rng(1).uniform(size=60)
    targets = np.column_stack([y, 1e3 * x[:, 0] + y, np.full(60, 4.0)])
    for y in (targets[:, 0], targets, np.full(60, 4.0), targets[:, :1]):
        model = BayesianLinearRegression(1.0, 1.0).fit(x, y)
        mean = model.predict(x)
        for sample_weight in (None, weights):
            expected = metrics.r2_score(y, mean, sample_weight=sample_weight)
            got = model.score(x, y, sample_weight)
            assert got == pytest.approx(expected, rel=1e-12)
        assert np.isnan(model.score(x[:1], y[:1]))


def test_cross_validation_takes_the_regression_as_it_is():
    x, y = make_data()
    model = BayesianLinearRegression()
    scores = model_selection.cross_val_score(model, x, y)
    assert scores.mean() > 0.99
    by_name = model_selection.cross_val_score(model, x, y, scoring="r2")
    np.testing.assert_allclose(scores, by_name)
    weights = np.where(np.arange(60) < 30, 1.0, 0.0)
    wrong = np.where(weights, y, 100.0)
    folds = model_selection.KFold(shuffle=True, random_state=0)
    arguments = {"cv": folds, "scoring": "neg_median_absolute_error"}
    got = model_selection.cross_val_score(
        model, x, wrong, params={"sample_weight": weights}, **arguments
    )
    blind = model_selection.cross_val_score(model, x, wrong, **arguments)
    assert got.mean() > blind.mean()


def test_searches_pipelines_and_ensembles_take_the_regression():
    x, y = make_data()
    scaled = pipeline.make_pipeline(
        preprocessing.StandardScaler(), BayesianLinearRegression(noise_precision=1.0)
    )
    grid = {"bayesianlinearregression__prior_precision": [1e6, 1.0]}
    search = model_selection.GridSearchCV(scaled, grid).fit(x, y)
    assert search.best_params_ == {"bayesianlinearregression__prior_precision": 1.0}
    mean, stddev = search.best_estimator_.predict(x, return_std=True)
    assert mean.shape == stddev.shape == (60,)
    two = np.column_stack([y, -y])
    names = {"prior_precision": [1.0]}
    search = model_selection.GridSearchCV(BayesianLinearRegression(), names)
    assert search.fit(x, two).predict(x).shape == (60, 2)
    model = BayesianLinearRegression()
    for made in (
        compose.TransformedTargetRegressor(
            model, transformer=preprocessing.StandardScaler()
        ),
        ensemble.StackingRegressor([("a", model), ("b", model)], model),
        ensemble.VotingRegressor([("a", model)]),
    ):
        assert made.fit(x, y).score(x, y) > 0.7
    assert "BayesianLinearRegression" in scaled._repr_html_()


# --- Tables --------------------------------------------------------------------------


@pytest.fixture(name="frame")
def _frame():
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame(make_data()[0], columns=["a", "b", "c"])


def test_reordered_columns_are_put_in_order_by_every_method(frame):
    x, y = make_data()
    other = frame[["c", "a", "b"]]
    model = BayesianLinearRegression().fit(frame, y)
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    assert model.feature_names_in_.dtype == object and model.n_features_in_ == 3
    for table in (frame, other, x):  # an array by position
        for got, expected in zip(model.predict(table, True), model.predict(x, True)):
            np.testing.assert_allclose(got, expected, rtol=1e-12)
        predictive = model.posterior_predictive(table)
        np.testing.assert_allclose(predictive.mean(), model.predict(x), rtol=1e-12)
        assert model.score(table, y) == pytest.approx(model.score(x, y))
    twice = BayesianLinearRegression().fit(x, y).partial_fit(x, y)
    model.partial_fit(other, y)
    np.testing.assert_allclose(model.coef_, twice.coef_, rtol=1e-12)
    assert model.log_evidence() == pytest.approx(twice.log_evidence())
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(loaded.predict(other), model.predict(other))
    assert model.fit(other, y).feature_names_in_.tolist() == ["c", "a", "b"]
    assert not hasattr(model.fit(x, y), "feature_names_in_")


def test_names_that_are_no_texts_count_and_numbered_columns_have_none(frame):
    pandas = pytest.importorskip("pandas")
    x, y = make_data()
    right = BayesianLinearRegression().fit(x, y).predict(x)
    levels = pandas.MultiIndex.from_tuples([("a", 0), ("a", 1), ("b", 0)])
    for names in ([3, 1, 2], ["a", 1, 2.5], levels, [0, 1, 2]):
        table = frame.set_axis(names, axis=1)
        model = BayesianLinearRegression().fit(table, y)
        moved = table[[table.columns[i] for i in (2, 0, 1)]]
        np.testing.assert_allclose(model.predict(moved), right)
        assert not hasattr(model, "feature_names_in_")
    numbered = frame.set_axis([0, 1, 2], axis=1)
    for first, later in ((x, frame), (numbered, frame), (frame, numbered)):
        model = BayesianLinearRegression().fit(first, y)
        np.testing.assert_allclose(model.predict(later), right)
    # The names that come first are learned, also where an array came before them.
    model = BayesianLinearRegression().fit(x, y).partial_fit(frame, y)
    np.testing.assert_allclose(model.predict(frame[["c", "b", "a"]]), model.predict(x))


def test_other_columns_are_refused(frame):
    _, y = make_data()
    model = BayesianLinearRegression().fit(frame, y)
    before = model.log_evidence()
    wider = frame.assign(d=1.0)
    for columns, match in (
        (["a", "b"], r"missing columns \['c'\], unknown columns \[\]"),
        (["a", "b", "c", "d"], r"unknown columns \['d'\]"),
        (["a", "d", "c"], r"missing columns \['b'\], unknown columns \['d'\]"),
        (["a", "a", "b", "c"], "unknown columns \\[\\], 4 columns"),
        (["a", "a", "b"], r"missing columns \['c'\]"),
    ):
        for call in (
            lambda table: model.predict(table),
            lambda table: model.predict(table, return_std=True),
            lambda table: model.posterior_predictive(table),
            lambda table: model.score(table, y),
            lambda table: model.partial_fit(table, y),
        ):
            with pytest.raises(ValueError, match=f"Expected `X`.*Received.*{match}"):
                call(wider[columns])
    assert model.log_evidence() == before
    twins = frame.set_axis(["a", "a", "b"], axis=1)
    model.fit(twins, y).predict(twins)
    with pytest.raises(ValueError, match="each once.*Received"):
        model.predict(twins.iloc[:, ::-1])


def test_tables_of_targets_are_put_in_order_too(frame):
    pandas = pytest.importorskip("pandas")
    _, y = make_data()
    targets = pandas.DataFrame({"p": y, "q": 2.0 - y})
    model = BayesianLinearRegression().fit(frame, targets)
    once = model.coef_
    assert model.score(frame, targets[["q", "p"]]) == model.score(frame, targets)
    model.partial_fit(frame, targets[["q", "p"]])
    np.testing.assert_allclose(model.coef_, once, rtol=1e-3)
    with pytest.raises(ValueError, match="Expected `y`.*Received: missing.*'q'"):
        model.partial_fit(frame, targets[["p"]])
    series = BayesianLinearRegression().fit(frame, targets["p"], pandas.Series(y**2))
    assert series.coef_.shape == (3,)


NUMBERS = {
    "bool": lambda pandas, x: x > 0,
    "boolean": lambda pandas, x: pandas.array(x > 0, dtype="boolean"),
    "Int64": lambda pandas, x: pandas.array(np.round(9 * x), dtype="Int64"),
    "Float64": lambda pandas, x: pandas.array(x, dtype="Float64"),
    "int8": lambda pandas, x: np.round(9 * x).astype("int8"),
    "object": lambda pandas, x: x.astype(object),
    "sparse": lambda pandas, x: pandas.arrays.SparseArray(np.maximum(x, 0.0)),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_columns_of_numbers_are_taken(frame, kind):
    pandas = pytest.importorskip("pandas")
    x, y = make_data()
    column = NUMBERS[kind](pandas, x[:, 0] + x[:, 1])
    plain = np.asarray(column).astype("float64")
    expected = BayesianLinearRegression().fit(np.column_stack([x, plain]), y)
    table = frame.assign(z=column)
    got = BayesianLinearRegression().fit(table, y)
    np.testing.assert_allclose(got.coef_, expected.coef_, rtol=1e-9)
    moved = got.predict(table[["z", "c", "b", "a"]])
    np.testing.assert_allclose(moved, got.predict(table))
    as_target = BayesianLinearRegression().fit(frame, table["z"])
    plain_target = BayesianLinearRegression().fit(x, plain)
    np.testing.assert_allclose(as_target.coef_, plain_target.coef_, atol=1e-12)


NO_NUMBERS = {
    "category": (lambda p: p.Categorical([1, 2, 1]), "X.'z'. of dtype category"),
    "text": (lambda p: ["u", "v", "u"], "X.'z'. with 'u'"),
    "digits": (lambda p: ["1", "2", "1"], "X.'z'. with '1'"),
    "datetime": (lambda p: p.date_range("2020", periods=3), "X.'z'. of datetime64"),
    "zone": (lambda p: p.date_range("2020", periods=3, tz="UTC"), "X.'z'.*Timestamp"),
    "duration": (lambda p: p.to_timedelta([1, 2, 3]), "X.'z'. of timedelta64"),
    "missing": (lambda p: p.array([True, None, True], dtype="boolean"), "X.'z'.*NA"),
    "nothing": (lambda p: np.array([1, None, 1], dtype=object), "X.'z'. with None"),
    "complex": (lambda p: [1j, 2.0, 3.0], "X.'z'. of complex"),
    "NaN": (
        lambda p: p.array([1, None, 1], dtype="Int64"),
        r"values in X\[:, 1\]",
    ),
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_columns_of_something_else_are_refused_by_name(kind):
    pandas = pytest.importorskip("pandas")
    make, match = NO_NUMBERS[kind]
    table = pandas.DataFrame({"a": [1.0, 2.0, 3.0], "z": make(pandas)})
    for columns in (["a", "z"], ["z"]):
        got = match.replace("1", str(len(columns) - 1)) if kind == "NaN" else match
        with pytest.raises((TypeError, ValueError), match=f"`X`.*Received.*{got}"):
            BayesianLinearRegression().fit(table[columns], [1.0, 2.0, 3.0])
    with pytest.raises((TypeError, ValueError), match="`y`.*Received.*y"):
        BayesianLinearRegression().fit(table[["a"]], table["z"])


def test_a_mixed_table_goes_through_a_column_transformer(frame):
    x, y = make_data()
    table = frame.assign(kind=np.where(x[:, 0] > 0, "u", "v"), flag=x[:, 1] > 0)
    encoder = preprocessing.OneHotEncoder(sparse_output=False)
    columns = compose.make_column_transformer(
        (encoder, ["kind"]), remainder="passthrough"
    )
    for output in ("default", "pandas"):
        columns.set_output(transform=output)
        model = pipeline.make_pipeline(columns, BayesianLinearRegression())
        assert model_selection.cross_val_score(model, table, y).mean() > 0.99
    model.fit(table, y)
    reordered = table[["flag", "kind", "c", "a", "b"]]
    np.testing.assert_allclose(model.predict(reordered), model.predict(table))
    assert "remainder__flag" in model[-1].feature_names_in_
    sparse = preprocessing.OneHotEncoder().fit_transform(table[["kind"]])
    with pytest.raises(TypeError, match="sparse.*call `toarray`.*Received"):
        BayesianLinearRegression().fit(sparse, y)


def test_masked_values_are_refused():
    x, y = make_data()
    masked = np.ma.masked_greater(x, 1.0)
    with pytest.raises(ValueError, match="`X` without masked.*Received"):
        BayesianLinearRegression().fit(masked, y)
    unmasked = BayesianLinearRegression().fit(np.ma.array(x), np.ma.array(y))
    assert unmasked.score(x, y) > 0.9
