"""A MusicGen of random weights as a folder, in the very format of facebook/musicgen-small.

    python -m tinymusician_core.measure.random_musicgen --shape small -o DIR

It makes noise, but takes the memory, the disk and the time that the real one takes: for trying out what is done to a
full-size model on a machine that has no weights of Meta's. Our own `load`, plain transformers' from_pretrained and
AutoProcessor read it.
"""

from __future__ import annotations

import os
import string
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import domain
from ..folders import whole_folder
from ..stored import quiet_transformers
from ..text import EXAMPLE
from .peer_models import CFG, TOP_K, make_musicgen
from .peers import SHAPES

SPECIAL = ("<pad>", "</s>", "<unk>")
MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # what a sentencepiece tokenizer has in the place of a space
WORD, CHARACTER = -1.0, -10.0  # scores: the words that are known are never spelt


def make_tokenizer():
    """A T5 tokenizer of the phrases that name music and, for all other words, of single characters.

    A prompt has about as many tokens as with T5's own vocabulary, which is not ours to ship.
    """
    from transformers import T5Tokenizer

    phrases = [EXAMPLE, *domain.TONICS, *domain.MODES, "in", "the", "and", "with"]
    for named in (domain.PLAYED_BY, domain.TEMPO, domain.MOOD, domain.KIND):
        phrases += [phrase for some in named.values() for phrase in some]
    words = sorted({word for phrase in phrases for word in phrase.split() if len(word) > 1})
    characters = string.ascii_letters + string.digits + string.punctuation
    scores = {f"{MARK}{word}": WORD for word in words}
    scores |= dict.fromkeys((MARK, *characters, *(f"{MARK}{character}" for character in characters)), CHARACTER)
    return T5Tokenizer(vocab=[*((name, 0.0) for name in SPECIAL), *scores.items()], extra_ids=0)


def save_random_musicgen(
    folder: str | os.PathLike, shape: str = "small", layers: int | None = None, seed: int = 0
) -> Path:
    """Write a MusicGen of random weights, with tokenizer, processor and generation settings, in float32.

    Args:
        folder: to make; it appears whole or not at all.
        shape: a name in `peers.SHAPES`.
        layers: of the decoder; those of the shape where None.
        seed: of the weights.

    Raises:
        ValueError: no such shape or number of layers, or a folder that holds something.
        OSError: it cannot be written, or the disk is full.
    """
    if shape not in SHAPES:
        raise ValueError(f"no such shape: {shape!r}; allowed: {', '.join(SHAPES)}")
    layers = SHAPES[shape].layers if layers is None else layers
    if not 1 <= layers <= 100:
        raise ValueError(f"layers must be a whole number from 1 to 100, got {layers}")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} holds files already; give a new folder or an empty one")
    from transformers import EncodecFeatureExtractor, MusicgenProcessor

    with whole_folder(folder, "musicgen") as partial:
        model = make_musicgen(SHAPES[shape], layers, seed)
        model.generation_config.update(do_sample=True, guidance_scale=CFG, top_k=TOP_K, max_length=1500)
        codec = model.config.audio_encoder
        sound = EncodecFeatureExtractor(feature_size=codec.audio_channels, sampling_rate=codec.sampling_rate)
        with quiet_transformers():
            model.save_pretrained(partial)
            MusicgenProcessor(sound, make_tokenizer()).save_pretrained(partial)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    """Make a folder; the exit code is 0, or 1 for a failure, or 2 for a wrong argument."""
    from ..cli import Parser

    parser = Parser(prog="python -m tinymusician_core.measure.random_musicgen", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", default="small", choices=list(SHAPES), help="its sizes (default small)")
    parser.add_argument("--layers", type=int, help="of the decoder (default: those of the shape)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default 0)")
    parser.add_argument("-o", "--output", required=True, help="the folder to make; small takes 2.4 GB")
    options = parser.parse_args(argv)
    try:
        folder = save_random_musicgen(options.output, options.shape, options.layers, options.seed)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"wrote {folder}: {size / 1e6:,.0f} MB of random weights in MusicGen's format")
    return 0


if __name__ == "__main__":
    sys.exit(main())
