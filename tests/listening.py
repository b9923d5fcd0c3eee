"""Sound that tests of the listener make themselves, and pieces to go with it."""

from dataclasses import fields

import numpy as np

from tinymusician_core.pretrain.arrange import Facts, Piece

RATE = 32000


def noise(seconds, seed=0, channels=1, rate=RATE):
    """White noise, float32 [C,N]."""
    return (np.random.default_rng(seed).standard_normal((channels, round(seconds * rate))) * 0.1).astype(np.float32)


def tone(hertz, seconds, rate=RATE, partials=1):
    """A tone with partials that fall as 1/k, float32 [N]."""
    t = np.arange(round(seconds * rate)) / rate
    return sum(np.sin(2 * np.pi * hertz * k * t) / k for k in range(1, partials + 1)).astype(np.float32) * 0.2


def make_piece(name, tracks, frames, split="train", **facts):
    """A piece, a tune of its own; facts that are not given are empty."""
    given = {field.name: facts.get(field.name, "") for field in fields(Facts)}
    return Piece(name, name, split, frames, (0,), tuple(tracks), Facts(**given))
