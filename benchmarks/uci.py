"""UCI regression: one hidden layer of 50 units, 20 splits, trained side by side.

    KERAS_BACKEND=jax python benchmarks/uci.py --data folder [--sets yacht ...]

Every data set gets the same recipe. Inside each training split, cross-validation picks
for each method the setting of the highest predictive log-likelihood, on `NUM_FOLDS`
tenths; that one is trained on the whole training split, and the test split is read
once, by the final model. "ensemble" is ten networks, plain or of dropout that stays on,
with noise per input and `losses.BetaNLL`; the others are single networks. Weights are
averages over the last steps. All networks of one architecture are trained at once, as
one batch of weights (`jax.vmap` over `stateless_call`).
"""

import argparse
import dataclasses
import functools
import pathlib
import time

import common
import jax
import keras
import numpy as np
from jax import numpy as jnp
from scipy.special import logsumexp

import keras_bdl

SETS = ("boston-housing", "concrete", "energy", "yacht")
UNITS = 50
NUM_FOLDS = 3  # of ten
NUM_STEPS = 12_000
NUM_SAMPLES = 1000
NUM_MEMBERS = 10
NUM_MEMBERS_VALIDATED = 3
BATCH_SIZE = 64
LEARNING_RATE = 1e-2
MOMENTUM = 0.998  # of the averages of weights
CHUNK = 500  # steps between two lines of progress


@dataclasses.dataclass(frozen=True)
class Setting:
    """One network, its noise, and what is searched over."""

    method: str
    noise: str = "heteroscedastic"
    kl_weight: float = 1.0
    rate: float = 0.0  # of plain dropout
    weight_decay: float = 0.0  # of plain weights: (1/2) l^2 / N, as l^2
    beta: float = 0.0  # of `losses.BetaNLL`
    members: int = 1  # of an ensemble

    @property
    def architecture(self):
        """Settings that differ in nothing else are trained as one batch."""
        return dataclasses.replace(self, kl_weight=1.0, weight_decay=0.0, members=1)

    @property
    def samples(self):
        """Whether the network differs from sample to sample."""
        return self.method == "variational" or self.rate > 0.0

    def loss(self, model):
        if self.beta:
            return keras_bdl.losses.BetaNLL(self.beta)
        return model.observation_noise.loss()

    def regressor(self, num_inputs):
        return keras_bdl.BayesianRegressor(
            self.network(num_inputs), self.noise, num_examples=1
        )

    def network(self, num_inputs):
        outputs = 2 if self.noise == "heteroscedastic" else 1
        make = self._variational if self.method == "variational" else self._dense
        layers = make(outputs)
        return keras.Sequential([keras.Input((num_inputs,)), *layers])

    def _variational(self, outputs):
        return [
            keras_bdl.VariationalDense(
                units,
                activation=activation,
                prior=keras_bdl.priors.LearnedNormal(0.5),
                initial_log_stddev=-4.0,
            )
            for units, activation in ((UNITS, "relu"), (outputs, None))
        ]

    def _dense(self, outputs):
        hidden = keras.layers.Dense(UNITS, activation="relu")
        last = keras.layers.Dense(outputs)
        if not self.rate:
            return [hidden, last]
        first, second = (keras.layers.Dropout(self.rate) for _ in range(2))
        return [first, hidden, second, last]


# Noise per input, without dropout and with four rates of it.
_PLAIN = [Setting("mc_dropout"), Setting("mc_dropout", beta=0.5)]
_DROPOUT = [Setting("mc_dropout", rate=r, beta=0.5) for r in (0.005, 0.02, 0.05)]

METHODS = {
    "ensemble": [
        dataclasses.replace(setting, members=NUM_MEMBERS)
        for setting in (*_PLAIN, *_DROPOUT)
    ],
    "one network": [*_PLAIN, *_DROPOUT],
    "MC dropout, one noise": [
        Setting("mc_dropout", "homoscedastic", rate=rate, weight_decay=0.5)
        for rate in (0.005, 0.02, 0.1)
    ],
    "variational": [
        Setting("variational", noise, kl_weight)
        for noise in ("heteroscedastic", "student_t")
        for kl_weight in (1.0, 0.5, 0.3)
    ],
}


