"""The demo family's codec: log-magnitude spectrum -> four codes a frame -> complex spectrum -> wave.

In the manner of Vocos (Siuzdak 2023, arXiv 2306.00814): ConvNeXt blocks on STFT frames and an inverse STFT
instead of transposed convolutions, beside oscillators for what is held. The first codebook holds the score, as Mimi's
first codebook holds the words (Defossez et al. 2024, arXiv 2410.00037); where the codec has them, the second holds what
accompanies the melody and the third who plays; the others are a residual quantizer for everything else. All are added.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..onednn import Linear
from . import check_audio, check_codes
from .oscillators import Oscillators
from .pitch import PitchSpectrum
from .spectral_stream import SpectralStream
from .stream import CodecStream, lookahead

MODEL_TYPE = "tinymusician-spectral-codec"
LOG_FLOOR = 1e-5
MAX_LOG_MAGNITUDE = 6.0


@dataclass(frozen=True)
class SpectralConfig:
    """Sizes of the codec. `stride` STFT hops make one code frame: 32000 / (320 * 4) = 25 frames a second.

    With a `harmony_dim` above 0 the second codebook is for harmony, and the encoder also sees a spectrum of `pitch_fft`
    samples, long enough to tell low notes apart. `note_blocks` give score and harmony a wider view than the sound has.
    With `note_ages` above 0 the first codebook has an entry for every note and the frames that it has lasted
    (`count_ages`). With a `players_dim` above 0 the codebook after that of harmony says who plays, the same in all
    frames of what is encoded. `oscillators` are sinusoids that the decoder lets run through held notes.
    """

    sample_rate_hz: int = 32000
    n_fft: int = 1280
    hop: int = 320
    stride: int = 4
    codebooks: int = 4
    codebook_size: int = 512
    score_dim: int = 32
    harmony_dim: int = 0
    note_blocks: int = 0
    note_ages: int = 0
    players_dim: int = 0
    pitch_fft: int = 8192
    latent_dim: int = 48
    encoder_dim: int = 192
    encoder_blocks: int = 3
    decoder_dim: int = 256
    decoder_blocks: int = 5
    oscillators: int = 0

    @property
    def bins(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def samples_per_frame(self) -> int:
        return self.hop * self.stride

    @property
    def sound_codebooks(self) -> int:
        return self.codebooks - 1 - (self.harmony_dim > 0) - (self.players_dim > 0)


class Latents(NamedTuple):
    """What a frame's codes stand for: score [B,T,score_dim], harmony [B,T,harmony_dim] and players [B,T,players_dim]
    (None where the codec has no codebook for them), and sound [B,T,latent_dim]."""

    score: Tensor
    harmony: Tensor | None
    players: Tensor | None
    sound: Tensor


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a two-layer perceptron a frame, with a scaled residual.

    [B,T,D] -> [B,T,D], with zeros beyond both ends.
    """

    def __init__(self, dim: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = Linear(dim, hidden)
        self.down = Linear(hidden, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self._add(x, self.conv(x.transpose(1, 2)).transpose(1, 2))

    def valid(self, x: Tensor) -> Tensor:
        """The same without padding: [B,n + kernel - 1,D] -> [B,n,D]."""
        conv = self.conv
        y = F.conv1d(x.transpose(1, 2), conv.weight, conv.bias, groups=conv.groups).transpose(1, 2)
        return self._add(x[:, conv.padding[0] :][:, : y.shape[1]], y)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))


