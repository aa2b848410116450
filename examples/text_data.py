"""Sentences of film reviews, of their words shuffled, and of other things.

Sentences are lists of words in lower case; networks take them as integers.
"""

import itertools
import pathlib
import re

import numpy as np

PAD, UNKNOWN = 0, 1

# A small corpus of our own, for a machine without the film reviews.
_GOOD = ("charming", "gripping", "tender", "funny", "clever", "moving", "bold", "warm")
_BAD = ("tedious", "clumsy", "hollow", "dull", "messy", "cold", "lazy", "shallow")
_PARTS = ("plot", "script", "cast", "music", "ending", "dialogue", "camera", "pace")
_FRAMES = (
    "the {part} is {word} and the {other} is {same}",
    "a {word} film with a {same} {part}",
    "for all its {part} , this is never {opposite} and mostly {word}",
    "i found the {part} {word} , and the {other} is not {opposite} either",
    "few films are as {word} as this one , whose {part} is {same}",
    "what a {word} {part} , and what a {same} {other}",
)


def load(folder=None, seed=0):
    """Returns `(training sentences, labels), (test sentences, labels)`.

    Args:
        folder: with `rt-polarity.pos` and `rt-polarity.neg`, the 10,662 sentences of
            Pang and Lee, "Seeing stars: exploiting class relationships for sentiment
            categorization with respect to rating scales", 2005. None for a small
            corpus of our own, of sentences made by a few rules.
        seed: of the split, 80 % for training.

    Raises:
        FileNotFoundError: if the folder has no such files.
    """
    rng = np.random.default_rng(seed)
    if folder is None:
        sentences, labels = _made(rng)
    else:
        sentences, labels = [], []
        for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
            text = (pathlib.Path(folder) / name).read_text(encoding="utf-8")
            lines = [line.split() for line in text.splitlines()]
            sentences += lines
            labels += [label] * len(lines)
    order = rng.permutation(len(sentences))
    sentences = [sentences[i] for i in order]
    labels = np.asarray(labels, "int32")[order]
    count = len(sentences) * 4 // 5
    return (sentences[:count], labels[:count]), (sentences[count:], labels[count:])


def _made(rng):
    """Sentences of our rules; a tenth of the labels are wrong."""
    sentences, labels = [], []
    for frame, label, part, word in itertools.product(
        _FRAMES, (0, 1), _PARTS, range(len(_GOOD))
    ):
        own, others = (_GOOD, _BAD) if label else (_BAD, _GOOD)
        text = frame.format(
            part=part,
            other=rng.choice([x for x in _PARTS if x != part]),
            word=own[word],
            same=rng.choice(own),
            opposite=rng.choice(others),
        )
        sentences.append(text.split())
        labels.append(label if rng.uniform() > 0.1 else 1 - label)
    return sentences, labels


def other_text(count, length, seed=0):
    """Returns sentences about data sets, of the descriptions in scikit-learn."""
    from sklearn import datasets

    loaders = (
        datasets.load_breast_cancer,
        datasets.load_diabetes,
        datasets.load_digits,
        datasets.load_iris,
        datasets.load_linnerud,
        datasets.load_wine,
    )
    words = []
    for loader in loaders:
        words += re.findall(r"[a-z']+|[.,;()]", loader().DESCR.lower())
    starts = np.random.default_rng(seed).integers(0, len(words) - length, count)
    return [words[start : start + length] for start in starts]


def shuffled(sentences, seed=0):
    """Returns the sentences with their words in random order."""
    rng = np.random.default_rng(seed)
    return [list(rng.permutation(sentence)) for sentence in sentences]


class Vocabulary:
    """Numbers of words: those that occur at least twice in the sentences.

    Args:
        sentences: lists of words.
        size: greatest number of words, with the two of padding and unknown words.
    """

    def __init__(self, sentences, size):
        words, counts = np.unique(np.concatenate(sentences), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        kept = [words[i] for i in order if counts[i] > 1][: size - 2]
        self.numbers = {word: number for number, word in enumerate(kept, start=2)}

    def __len__(self):
        return len(self.numbers) + 2

    def __call__(self, sentences, length):
        """Returns int32 `(n, length)`, cut or padded at the end."""
        x = np.full((len(sentences), length), PAD, "int32")
        for row, sentence in zip(x, sentences):
            numbers = [self.numbers.get(word, UNKNOWN) for word in sentence[:length]]
            row[: len(numbers)] = numbers
        return x