# --- Data ------------------------------------------------------------------------


class Standardized:
    """Training rows brought to mean 0 and standard deviation 1, and others alike."""

    def __init__(self, x, y):
        self.x_mean, self.y_mean = x.mean(0), y.mean(0)
        self.x_std, self.y_std = (np.where(v.std(0) == 0, 1, v.std(0)) for v in (x, y))
        self.x, self.y = self(x, y)

    def __call__(self, x, y):
        x = (x - self.x_mean) / self.x_std
        y = (y - self.y_mean) / self.y_std
        return x.astype("float32"), y.astype("float32")


def folds(rows, seed):
    """Pairs of training rows and a tenth that is held out."""
    parts = np.array_split(np.random.default_rng(seed).permutation(rows), 10)
    return [
        (np.concatenate(parts[:i] + parts[i + 1 :]), parts[i]) for i in range(NUM_FOLDS)
    ]


# --- Training --------------------------------------------------------------------


def position(variables, name):
    return [i for i, v in enumerate(variables) if v.path.endswith(name)]


def repeated(variable, count):
    return np.repeat(np.asarray(variable)[None], count, axis=0)


class Fleet:
    """Many networks of one architecture, trained as one."""

    def __init__(self, architecture, num_inputs):
        self.architecture, self.num_inputs = architecture, num_inputs
        self.model = architecture.regressor(num_inputs)
        self.loss = architecture.loss(self.model)
        self.optimizer = keras.optimizers.Adam(LEARNING_RATE)
        self.optimizer.build(self.model.trainable_variables)
        others = self.model.non_trainable_variables
        self.kl_weights = position(others, "kl_weight")
        self.num_examples = position(others, "num_examples")
        self.kernels = position(self.model.trainable_variables, "/kernel")

    def _objective(self, trainable, others, x, y, warmth, decay):
        others = list(others)
        for i in self.kl_weights:
            others[i] = others[i] * warmth
        outputs, others_after, extra = self.model.stateless_call(
            trainable, others, x, training=True, return_losses=True
        )
        loss = self.loss(y[:, None], outputs) + sum(extra)
        for i in self.kernels:
            loss = loss + 0.5 * decay * jnp.sum(jnp.square(trainable[i]))
        return loss, others_after

    def _step(self, member, x, y, rows, warmth, decay):
        trainable, others, optimizer, averages = member
        gradient = jax.value_and_grad(self._objective, has_aux=True)
        (loss, after), grads = gradient(
            trainable, others, x[rows], y[rows], warmth, decay
        )
        after = list(after)
        for i in self.kl_weights:
            after[i] = others[i]
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, grads, trainable
        )
        averages = [
            MOMENTUM * average + (1.0 - MOMENTUM) * value
            for average, value in zip(averages, trainable)
        ]
        return (trainable, after, optimizer, averages), loss

    @functools.partial(jax.jit, static_argnums=0)
    def _chunk(self, members, data, start, key):
        x, y, counts, decays, owners = data

        def one_step(members, step):
            uniform = jax.random.uniform(
                jax.random.fold_in(key, step), (len(counts), BATCH_SIZE)
            )
            rows = (uniform * counts[:, None]).astype(jnp.int32)
            warmth = jnp.minimum(1.0, step / (0.2 * NUM_STEPS))

            def step_of(member, owner, rows, decay):
                return self._step(member, x[owner], y[owner], rows, warmth, decay)

            return jax.vmap(step_of)(members, owners, rows, decays)

        members, losses = jax.lax.scan(one_step, members, start + jnp.arange(CHUNK))
        return members, losses[-50:].mean()

    def _initial_values(self, seeds):
        """Variables of the networks, stacked: equal where the seeds are."""
        model = self.model
        variables = model.trainable_variables, model.non_trainable_variables
        trainable, others = (
            [repeated(v, len(seeds)) for v in values] for values in variables
        )
        for seed in set(seeds):
            keras.utils.set_random_seed(seed)
            network = self.architecture.network(self.num_inputs)
            mine = np.equal(seeds, seed)
            for place, value in enumerate(network.trainable_variables):
                trainable[place][mine] = np.asarray(value)
            for place in position(variables[1], "seed_generator_state"):
                others[place][mine, 0] += 1_003 * seed  # layers keep their own
        return trainable, others

    def train(self, settings, data, owners, seeds, name):
        """Trains one network for each setting, on the data set of its owner.

        Args:
            settings: a `Setting` for each network.
            data: `Standardized` training sets.
            owners: for each network, the number of its data set in `data`.
            seeds: for each network, an integer.
            name: for the progress bar.
        """
        trainable, others = self._initial_values(seeds)
        sizes = np.array([len(data[o].x) for o in owners])
        for i in self.kl_weights:
            others[i] = np.array([s.kl_weight for s in settings], "float32")
        for i in self.num_examples:
            others[i] = sizes.astype(others[i].dtype)
        optimizer = [repeated(v, len(settings)) for v in self.optimizer.variables]
        largest = max(len(d.x) for d in data)
        x = np.stack([np.resize(d.x, (largest, *d.x.shape[1:])) for d in data])
        y = np.stack([np.resize(d.y, largest) for d in data])
        decays = np.array([s.weight_decay for s in settings]) / sizes
        constants = (x, y, sizes, decays.astype("float32"), np.asarray(owners))
        members = jax.device_put((trainable, others, optimizer, trainable))
        constants = jax.device_put(constants)
        key = jax.random.key(0)
        bar = keras.utils.Progbar(NUM_STEPS, unit_name=name, interval=10)
        for start in range(0, NUM_STEPS, CHUNK):
            members, loss = self._chunk(members, constants, start, key)
            bar.update(start + CHUNK, [("loss", float(loss))])
        _, others, _, averages = jax.device_get(members)
        self.weights = averages, others

    def score(self, members, standard, x, y, num_samples):
        """Log-likelihood and error of each row, in the units of the targets."""
        inputs, targets = standard(x, y)
        scores = [self._score(i, inputs, targets, num_samples) for i in members]
        log_likelihoods, means = zip(*scores)
        log_likelihood = logsumexp(log_likelihoods, axis=0) - np.log(len(members))
        error = (np.mean(means, axis=0) - targets) * standard.y_std
        return log_likelihood - np.log(standard.y_std), error

    def _score(self, member, inputs, targets, num_samples):
        """Log-likelihoods and mean predictions of one network, standardised."""
        model = self.model
        for variables, values in zip(
            (model.trainable_variables, model.non_trainable_variables), self.weights
        ):
            for variable, value in zip(variables, values):
                variable.assign(value[member])
        log_likelihood = model.log_likelihood(
            inputs, targets, num_samples, batch_size=1000, verbose=0, seed=0
        )
        mean = model.predict(
            inputs, batch_size=1000, num_samples=num_samples, seed=0, verbose=0
        )
        return log_likelihood, mean[:, 0]


