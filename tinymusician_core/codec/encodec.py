"""EnCodec (arXiv 2210.13438), the codec of the real MusicGen checkpoints: transformers' encoder, our own decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import check_audio, check_codes
from .seanet import Seanet
from .stream import CodecStream, Decode, lookahead

CHUNK_FRAMES = 500  # a longer sound is decoded in stretches of this length, so that memory does not grow


class EncodecCodec(nn.Module):
    """A transformers EncodecModel behind the `Codec` interface; the model itself is not kept, nor changed.

    A stereo MusicGen has a mono EnCodec and twice its codebooks, left and right alternating.

    Args:
        model: the EncodecModel; its encoder and quantizer are shared, its decoder's weights copied.
        audio_channels: the channels C that the language model makes.

    Raises:
        ValueError: other channels than 1 or 2, or an EnCodec of another kind than MusicGen's.

    Attributes:
        lookahead_frames: how many frames later than a frame's codes its sound is final: 4 at MusicGen's EnCodec, whose
            newest sample depends on codes up to 2402 samples ahead of it.
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
        self.config = config
        self.encoder, self.quantizer = model.encoder, model.quantizer
        self.decoder = Seanet(model.decoder)
        self._streams = audio_channels
        self.sample_rate_hz = int(config.sampling_rate)
        self.frame_rate_hz = config.sampling_rate / config.hop_length
        self.codebooks = config.num_quantizers * audio_channels
        self.codebook_size = int(config.codebook_size)
        self.channels = config.audio_channels * audio_channels
        self.lookahead_frames = lookahead(self.decoder.ready, config.hop_length)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B,K,T] -> sound float32 [B,C,N].

        Raises:
            ValueError: codes of another shape or type, or outside the codebook.
        """
        check_codes(self, codes)
        push = self._decoding()
        last = -(-codes.shape[2] // CHUNK_FRAMES) - 1
        return torch.cat([push(part, i == last) for i, part in enumerate(codes.split(CHUNK_FRAMES, dim=2))], dim=2)

    def stream(self, batch: int = 1) -> CodecStream:
        """A decode of codes that come in chunks; the sound of a frame is final `lookahead_frames` frames later.

        Raises:
            ValueError: a batch below 1.
        """
        return CodecStream(self, batch, self._decoding())

    def _decoding(self) -> Decode:
        """A function that decodes chunk after chunk: codes [B,K,t], whether they are the last -> sound [B,C,n]."""
        net = self.decoder.open()
        books = [layer.codebook.embed for layer in self.quantizer.layers]

        def push(codes: Tensor, last: bool) -> Tensor:
            batch, frames = codes.shape[0], codes.shape[2]
            shape = (batch, len(books), self._streams, frames)
            mono = codes.reshape(shape).transpose(1, 2).flatten(0, 1)  # [B * streams,K,t]
            vectors = sum(nn.functional.embedding(mono[:, k], book) for k, book in enumerate(books))
            sound = net.push(vectors, last)
            return sound.transpose(1, 2).reshape(batch, self.channels, sound.shape[1])

        return push

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Sound float32 [B,C,N] -> codes int64 [B,K,T]; a last frame that is not whole is padded.

        Raises:
            ValueError: sound of another shape.
        """
        check_audio(self, audio)
        mono = audio.flatten(0, 1).unsqueeze(1) if self._streams == 2 else audio
        coded = self.quantizer.encode(self.encoder(mono), self.config.target_bandwidths[-1])  # [K,B*,T]
        codes = coded.unflatten(1, (-1, self._streams)).permute(1, 0, 2, 3)
        return codes.flatten(1, 2)
