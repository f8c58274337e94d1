#!/usr/bin/env python3
"""Averages the weights of two model folders of one lineage: FOLDER = (1 - SHARE) * A + SHARE * B.

A fine-tuned model and the one it started from lie in one basin, and a point between them can keep what each does better
(robust fine-tuning, arXiv 2109.01903). Vocabulary rows that only A has stay A's.
"""
import argparse
from pathlib import Path

from export import export
from gamegen import checkpoint


def blend(a: checkpoint.Model, b: checkpoint.Model, share: float) -> checkpoint.Model:
    """Moves A's weights towards B's, in place."""
    for name, part in a.parts.items():
        other = b.parts[name].state_dict()
        for key, value in part.state_dict().items():
            rows = min(len(value), len(other[key])) if value.dim() else None
            value[:rows].lerp_(other[key][:rows], share)
    return a


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", type=Path)
    parser.add_argument("b", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    export(blend(checkpoint.load_model(args.a), checkpoint.load_model(args.b), args.share), args.folder)


if __name__ == "__main__":
    main()
