"""The demo family's tokenizer: whole words, lower case, learnt from the training captions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"
MAX_TOKENS = 64


def build_tokenizer(captions: Iterable[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer that knows every word of the captions; punctuation is dropped, sharps and flats
    are words."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordLevel

    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"(?<=\b[a-g])(#|♯)"), " sharp"),
            normalizers.Replace(Regex(r"(?<=\b[a-g])♭"), " flat"),
            normalizers.Replace(Regex(r"(?<=\d)(?=bpm)"), " "),
            normalizers.Replace(Regex(r"[-_/.,;:!?()\"'`]+"), " "),
        ]
    )
    pre = pre_tokenizers.WhitespaceSplit()
    counts: Counter[str] = Counter()
    for caption in captions:
        counts.update(word for word, _ in pre.pre_tokenize_str(normalizer.normalize_str(caption)))
    words = [PAD, END, UNKNOWN, *sorted(counts)]
    tokenizer = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=MAX_TOKENS
    )
