"""EnCodec (arXiv 2210.13438) through transformers: the codec of the real MusicGen checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import check_audio, check_codes


class EncodecCodec(nn.Module):
    """A transformers EncodecModel behind the `Codec` interface.

    A stereo MusicGen has a mono EnCodec and twice its codebooks, left and right alternating.

    Args:
        model: the EncodecModel.
        audio_channels: the channels C that the language model makes.
    """

    def __init__(self, model: nn.Module, audio_channels: int = 1):
        super().__init__()
        config = model.config
        if audio_channels not in (1, 2) or (audio_channels == 2 and config.audio_channels != 1):
            raise ValueError(
                f"audio_channels must be 1, or 2 over a mono EnCodec, got {audio_channels} over {config.audio_channels}"
            )
        if config.normalize or config.chunk_length_s is not None:
            raise ValueError("an EnCodec that normalises or cuts into chunks cannot carry MusicGen's plain codes")
        self.model = model
        self._streams = audio_channels
        self.sample_rate_hz = int(config.sampling_rate)
        self.frame_rate_hz = config.sampling_rate / config.hop_length
        self.codebooks = config.num_quantizers * audio_channels
        self.codebook_size = int(config.codebook_size)
        self.channels = config.audio_channels * audio_channels

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B,K,T] -> sound float32 [B,C,N].

        Raises:
            ValueError: codes of another shape or type, or outside the codebook.
        """
        check_codes(self, codes)
        streams = [codes[:, i :: self._streams] for i in range(self._streams)]
        sounds = [self.model.decode(stream.unsqueeze(0), [None]).audio_values for stream in streams]
        return torch.cat(sounds, dim=1).float()

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Sound float32 [B,C,N] -> codes int64 [B,K,T].

        Raises:
            ValueError: sound of another shape.
        """
        check_audio(self, audio)
        bandwidth = self.model.config.target_bandwidths[-1]
        parts = audio.chunk(self._streams, dim=1)
        coded = [self.model.encode(part, bandwidth=bandwidth).audio_codes[0] for part in parts]
        return torch.stack(coded, dim=2).flatten(1, 2)
