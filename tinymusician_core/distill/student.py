"""The student: some of the teacher's layers, at the teacher's width or a smaller one.

Which layers, where a number is asked for, as Distil-Whisper has it (Gandhi et al., arXiv 2311.00430, section 3.2): the
first and the last are always there, the others at equal distances between them. What becomes of the width: `narrow`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import MusicgenForCausalLM

from ..guidance import ScaleInput, ScaleRange
from ..records import ModelError
from .data import Batch
from .narrow import LAYERS, Narrowed, Size, narrow

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")


class Student(nn.Module):
    """What is trained: a decoder, and where it is narrower than its teacher a text projection of its own.

    Attributes:
        chosen: which of the teacher's layers it has.
        channels: which of the teacher's residual channels; None for all.
        guidance: tells its text of a guidance scale, where it takes that as an input.
    """

    def __init__(
        self,
        decoder: MusicgenForCausalLM,
        projection: nn.Linear | None,
        chosen: tuple[int, ...],
        channels: Tensor | None = None,
        guidance: ScaleInput | None = None,
    ):
        super().__init__()
        self.guidance = guidance
        self.decoder, self.projection, self.chosen, self.channels = decoder, projection, chosen, channels

    def forward(self, batch: Batch, shared: nn.Module, with_hidden: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Logits [B,K,P,V] of a batch, and where asked for what every layer gives [B,P,D].

        `shared` is the teacher's projection, which a student of the same width uses as it is.
        """
        states = self.states(batch, shared)
        if not with_hidden:
            return logits(self.decoder, batch.inputs, states, batch.mask), []
        return logits_and_hidden(self.decoder, batch.inputs, states, batch.mask)

    def states(self, batch: Batch, shared: nn.Module) -> Tensor:
        """Text states [B,S,D] of a batch, through the student's own projection or the one that it shares."""
        return batch.states(shared if self.projection is None else self.projection, self.guidance)

    def copy(self, state: Mapping[str, Tensor]) -> Student:
        """A student of the same shape with these weights, on their device; nothing of this one's is read."""
        with torch.random.fork_rng():  # its first weights are thrown away
            decoder, projection = MusicgenForCausalLM(self.decoder.config), self.projection
            if projection is not None:
                projection = nn.Linear(projection.in_features, projection.out_features)
        told = None if self.guidance is None else ScaleInput(self.guidance.scales, decoder.config.hidden_size)
        made = Student(decoder, projection, self.chosen, self.channels, told)
        made.load_state_dict(state)
        return made.to(next(iter(state.values())).device).train(self.training)


