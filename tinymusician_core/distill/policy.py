"""On-policy windows (GKD, Agarwal et al., arXiv 2306.13649): the student goes on from a window's beginning itself, and
learns from its teacher what should have come there."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..engine import DecoderConfig, frames
from ..engine.weights import from_musicgen
from ..records import MAX_SEED, SamplingSpec
from .data import Batches, Drawn
from .source import Teacher
from .student import Student


def choose_begin(drawn: Drawn, rng: torch.Generator) -> tuple[Drawn, list[int]]:
    """Where the student takes over, anywhere in the first half of the windows, and a seed for each of them.

    No later than the shortest clip's end; from there on every frame counts, for the student will make it.
    """
    frames_total = drawn.codes.shape[2]
    shortest = int((drawn.codes >= 0).all(1).sum(1).min())
    begin = min(int(torch.randint(frames_total // 2 + 1, (), generator=rng)), shortest)
    seeds = torch.randint(MAX_SEED, (len(drawn),), generator=rng).tolist()
    return replace(drawn, codes=drawn.codes.clamp_min(0), begin=begin), seeds


@torch.no_grad()
def go_on(student: Student, teacher: Teacher, batches: Batches, drawn: Drawn, seeds: list[int]) -> Drawn:
    """The windows with all that lies after `begin` drawn from the student as it is now, in one pass."""
    batch = batches.batch(drawn)
    states = student.states(batch, teacher.text_encoder.projection)
    config = DecoderConfig.from_dict(student.decoder.config.to_dict())
    with torch.autocast(states.device.type, enabled=False):
        decoder = from_musicgen(config, {name: x.clone() for name, x in student.decoder.state_dict().items()})
        decoder = decoder.to(states.device)
        given, total = drawn.codes[:, :, : drawn.begin], drawn.codes.shape[2] - drawn.begin
        specs = [SamplingSpec(seed=seed, cfg=1.0, top_k=0, top_p=0.0) for seed in seeds]
        made = torch.stack(list(frames(decoder, states.float(), batch.heard, specs, total, given=given)), dim=2)
    return replace(drawn, codes=torch.cat([given, made.to(given.device)], dim=2).clone())