# --- The experiment ----------------------------------------------------------------


def train_and_score(jobs, num_samples, name):
    """Trains networks, those of one architecture at once, and scores each.

    Args:
        jobs: pairs of a `Setting` and `(x_train, y_train, x_test, y_test)`.

    Returns:
        For each job the log-likelihoods and the errors of its test rows.
    """
    scores = [None] * len(jobs)
    for architecture in dict.fromkeys(s.architecture for s, _ in jobs):
        places = [i for i, (s, _) in enumerate(jobs) if s.architecture == architecture]
        parts = [jobs[i][1] for i in places]
        distinct = {id(part): Standardized(*part[:2]) for part in parts}
        networks = [
            (place, jobs[place][0], list(distinct).index(id(part)), member)
            for place, part in zip(places, parts)
            for member in range(jobs[place][0].members)
        ]
        _, settings, owners, members = zip(*networks)
        seeds = [owner + 1000 * member for owner, member in zip(owners, members)]
        fleet = Fleet(architecture, parts[0][0].shape[1])
        fleet.train(settings, list(distinct.values()), owners, seeds, name)
        for place, part in zip(places, parts):
            mine = [i for i, network in enumerate(networks) if network[0] == place]
            standard = distinct[id(part)]
            samples = num_samples // len(mine) if architecture.samples else 1
            score = fleet.score(mine, standard, *part[2:], samples)
            if not all(np.isfinite(values).all() for values in score):
                print(f"{name}: {architecture} diverged", flush=True)
                score = np.full_like(score, -np.inf)  # neither chosen nor reported
            scores[place] = score
    return scores


