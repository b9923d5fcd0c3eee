"""From prompts to the text states that the decoder attends to."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .guidance import ScaleInput
from .records import check_prompt

EXAMPLE = "a calm piano waltz"

_PUNCTUATION = " \n\t.,;:!?()[]\"'-–—…"


class TextEncoder(nn.Module):
    """A tokenizer, a T5 encoder (arXiv 1910.10683), and the projection to the decoder's width.

    Args:
        tokenizer: a transformers tokenizer.
        encoder: a transformers T5EncoderModel.
        projection: a module from the encoder's width to D; None where the two are the same.
        guidance: tells the states of a guidance scale, in a model that takes it as an input.
    """

    def __init__(
        self,
        tokenizer,
        encoder: nn.Module,
        projection: nn.Module | None = None,
        guidance: ScaleInput | None = None,
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.projection = nn.Identity() if projection is None else projection
        self.guidance = guidance

    @property
    def device(self) -> torch.device:
        return next(chain(self.parameters(), self.buffers())).device

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Prompts -> token ids int64 [B,S] and mask int64 [B,S], padded to the longest."""
        batch = self.tokenizer(list(prompts), padding=True, return_tensors="pt")
        return batch["input_ids"], batch["attention_mask"]

    def forward(self, tokens: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
        """Token ids and mask [B,S] -> text states [B,S,D], zero where there is padding, as transformers does.

        `scale` is the guidance that the language model is to be told of, where it takes it as an input.
        """
        states = self.projection(self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state)
        if scale is not None:
            states = self.guidance(states, torch.full((len(states),), scale, device=states.device))
        return states * mask.unsqueeze(2)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], scale: float | None = None) -> tuple[Tensor, Tensor]:
        """Prompts -> text states float32 [B,S,D] and mask int64 [B,S], 1 where there is text.

        `scale` is as for `forward`.

        Raises:
            ValueError: no prompt at all, or one that `check_prompt` refuses.
        """
        if isinstance(prompts, str) or not prompts:
            raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
        tokens, mask = self.tokenize([check_prompt(prompt) for prompt in prompts])
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        return self(tokens, mask, scale).float(), mask

    def encode_each(self, prompts: Sequence[str], scale: float | None = None) -> tuple[Tensor, Tensor]:
        """As `encode`, but each prompt by itself.

        A quantized encoder chooses its scales by all that it is given at once: here no prompt hears its neighbours.
        """
        encoded = [self.encode([prompt], scale) for prompt in prompts]
        longest = max(mask.shape[1] for _, mask in encoded)
        states = [F.pad(states, (0, 0, 0, longest - states.shape[1])) for states, _ in encoded]
        masks = [F.pad(mask, (0, longest - mask.shape[1])) for _, mask in encoded]
        return torch.cat(states), torch.cat(masks)

    def unknown_words(self, prompt: str) -> list[str]:
        """The words of a prompt that this model has never seen, in order and each once; punctuation does not count."""
        unknown = self.tokenizer.unk_token_id
        if unknown is None:
            return []
        text = check_prompt(prompt)
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        found = {}
        for token, (start, end) in zip(coded["input_ids"], coded["offset_mapping"], strict=True):
            word = text[start:end].strip(_PUNCTUATION)
            if token == unknown and word:
                found.setdefault(word.lower(), word)
        return list(found.values())


def check_known(prompt: str, unknown: Sequence[str]) -> None:
    """Refuse a prompt, of emoji say, in which nothing is left once the model's unknown words are taken out.

    Raises:
        ValueError: the model knows no word of it.
    """
    rest = prompt
    for word in sorted(unknown, key=len, reverse=True):
        rest = rest.replace(word, " ")
    if not any(character.isalnum() for character in rest):
        raise ValueError(f"prompt {prompt!r} has no word that this model knows; try English ones, as in {EXAMPLE!r}")
