"""What the command lines of the examples share."""

import argparse
import pathlib

import data


def make_parser(doc, epochs):
    """Parser of the shared options.

    Args:
        doc: the script's docstring, of which the first line is shown.
        epochs: default number of epochs by data set, for the help.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--dataset", choices=data.DATASETS, default="digits")
    parser.add_argument("--data-dir", help="of tensorflow_datasets, for MNIST")
    defaults = ", ".join(f"{name} {count}" for name, count in epochs.items())
    parser.add_argument("--epochs", type=int, help=f"default: {defaults}")
    add_common(parser)
    return parser


def add_common(parser):
    """Adds the options that every example has."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        default=pathlib.Path(__file__).parent / "output",
        help="folder of the pictures",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="few rows and epochs: only to try"
    )


def load(args, smoke_rows=100):
    """`data.load` of the chosen set; with `--smoke` a few rows of each split."""
    splits = data.load(args.dataset, args.data_dir)
    if not args.smoke:
        return splits
    return tuple(tuple(part[:smoke_rows] for part in split) for split in splits)


def save_figures(figures, folder):
    """Writes each matplotlib figure as `<name>.png` and says where."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=150)
        print(f"wrote {path}")