def cross_validate(settings, x, y, splits, name):
    """Mean held-out log-likelihood inside each training split: (splits, settings)."""
    settings = [
        dataclasses.replace(s, members=min(s.members, NUM_MEMBERS_VALIDATED))
        for s in settings
    ]
    parts = []
    for split, rows in enumerate(splits):
        for train, held_out in folds(len(rows), split):
            train, held_out = rows[train], rows[held_out]
            parts.append((x[train], y[train], x[held_out], y[held_out]))
    jobs = [(setting, part) for setting in settings for part in parts]
    scores = train_and_score(jobs, 200, name)
    means = [log_likelihoods.mean() for log_likelihoods, _ in scores]
    shape = (len(settings), len(splits), NUM_FOLDS)
    return np.reshape(means, shape).mean(axis=-1).T


def run(name, folder, methods):
    """Test scores of methods on a data set: mean, standard error, and values."""
    content = np.load(folder / f"{name}.npz")
    x, y = content["x"], content["y"]
    splits, test_splits = (
        [rows[rows >= 0] for rows in content[key]] for key in ("train_idx", "test_idx")
    )
    parts = [
        (x[rows], y[rows], x[test_rows], y[test_rows])
        for rows, test_rows in zip(splits, test_splits)
    ]
    start = time.perf_counter()
    table = {}
    for method in methods:
        settings = METHODS[method]
        held_out = cross_validate(settings, x, y, splits, f"{name} {method}")
        chosen = held_out.argmax(axis=1)
        jobs = [(settings[i], part) for i, part in zip(chosen, parts)]
        tests = train_and_score(jobs, NUM_SAMPLES, f"{name} {method}")
        table[method] = {
            "log_likelihood": common.mean_and_error([ll.mean() for ll, _ in tests]),
            "rmse": common.mean_and_error([np.sqrt((e**2).mean()) for _, e in tests]),
            "settings": [dataclasses.asdict(setting) for setting in settings],
            "chosen": chosen.tolist(),
            "held_out_log_likelihood": held_out.mean(axis=0).tolist(),
        }
        print(describe(name, method, table[method]), flush=True)
    return {"seconds": time.perf_counter() - start, "methods": table}


def describe(name, method, row):
    cells = [
        f"{score} {row[score]['mean']:.3f} ± {row[score]['standard_error']:.3f}"
        for score in ("log_likelihood", "rmse")
    ]
    return f"{name:16}{method:24}{'   '.join(cells)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--out", default="uci", help="name of the JSON file")
    args = parser.parse_args()
    results = {}
    for name in args.sets:
        results[name] = run(name, args.data, args.methods)
        constants = {
            "folds": NUM_FOLDS,
            "steps": NUM_STEPS,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "momentum_of_averages": MOMENTUM,
            "samples": NUM_SAMPLES,
        }
        common.save(args.out, {"constants": constants, "sets": results})


if __name__ == "__main__":
    main()
