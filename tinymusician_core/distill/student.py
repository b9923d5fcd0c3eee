"""The student: fewer of the teacher's layers, maximally spaced, with everything else copied.

As Distil-Whisper does it (Gandhi et al., arXiv 2311.00430, section 3.2): the first and the last layer are always there,
the others at equal distances between them.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor
from transformers import MusicgenForCausalLM

from ..records import ModelError

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")


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


def make_student(teacher: MusicgenForCausalLM, layers: int) -> tuple[MusicgenForCausalLM, tuple[int, ...]]:
    """A student with the teacher's embeddings, norms, heads and `layers` of its layers, and which ones they are.

    Dropout is off: a student sees far less data than would make it overfit, and a resumed run stays exact.

    Raises:
        ValueError: as `spaced`.
        ModelError: the copied layers do not reproduce the teacher's.
    """
    chosen = spaced(teacher.config.num_hidden_layers, layers)
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = layers
    for name in DROPOUTS:
        setattr(config, name, 0.0)
    student = MusicgenForCausalLM(config)
    ours, theirs = student.state_dict(), teacher.state_dict()
    prefix = "model.decoder.layers."
    for name in ours:
        source = name
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            source = f"{prefix}{chosen[int(index)]}.{rest}"
        ours[name] = theirs[source].clone()
    student.load_state_dict(ours)
    check_copies(teacher, student, chosen)
    return student.train(), chosen


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


def logits(model: MusicgenForCausalLM, tokens: Tensor, states: Tensor, mask: Tensor) -> Tensor:
    """Next-token logits [B,K,T,V] of delayed tokens int64 [B,K,T] under text states [B,S,D] and mask [B,S]."""
    found = model(
        input_ids=tokens.flatten(0, 1), encoder_hidden_states=states, encoder_attention_mask=mask, use_cache=False
    ).logits
    return found.view(*tokens.shape, -1)
