"""The engine: a lean step decoder for MusicGen-family models, its cache, sampling, and the loop that yields frames."""

from .cache import Cache
from .decoder import Decoder, DecoderConfig
from .loop import frames
from .sampling import Sampler

__all__ = ["Cache", "Decoder", "DecoderConfig", "Sampler", "frames"]