class SpectralEncoder(nn.Module):
    """Wave [B,1,N] -> what a frame's codes are to stand for.

    Its view is about two frames either side, so that a note gives much the same codes whatever stands around it;
    where it hears harmony, its pitch spectrum reaches as far again, and `note_blocks` reach further.
    """

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder_dim
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.inlet = Linear(config.bins, dim)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 2 * dim, 5) for _ in range(config.encoder_blocks))
        self.gather = Linear(config.stride * dim, dim)
        self.mix = ConvNeXtBlock(dim, 2 * dim, 3)
        self.norm = nn.LayerNorm(dim)
        self.note_blocks = nn.ModuleList(ConvNeXtBlock(dim, 2 * dim, 5) for _ in range(config.note_blocks))
        if config.note_blocks:
            self.note_norm = nn.LayerNorm(dim)
        self.to_score = Linear(dim, config.score_dim)
        self.to_latent = Linear(dim, config.latent_dim)
        self.pitches = None
        if config.harmony_dim:
            self.pitches = PitchSpectrum(config.sample_rate_hz, config.pitch_fft, config.samples_per_frame)
            self.from_pitches = Linear(self.pitches.bins, dim)
            self.to_harmony = Linear(dim, config.harmony_dim)
        if config.players_dim:
            self.to_players = Linear(dim, config.players_dim)

    def forward(self, audio: Tensor) -> Latents:
        x = self.frames(audio)
        return Latents(*self.notes(x), self.to_latent(self.norm(x)))

    def frames(self, audio: Tensor) -> Tensor:
        """Wave [B,1,N] -> what is seen of each code frame [B,T,encoder_dim], for notes and sound alike."""
        c = self.config
        spectrum = torch.stft(audio[:, 0], c.n_fft, c.hop, window=self.window, center=True, return_complex=True)
        frames = audio.shape[-1] // c.samples_per_frame
        log_magnitude = spectrum.abs().clamp_min(LOG_FLOOR).log().transpose(1, 2)[:, : frames * c.stride]
        x = self.inlet(log_magnitude / 4 + 1)
        for block in self.blocks:
            x = block(x)
        x = self.gather(x.reshape(x.shape[0], frames, -1))
        if self.pitches is not None:
            x = x + self.from_pitches(self.pitches(audio[:, 0]) / 4 + 1)
        return self.mix(x)

    def notes(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """`frames` -> what stands for the score, and for harmony and players where the codec has codebooks for them."""
        for block in self.note_blocks:
            x = block(x)
        x = self.note_norm(x) if self.config.note_blocks else self.norm(x)
        harmony = self.to_harmony(x) if self.config.harmony_dim else None
        return self.to_score(x), harmony, self.to_players(x) if self.config.players_dim else None


class SpectralDecoder(nn.Module):
    """Codes -> wave: look the codes up, add them, spread each frame over `stride` hops, predict magnitude and phase,
    invert the STFT."""

    def __init__(self, config: SpectralConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.decoder_dim
        self.register_buffer("window", torch.hann_window(config.n_fft), persistent=False)
        self.score_codebook = nn.Embedding(config.codebook_size, config.score_dim)
        self.codebooks = nn.ModuleList(
            nn.Embedding(config.codebook_size, config.latent_dim) for _ in range(config.sound_codebooks)
        )
        self.harmony_codebook = None
        if config.harmony_dim:
            self.harmony_codebook = nn.Embedding(config.codebook_size, config.harmony_dim)
            self.from_harmony = Linear(config.harmony_dim, dim)
        self.players_codebook = None
        if config.players_dim:
            self.players_codebook = nn.Embedding(config.codebook_size, config.players_dim)
            self.from_players = Linear(config.players_dim, dim)
        self.from_score = Linear(config.score_dim, dim)
        self.from_latent = Linear(config.latent_dim, dim)
        self.frame_block = ConvNeXtBlock(dim, 2 * dim, 3)
        self.spread = Linear(dim, config.stride * 64)
        self.widen = Linear(64, dim)
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 2 * dim, 7) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(dim)
        self.magnitude = Linear(dim, config.bins)
        self.phase = Linear(dim, config.bins)
        self.oscillators = None
        if config.oscillators:
            sizes = (config.oscillators, config.sample_rate_hz, config.n_fft, config.hop)
            self.oscillators = Oscillators(dim, *sizes)

    def look_up(self, codes: Tensor) -> Latents:
        """Codes [B,K,T] -> what they stand for; the vectors of the sound's codebooks are summed."""
        places = iter(codes.unbind(1))
        score = self.score_codebook(next(places))
        harmony = None if self.harmony_codebook is None else self.harmony_codebook(next(places))
        players = None if self.players_codebook is None else self.players_codebook(next(places))
        return Latents(score, harmony, players, sum(book(c) for book, c in zip(self.codebooks, places, strict=True)))

    def frames(self, latents: Latents) -> Tensor:
        """What the codes of each frame stand for -> the first block's input [B,T,decoder_dim]."""
        x = self.from_score(latents.score) + self.from_latent(latents.sound)
        if latents.harmony is not None:
            x = x + self.from_harmony(latents.harmony)
        return x if latents.players is None else x + self.from_players(latents.players)

    def forward(self, latents: Latents, alone: Tensor | None = None) -> Tensor:
        """What the codes of T frames stand for -> wave [B,1,T * samples_per_frame].

        In training the oscillators may be left `alone` (bool [B]) with the bins that they reach.
        """
        c = self.config
        x = self.frame_block(self.frames(latents))
        x = self.spread_frames(x)
        for block in self.blocks:
            x = block(x)
        spectrum = self.spectrum(x, alone=alone).transpose(1, 2)
        spectrum = torch.cat([spectrum, spectrum[..., -1:]], dim=-1)
        wave = torch.istft(
            spectrum,
            c.n_fft,
            c.hop,
            window=self.window,
            center=True,
            length=latents.sound.shape[1] * c.samples_per_frame,
        )
        return wave[:, None]

    def spread_frames(self, x: Tensor) -> Tensor:
        """Frames [B,t,D] -> STFT hops [B,t * stride,D]."""
        return self.widen(self.spread(x).reshape(x.shape[0], x.shape[1] * self.config.stride, -1))

    def spectrum(self, x: Tensor, first: int = 0, alone: Tensor | None = None) -> Tensor:
        """What the last block gave [B,t,D] -> complex STFT columns [B,t,bins], from number `first` of the sound on."""
        x = self.norm(x)
        magnitude = self.magnitude(x).float().clamp(max=MAX_LOG_MAGNITUDE).exp()
        if alone is not None:
            reached = torch.arange(magnitude.shape[-1], device=x.device) < self.oscillators.reach
            magnitude = magnitude.masked_fill(alone[:, None, None] & reached, 0.0)
        columns = torch.polar(magnitude, self.phase(x).float())
        return columns if self.oscillators is None else columns + self.oscillators(x, first)


class SpectralCodec(nn.Module):
    """The whole codec. Only the decoder is needed to generate; the encoder is read from its own file when first used.

    Attributes:
        lookahead_frames: how many frames later than a frame's codes its sound is final.
    """

    channels = 1

    def __init__(self, config: SpectralConfig, encoder_file: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.decoder = SpectralDecoder(config)
        self.encoder_file = encoder_file
        self._encoder: SpectralEncoder | None = None

    @property
    def sample_rate_hz(self) -> int:
        return self.config.sample_rate_hz

    @property
    def frame_rate_hz(self) -> float:
        return self.config.sample_rate_hz / self.config.samples_per_frame

    @property
    def codebooks(self) -> int:
        return self.config.codebooks

    @property
    def codebook_size(self) -> int:
        return self.config.codebook_size

    @classmethod
    def from_folder(cls, folder: str | Path) -> SpectralCodec:
        """Read config.json and decoder.safetensors (half precision on disk, float32 in memory)."""
        folder = Path(folder)
        record = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if record.pop("model_type", None) != MODEL_TYPE:
            raise ValueError(
                f"{folder} holds no spectral codec (its config.json does not say model_type {MODEL_TYPE!r})"
            )
        codec = cls(SpectralConfig(**record), folder / "encoder.safetensors")
        codec.decoder.load_state_dict({k: v.float() for k, v in load_file(folder / "decoder.safetensors").items()})
        return codec.eval()

    def save(self, folder: str | Path, encoder: SpectralEncoder | None = None) -> None:
        """Write the folder that `from_folder` reads; the encoder too, where one is given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps({"model_type": MODEL_TYPE, **asdict(self.config)}, indent=2) + "\n", encoding="utf-8"
        )
        save_file(
            {k: v.half().contiguous() for k, v in self.decoder.state_dict().items()}, folder / "decoder.safetensors"
        )
        if encoder is not None:
            save_file(
                {k: v.half().contiguous() for k, v in encoder.state_dict().items()}, folder / "encoder.safetensors"
            )

    @property
    def encoder(self) -> SpectralEncoder:
        """The encoder, read on first use; FileNotFoundError where its file is not there."""
        if self._encoder is None:
            if self.encoder_file is None or not self.encoder_file.exists():
                raise FileNotFoundError(
                    f"this codec was saved without its encoder (no {self.encoder_file}); it can decode only"
                )
            encoder = SpectralEncoder(self.config)
            encoder.load_state_dict({k: v.float() for k, v in load_file(self.encoder_file).items()})
            self._encoder = encoder.eval()
        return self._encoder

    @property
    def lookahead_frames(self) -> int:
        return lookahead(SpectralStream(self.decoder).ready, self.config.samples_per_frame)

    @torch.inference_mode()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B,K,T] -> wave float32 [B,1,N], N = T * samples_per_frame.

        Raises:
            ValueError: codes of another shape or type, or outside the codebook.
        """
        check_codes(self, codes)
        return self.decoder(self.decoder.look_up(codes))

    def stream(self, batch: int = 1) -> CodecStream:
        """A decode of codes that come in chunks; the sound of a frame is final `lookahead_frames` frames later.

        Raises:
            ValueError: a batch below 1.
        """
        return CodecStream(self, batch, SpectralStream(self.decoder).push)

    @torch.inference_mode()
    def encode(self, audio: Tensor) -> Tensor:
        """Wave float32 [B,1,N] -> codes int64 [B,K,T]; a last frame that is not whole is padded with silence.

        Raises:
            ValueError: sound of another shape.
            FileNotFoundError: a codec that was saved without its encoder.
        """
        check_audio(self, audio)
        latents = self.encoder(F.pad(audio, (0, -audio.shape[-1] % self.config.samples_per_frame)))
        entries = torch.arange(self.codebook_size, device=audio.device)
        score, latent = nearest(latents.score, self.decoder.score_codebook(entries)), latents.sound
        codes = [count_ages(score, self.config.note_ages) if self.config.note_ages else score]
        if self.decoder.harmony_codebook is not None:
            codes.append(nearest(latents.harmony, self.decoder.harmony_codebook(entries)))
        if self.decoder.players_codebook is not None:
            mean = latents.players.mean(1, keepdim=True)
            codes.append(nearest(mean, self.decoder.players_codebook(entries)).expand_as(score))
        for book in self.decoder.codebooks:
            codes.append(nearest(latent, book(entries)))
            latent = latent - book(codes[-1])
        return torch.stack(codes, dim=1)


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index [...] of the codebook row [V,D] nearest to each vector of x [...,D] in Euclidean distance."""
    distance = codebook.pow(2).sum(1) - 2 * x @ codebook.t()
    return distance.argmin(-1)


def count_ages(codes: Tensor, ages: int) -> Tensor:
    """Codes of melody [B,T] with the frames that each note has lasted counted from where it begins.

    A code is 0 for rest, else 1 + ages * note + age; sound tells when a note begins, but not how long ago it began.
    """
    note, age = torch.where(codes > 0, (codes - 1) // ages, -1), torch.where(codes > 0, (codes - 1) % ages, 0)
    frame = torch.arange(codes.shape[1], device=codes.device).expand_as(codes)
    begins = (age == 0) | (note != note.roll(1, dims=1))
    start = torch.where(begins, frame, -ages)
    start[:, 0] = -age[:, 0]
    since = frame - start.cummax(dim=1).values
    return torch.where(codes > 0, 1 + ages * note + since.clamp(max=ages - 1), 0)
