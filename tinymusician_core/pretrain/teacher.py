"""Train the teacher: MusicGen's decoder on delayed codec tokens (Copet et al. 2023, arXiv 2306.05284) with a
small T5 encoder beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MusicgenForCausalLM, PreTrainedTokenizerFast, T5Config, T5EncoderModel
from transformers.models.musicgen.configuration_musicgen import MusicgenDecoderConfig

from tinymusician_core.delay import delay, pattern
from tinymusician_core.pretrain.arrange import FRAME_RATE_HZ
from tinymusician_core.pretrain.facts import Classes, FactProbe, classes_of
from tinymusician_core.pretrain.notes import NOTES, PLAYERS, Vocabulary
from tinymusician_core.pretrain.vocabulary import MAX_TOKENS, build_tokenizer
from tinymusician_core.tokens import TokenDataset
from tinymusician_core.training import CHECKPOINT, Trainer, TrainSettings, kept_state

IGNORED = -100
WINDOW_S = 10.0
LENGTHS = ((0.25, 0.45), (1, 0.2), (2, 0.1), (4, 0.25))  # windows of so many times the length, and the share of steps
LONGEST_S = WINDOW_S * max(longer for longer, _ in LENGTHS)
STACKS = ("decoder.model.decoder.layers", "text_encoder.encoder.block", "enc_to_dec_proj")  # what Muon trains
PROBE_WEIGHT = 0.2
EARLIER = "started-from"  # beside the checkpoint: the teacher that it began from
SOON = 10  # frames: a probe of the music counts half as much here as at the beginning
PROBES = ("text_probe.", "music_probe.")
PROBES_DO = ("teach", "look")
OTHERS_SHARE = 0.15  # of the windows: others play than those that the caption and the sound are of
VOCABULARY_ROWS = ("text_encoder.shared.weight", "text_encoder.encoder.embed_tokens.weight")


@dataclass(frozen=True)
class TeacherConfig:
    """Sizes of the language model and the text encoder, and how they are trained.

    `codebook_weights` follow what a listener loses with each codebook (the `figures` stage draws its codes at random
    and measures) and how sure they can be: the first three are music as it is written, the last is how it sounds.
    ValueError unless they are as many as the codebooks, none below 0 and one above.
    """

    width: int = 256
    layers: int = 8
    heads: int = 8
    ffn: int = 768
    codebooks: int = 4
    codebook_size: int = 512
    text_width: int = 128
    text_layers: int = 2
    condition_dropout: float = 0.12
    word_dropout: float = 0.05
    codebook_weights: tuple[float, ...] = (3.0, 2.0, 1.0, 0.6)

    def __post_init__(self) -> None:
        weights = self.codebook_weights
        if len(weights) != self.codebooks or not (min(weights) >= 0.0 and 0.0 < sum(weights) < math.inf):
            raise ValueError(
                f"the codebook weights are {', '.join(f'{weight:g}' for weight in weights)}; "
                f"{self.codebooks} numbers of 0 or more, not all 0, are allowed"
            )

    def decoder_config(self) -> MusicgenDecoderConfig:
        """MusicGen's decoder configuration of this size; the start token is the one after the last code."""
        return MusicgenDecoderConfig(
            vocab_size=self.codebook_size,
            num_codebooks=self.codebooks,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            ffn_dim=self.ffn,
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            layerdrop=0.0,
            pad_token_id=self.codebook_size,
            bos_token_id=self.codebook_size,
            eos_token_id=None,
            max_position_embeddings=2048,
            audio_channels=1,
            tie_word_embeddings=False,
        )

    def text_config(self, vocabulary: int) -> T5Config:
        return T5Config(
            vocab_size=vocabulary,
            d_model=self.text_width,
            d_kv=32,
            d_ff=2 * self.text_width,
            num_layers=self.text_layers,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        )