@dataclass(frozen=True)
class Shape:
    """What to make of a teacher: how many layers or which ones, and the sizes that are to change.

    Raises:
        ValueError: a number that is no whole one above 0, or layers that are not in order.
    """

    layers: int | tuple[int, ...]
    width: int | None = None
    heads: int | None = None
    ffn: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, Sequence) and not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
            whole = all(isinstance(i, int) and i >= 0 for i in self.layers)
            if not whole or not self.layers or list(self.layers) != sorted(set(self.layers)):
                raise ValueError(f"the layers {self.layers}; different whole numbers from 0 on are allowed, in order")
        elif not isinstance(self.layers, int) or self.layers < 1:
            raise ValueError(f"a student of {self.layers} layers; a whole number above 0 is allowed")
        for name in ("width", "heads", "ffn"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"the student's {name} is {value}; a whole number above 0 is allowed")

    def of(self, config) -> Size:
        """The sizes for a teacher's MusicgenDecoderConfig; ValueError where it cannot give them."""
        total = config.num_hidden_layers
        layers = self.layers if isinstance(self.layers, tuple) else spaced(total, self.layers)
        if layers[-1] >= total:
            raise ValueError(f"the student's layer {layers[-1]} is not there; the teacher has 0 to {total - 1}")
        theirs = config.hidden_size // config.num_attention_heads
        width, ffn = self.width or config.hidden_size, self.ffn or config.ffn_dim
        heads = self.heads or min(config.num_attention_heads, max(1, width // theirs))
        for name, value, top in (
            ("width", width, config.hidden_size),
            ("heads", heads, config.num_attention_heads),
            ("ffn", ffn, config.ffn_dim),
        ):
            if value > top:
                raise ValueError(f"the student's {name} is {value}; at most {top} is allowed, the teacher's")
        if width < 4 or width % 2 or width % heads or width // heads > theirs:
            raise ValueError(
                f"a width of {width} with {heads} heads; an even width of 4 or more is allowed, "
                f"a multiple of the heads and at most {theirs} for each of them, the teacher's"
            )
        return Size(layers, width, heads, ffn)


def spaced(teacher_layers: int, student_layers: int) -> tuple[int, ...]:
    """Which of the teacher's layers the student keeps: 3 of 8 are 0, 4 and 7; 1 is the first.

    Raises:
        ValueError: no layer, or more than the teacher has.
    """
    if not isinstance(student_layers, int) or not 1 <= student_layers <= teacher_layers:
        raise ValueError(f"a student of {student_layers} layers; 1 to {teacher_layers} are allowed, the teacher's")
    if student_layers == 1:
        return (0,)
    gap = (teacher_layers - 1) / (student_layers - 1)
    return tuple(int(i * gap + 0.5) for i in range(student_layers))


def make_student(
    teacher: MusicgenForCausalLM,
    shape: Shape,
    projection: nn.Module | None = None,
    scales: ScaleRange | None = None,
) -> Student:
    """A student with what it takes over from its teacher.

    Dropout is off: a student sees far less data than would make it overfit, and a resumed run stays exact.

    Args:
        teacher: the teacher's decoder.
        shape: what to keep of it.
        projection: the teacher's text projection, of which a narrower student gets its own.
        scales: the guidance that it takes as an input, where it does; untrained that changes nothing.

    Raises:
        ValueError: sizes that this teacher cannot give.
        ModelError: the copied parts do not reproduce the teacher's.
    """
    size = shape.of(teacher.config)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers, config.hidden_size = len(size.layers), size.width
    config.num_attention_heads, config.ffn_dim = size.heads, size.ffn
    for name in DROPOUTS:
        setattr(config, name, 0.0)
    decoder = MusicgenForCausalLM(config).to(teacher.lm_heads[0].weight.device)
    told = None if scales is None else ScaleInput(scales, size.width)
    same = (size.width, size.heads, size.ffn) == (
        teacher.config.hidden_size,
        teacher.config.num_attention_heads,
        teacher.config.ffn_dim,
    )
    if same:
        _copy(teacher, decoder, size.layers)
        check_copies(teacher, decoder, size.layers)
        return Student(decoder, None, size.layers, guidance=told).train()
    own = projection if isinstance(projection, nn.Linear) else None
    made = narrow(teacher.state_dict(), teacher.config.num_attention_heads, size, own)
    decoder.load_state_dict(made.state, strict=True)
    check_units(teacher, decoder, size.layers, made)
    return Student(decoder, made.projection, size.layers, made.channels, told).train().requires_grad_()


def _copy(teacher: MusicgenForCausalLM, decoder: MusicgenForCausalLM, chosen: tuple[int, ...]) -> None:
    ours, theirs = decoder.state_dict(), teacher.state_dict()
    for name in ours:
        source = name
        if name.startswith(LAYERS):
            index, _, rest = name.removeprefix(LAYERS).partition(".")
            source = f"{LAYERS}{chosen[int(index)]}.{rest}"
        ours[name] = theirs[source].clone()
    decoder.load_state_dict(ours)


@torch.no_grad()
def check_copies(teacher: MusicgenForCausalLM, student: MusicgenForCausalLM, chosen: tuple[int, ...]) -> None:
    """Give each copied layer what its original got, and compare what comes out.

    Raises:
        ModelError: an output is off by more than 1e-5 of its size.
    """
    random = torch.Generator().manual_seed(0)
    device, width = teacher.lm_heads[0].weight.device, teacher.config.hidden_size
    tokens = torch.randint(0, teacher.config.vocab_size, (1, teacher.config.num_codebooks, 6), generator=random)
    states = torch.randn(1, 3, width, generator=random)
    seen: dict[int, tuple] = {}
    originals = teacher.model.decoder.layers

    def keep(index: int):
        return lambda _, args, kwargs, output: seen.__setitem__(index, (args, kwargs, output))

    was_training = student.training
    teacher.eval(), student.eval()
    hooks = [originals[i].register_forward_hook(keep(i), with_kwargs=True) for i in set(chosen)]
    try:
        logits(teacher, tokens.to(device), states.to(device), torch.ones(1, 3, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    for place, index in enumerate(chosen):
        args, kwargs, wanted = seen[index]
        found = student.model.decoder.layers[place].to(device)(*args, **kwargs)
        off = float((found - wanted).norm() / wanted.norm())
        if not off <= 1e-5:
            raise ModelError(f"the student's layer {place} is off by {off:.2g} from the teacher's layer {index}")
    student.train(was_training)


@torch.no_grad()
def check_units(teacher: MusicgenForCausalLM, student: MusicgenForCausalLM, chosen: tuple[int, ...], made: Narrowed):
    """Each hidden unit that a narrowed student kept must do what it does in the teacher, as far as its channels go.

    The teacher's feed-forward layer is given the kept channels alone and loses the units that were not kept; what it
    then writes to the kept channels is compared.

    Raises:
        ModelError: it is off by more than 1e-5 of its size.
    """
    device, channels = teacher.lm_heads[0].weight.device, made.channels
    dense = torch.randn(5, len(channels), generator=torch.Generator().manual_seed(0)).to(device)
    sparse = torch.zeros(5, teacher.config.hidden_size, device=device)
    sparse[:, channels] = dense
    for place, (index, units) in enumerate(zip(chosen, made.units, strict=True)):
        ours, theirs = student.model.decoder.layers[place], teacher.model.decoder.layers[index]
        active = theirs.activation_fn(theirs.fc1(sparse))
        only = torch.zeros_like(active)
        only[:, units] = active[:, units]
        wanted, found = theirs.fc2(only)[:, channels], ours.fc2(ours.activation_fn(ours.fc1(dense)))
        off = float((found - wanted).norm() / wanted.norm())
        if not off <= 1e-5:
            raise ModelError(f"the student's layer {place} is off by {off:.2g} from what it kept of layer {index}")


def logits(model: MusicgenForCausalLM, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Next-token logits [B,K,T,V] of delayed tokens int64 [B,K,T] under text states [B,S,D] and mask [B,S]."""
    found = model(
        input_ids=tokens.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).logits
    return found.view(*tokens.shape, -1)


def logits_and_hidden(
    model: MusicgenForCausalLM, tokens: Tensor, states: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """As `logits`, and what every layer gives [B,T,D]."""
    seen: list[Tensor] = []
    hooks = [layer.register_forward_hook(lambda _, __, out: seen.append(out)) for layer in model.model.decoder.layers]
    try:
        return logits(model, tokens, states, mask), seen
    finally:
        for hook in hooks:
            hook.remove()