class TeacherTraining(nn.Module):
    """Text encoder, projection and language model, and the cross-entropy of the delayed codes; with `classes`, probes
    of the facts too."""

    def __init__(
        self, config: TeacherConfig, tokenizer: PreTrainedTokenizerFast, classes: Classes | None = None
    ) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        self.text_encoder = T5EncoderModel(config.text_config(len(tokenizer)))
        self.enc_to_dec_proj = nn.Linear(config.text_width, config.width)
        self.decoder = MusicgenForCausalLM(config.decoder_config())
        self.delays = pattern(config.codebooks)
        if classes is not None:
            self.text_probe, self.music_probe = FactProbe(config.width, classes), FactProbe(config.width, classes)

    def text_states(self, captions: list[str], rng: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Captions -> states [B,S,D] and mask [B,S]; with a generator, words and whole captions are dropped at
        random.

        A dropped caption is all zeros behind an open mask, which attends to nothing, as the unconditional half
        of guidance does.
        """
        batch = self.tokenizer(captions, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        kept = torch.ones(len(captions), dtype=torch.bool)
        if rng is not None:
            words = torch.rand(tokens.shape, generator=rng) < self.config.word_dropout
            tokens = tokens.masked_fill(words & (tokens > self.tokenizer.unk_token_id), self.tokenizer.unk_token_id)
            kept = torch.rand(len(captions), generator=rng) >= self.config.condition_dropout
        device = self.enc_to_dec_proj.weight.device
        tokens, mask, kept = tokens.to(device), mask.to(device), kept.to(device)
        states = self.enc_to_dec_proj(self.text_encoder(input_ids=tokens, attention_mask=mask).last_hidden_state)
        states = states * mask[..., None] * kept[:, None, None]
        return states, mask.masked_fill(~kept[:, None], 1)

    def forward(
        self,
        codes: Tensor,
        captions: list[str],
        rng: torch.Generator | None,
        facts: Sequence[Mapping] | None = None,
        untrue: Tensor | None = None,
        probes_teach: bool = True,
    ) -> dict[str, Tensor]:
        """Codes [B,K,T] (-1 where a clip has ended, or a codebook is not known yet) and captions -> mean cross-entropy,
        and that of each codebook, in nats; with the facts of the pieces what the probes lose too, which counts in
        `loss`: it trains all below them where `probes_teach`, else them alone. Codes that are `untrue` (bool [B,K,T])
        are read, and not learnt."""
        states, mask = self.text_states(captions, rng)
        start = self.config.codebook_size
        codes = codes.to(states.device)
        delayed, valid = delay(codes, self.delays, IGNORED)
        target = delayed.masked_fill(~valid | (delayed < 0), IGNORED)
        if untrue is not None:
            told, _ = delay(untrue.to(codes), self.delays, 0)
            target = target.masked_fill(told.bool(), IGNORED)
        tokens = delayed.masked_fill(delayed < 0, start)
        tokens = F.pad(tokens, (1, 0), value=start)[..., :-1]
        hidden = self.decoder.model(
            input_ids=tokens.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask
        ).last_hidden_state
        losses = [mean_loss(head(hidden), target[:, k]) for k, head in enumerate(self.decoder.lm_heads)]
        weights = torch.tensor(self.config.codebook_weights)
        loss = sum(w * x for w, x in zip(weights / weights.sum(), losses, strict=True))
        probed = {}
        if facts is not None:
            known = (states.detach() != 0).any(-1)  # dropped captions are zeros and tell nothing
            seen, heard = (states, hidden) if probes_teach else (states.detach(), hidden.detach())
            early = 1 / (SOON + torch.arange(target.shape[2], device=target.device))
            probed["text_facts"] = self.text_probe(seen, facts, known.float())
            probed["music_facts"] = self.music_probe(heard, facts, early * (target[:, 0] != IGNORED))
            loss = loss + PROBE_WEIGHT * sum(probed.values())
        return {"loss": loss, **probed, "ce": torch.stack(losses).mean(), **{f"ce{k}": x for k, x in enumerate(losses)}}


def let_others_play(codes: Tensor, companies: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put any of the companies in the place of who plays, in a share of the windows, from beginning to end.

    So the model learns that whoever plays goes on playing, however seldom it meets them: of most companies there are
    few pieces. Who begins, and the sound, are then no longer what the caption and the notes tell.

    Args:
        codes: int64 [B,K,T] as they are, -1 where a clip has ended.
        companies: how many there are.

    Returns:
        The codes, and bool [B,K,T] where they are not to be learnt.
    """
    batch, _, frames = codes.shape
    chosen = torch.rand(batch, generator=rng) < OTHERS_SHARE
    others = torch.randint(companies, (batch, 1), generator=rng).expand(batch, frames)
    there = codes[:, PLAYERS] >= 0
    changed, untrue = codes.clone(), torch.zeros_like(codes, dtype=torch.bool)
    changed[:, PLAYERS] = torch.where(chosen[:, None] & there, others, codes[:, PLAYERS])
    untrue[:, PLAYERS, 0] = chosen
    untrue[:, NOTES:] = chosen[:, None, None]
    return changed, untrue


def mean_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Logits [B,T,V] and codes [B,T] -> the mean cross-entropy (nats) of those that are not IGNORED; 0 where all
    are."""
    total = F.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (target != IGNORED).sum().clamp_min(1)


def rows_by_word(
    rows: Tensor, tokenizer: PreTrainedTokenizerFast, known: Tensor, earlier: PreTrainedTokenizerFast
) -> Tensor:
    """Embeddings [words,D] in which every word that the earlier tokenizer has takes its row of `known`."""
    rows, places = rows.clone(), earlier.get_vocab()
    for word, row in tokenizer.get_vocab().items():
        if word in places:
            rows[row] = known[places[word]]
    return rows


def earlier_weights(folder: Path) -> tuple[dict[str, Tensor], PreTrainedTokenizerFast]:
    """The weights and the words of an earlier teacher: of one in training those to keep, or of one that was
    published (`assets/models/teacher`, its text encoder in `text` beside it).

    Raises:
        ValueError: no teacher in `folder`.
    """
    if (folder / CHECKPOINT).exists() and (folder / "tokenizer").is_dir():
        words = folder / "tokenizer"
        state = kept_state(folder)["weights"]
    elif (folder / "model.safetensors").exists() and (folder.parent / "text").is_dir():
        words = folder.parent / "text"
        state = load_file(folder / "model.safetensors")
        state |= {f"text_encoder.{k}": v.float() for k, v in load_file(words / "model.safetensors").items()}
        state |= dict.fromkeys(VOCABULARY_ROWS, state[VOCABULARY_ROWS[0]])
    else:
        raise ValueError(
            f"{folder} holds no teacher to start from: it needs {CHECKPOINT} and tokenizer, "
            "or model.safetensors and ../text"
        )
    return state, PreTrainedTokenizerFast.from_pretrained(words)


def carry_over(model: TeacherTraining, folder: Path) -> int:
    """Start a teacher from an earlier one in `folder`: its weights, and of its vocabulary the words that both have.
    Words that are new start afresh, as do the probes; returns how many words those are.

    Raises:
        ValueError: no teacher in `folder`, or one of other sizes.
    """
    state, earlier = earlier_weights(folder)
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(PROBES)}
    state = {name: value for name, value in state.items() if not name.startswith(PROBES)}
    for name in VOCABULARY_ROWS:
        state[name] = rows_by_word(own[name], model.tokenizer, state[name], earlier)
    other = [n for n in own if n not in state or state[n].shape != own[n].shape]
    if other or len(state) != len(own):
        raise ValueError(f"the teacher in {folder} has other sizes than this one: {', '.join(other) or 'more weights'}")
    model.load_state_dict(state, strict=False)
    return len(set(model.tokenizer.get_vocab()) - set(earlier.get_vocab()))


def words_of(captions: Iterable[str], folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer for a teacher in `folder`: that of the captions, or the one it was begun with, which may know more
    words.

    Raises:
        ValueError: the captions have words that the teacher in `folder` was not begun with.
    """
    tokenizer = build_tokenizer(captions)
    if not (folder / CHECKPOINT).exists():
        return tokenizer
    earlier = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    new = sorted(set(tokenizer.get_vocab()) - set(earlier.get_vocab()))
    if new:
        raise ValueError(
            f"the captions have words that the teacher in {folder} was not begun with ({', '.join(new[:5])}); "
            "move it away and start a new one from it (--start-from)"
        )
    return earlier


def begin(model: TeacherTraining, folder: Path, start_from: Path | None) -> bool:
    """Make a model ready for training in `folder`: start from an earlier teacher, unless one has begun there. Returns
    whether the one in `folder` has begun so, now or before."""
    earlier = folder / EARLIER
    if not (folder / CHECKPOINT).exists():
        earlier.unlink(missing_ok=True)
        if start_from is not None:
            new = carry_over(model, start_from)
            folder.mkdir(parents=True, exist_ok=True)
            earlier.write_text(f"{start_from}\n", encoding="utf-8")
            print(f"teacher: starts from {start_from}; {new} of {len(model.tokenizer)} words are new", flush=True)
    return earlier.exists()


@torch.no_grad()
def validation(model: TeacherTraining, held_out: TokenDataset, frames: int) -> dict[str, float]:
    """Losses on held-out windows of the usual length, and the mean cross-entropy on the longest ones (nats)."""
    model.eval()
    rng, longest = torch.Generator().manual_seed(1), max(longer for longer, _ in LENGTHS)

    def losses(size: int, length: int) -> dict[str, Tensor]:
        codes, captions, records = held_out.draw(rng, size, length)
        return model(codes, captions, None, [record["facts"] for record in records])

    usual = [losses(16, frames) for _ in range(3)]
    long = [losses(4, round(frames * longest)) for _ in range(3)]
    means = {f"validation_{k}": sum(float(p[k]) for p in usual) / len(usual) for k in usual[0]}
    return means | {"validation_long_ce": sum(float(p["ce"]) for p in long) / len(long)}


def train_teacher(
    work: Path,
    minutes: float,
    batch: int = 12,
    learning_rate: float = 1.5e-3,
    device: str = "cpu",
    start_from: Path | None = None,
    patience: int | None = None,
    codebook_weights: Sequence[float] | None = None,
    probes: str | None = None,
) -> None:
    """Train (or go on training) in `work/teacher` on `work/tokens`; a new teacher may start from an earlier one's
    weights, with a fresh optimiser. Its probes start afresh too and only look, until they are told to "teach": what
    they do not know yet would pull at what it knows, but where they never teach it heeds captions less. Those
    of any other teacher teach, unless they are told to "look". With `patience` it ends when so many validations on end,
    five minutes apart, have brought nothing, and the best weights are those to keep.

    A step sees `batch` windows of WINDOW_S, or fewer longer ones, or more shorter ones, in the shares of LENGTHS, so
    that the model knows the positions of long clips, and beginnings, where the caption tells most: a step of the
    longest has three captions, one of the shortest 48. Every step costs about the same.

    Raises:
        ValueError: no tokens, words that the teacher in `work` was not begun with, no teacher to start from, codebook
            weights that `TeacherConfig` does not allow, or probes that do something else.
    """
    if probes not in (None, *PROBES_DO):
        raise ValueError(f"probes are to {probes!r}; {' or '.join(PROBES_DO)} is allowed")
    config = TeacherConfig() if codebook_weights is None else TeacherConfig(codebook_weights=tuple(codebook_weights))
    train, held_out = TokenDataset(work / "tokens", "train"), TokenDataset(work / "tokens", "validation")
    tokenizer = words_of((c for r in train.records for c in r["captions"]), work / "teacher")
    torch.manual_seed(0)
    model = TeacherTraining(config, tokenizer, classes_of([r["facts"] for r in train.records + held_out.records]))
    teach = not begin(model, work / "teacher", start_from) if probes is None else probes == "teach"
    settings = TrainSettings(
        learning_rate=learning_rate,
        minutes=minutes,
        warm_up_steps=200,
        weight_decay=0.05,
        betas=(0.9, 0.95),
        muon=STACKS,
        ema=0.998,
        log_every=25,
        patience=patience,
        monitor="validation_ce",  # the loss counts the probes too, which go on learning
    )
    trainer = Trainer(model, settings, work / "teacher", device)
    trainer.resume()
    tokenizer.save_pretrained(work / "teacher" / "tokenizer")
    frames, companies = round(WINDOW_S * FRAME_RATE_HZ), len(Vocabulary.read(work / "notes.json").players.companies)
    shares = torch.tensor([share for _, share in LENGTHS])

    def loss(rng: torch.Generator, _: float) -> dict[str, Tensor]:
        model.train()
        longer = LENGTHS[int(torch.multinomial(shares, 1, generator=rng))][0]
        codes, captions, records = train.draw(rng, max(1, round(batch / longer)), round(frames * longer))
        codes, untrue = let_others_play(codes, companies, rng)
        facts = [record["facts"] for record in records]
        return model(codes, captions, rng, facts, untrue, probes_teach=teach)

    trainer.run(
        loss,
        lambda: validation(model, held_out, frames),
        lambda progress: print(f"teacher: {progress}", flush=True),
    )
