"""The loop against a slow twin that computes everything anew for each token, prompt by prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import make_decoder, make_text

from tinymusician_core.delay import delay, undelay
from tinymusician_core.engine import Sampler, frames
from tinymusician_core.engine.loop import steps_for
from tinymusician_core.records import Cancelled, SamplingSpec


def collect(decoder, states, mask, specs, count, **more):
    return torch.stack(list(frames(decoder, states, mask, specs, count, **more)), dim=2)


def window_starts(total, given, window, delays):
    """For each column to come, the frame that the window in which it is drawn begins with. By hand: count positions."""
    if window is None or given + total <= window:
        return [0] * (total + max(delays))
    room = max(1, window * 2 // 3) + max(delays)
    starts, start, read = [], 0, 1 + given
    for column in range(given, given + total + max(delays)):
        if read > room:
            start = column - max(delays) - 2 * (window // 12)
            read = column - start + 1
        starts.append(start)
        read += 1
    return starts


def slow_frames(decoder, states, mask, spec, total, codes, window):
    """One prompt: states [1,S,D], codes [1,K,T0]; every token from logits of all that its window holds. [K,T]."""
    delays, pad = decoder.config.delays, decoder.config.pad
    count = codes.shape[2]
    if window is not None and count + total > window:
        codes = codes[:, :, count - min(count, max(window - total, 2 * (window // 12))) :]
        count = codes.shape[2]
    music = torch.full((1, len(delays), count + total), pad)
    music[:, :, :count] = codes
    draw = Sampler(spec)
    for column, start in enumerate(window_starts(total, count, window, delays), count):
        opening = music[:, :, : window // 12] if start else music[:, :, :0]
        held = torch.cat([opening, music[:, :, start + opening.shape[2] :]], dim=2)
        seen = delay(held, delays, pad)[0][:, :, : column - start]
        tokens = torch.cat([torch.full((1, len(delays), 1), pad), seen], dim=2)
        logits = decoder.logits(tokens, states, mask)[:, :, -1].detach()
        if spec.cfg > 1:
            other = decoder.logits(tokens, torch.zeros_like(states), torch.zeros_like(mask))[:, :, -1].detach()
            logits = other + spec.cfg * (logits - other)
        for k, token in enumerate(draw(logits)[0]):
            if count <= column - delays[k] < count + total:
                music[0, k, column - delays[k]] = token
    return music[0, :, count:]


@st.composite
def pieces(draw):
    channels = draw(st.sampled_from([1, 2]))
    shape = {
        "codebooks": channels * draw(st.integers(1, 3)),
        "audio_channels": channels,
        "layers": draw(st.integers(1, 2)),
        "entries": draw(st.integers(2, 12)),
    }
    batch, total = draw(st.integers(1, 3)), draw(st.integers(1, 36))
    return {
        "shape": shape,
        "lengths": draw(st.lists(st.integers(1, 4), min_size=batch, max_size=batch)),
        "total": total,
        "given": draw(st.integers(0, 9)),
        "window": draw(st.none() | st.integers(1, 30)),
        "cfg": draw(st.sampled_from([1.0, 3.0])),
        "greedy": draw(st.booleans()),
        "top_k": draw(st.sampled_from([0, 3])),
        "seeds": draw(st.lists(st.integers(0, 2**32 - 1), min_size=batch, max_size=batch)),
    }


@settings(deadline=None, max_examples=60)
@given(pieces())
def test_cache_windows_and_batches_give_what_the_slow_twin_gives(piece):
    decoder = make_decoder(piece["seeds"][0] % 1000, **piece["shape"]).double()
    lengths, config = torch.tensor(piece["lengths"]), decoder.config
    generator = torch.Generator().manual_seed(piece["seeds"][0])
    batch = len(lengths)
    states = torch.randn(batch, 4, config.width, generator=generator, dtype=torch.double)
    mask = torch.arange(4) < lengths.unsqueeze(1)
    codes = torch.randint(0, config.entries, (batch, config.codebooks, piece["given"]), generator=generator)
    settings_ = {name: piece[name] for name in ("cfg", "greedy", "top_k")}
    specs = [SamplingSpec(seed=seed, **settings_) for seed in piece["seeds"]]
    made = collect(decoder, states, mask, specs, piece["total"], given=codes, window=piece["window"])
    for row, spec in enumerate(specs):
        one = slice(row, row + 1)
        states_, mask_ = states[one, : lengths[row]], mask[one, : lengths[row]]
        expected = slow_frames(decoder, states_, mask_, spec, piece["total"], codes[one], piece["window"])
        assert torch.equal(made[row], expected)


@pytest.mark.parametrize("cfg", [1.0, 3.0])
@pytest.mark.parametrize(("codebooks", "channels"), [(1, 1), (3, 1), (4, 2)])
def test_the_loop_yields_the_frames_of_a_plain_greedy_search(cfg, codebooks, channels):
    decoder = make_decoder(codebooks=codebooks, audio_channels=channels)
    delays, pad = decoder.config.delays, decoder.config.pad
    states, mask = make_text(decoder, batch=2)
    made = collect(decoder, states, mask, SamplingSpec(greedy=True, cfg=cfg), 6)
    tokens = torch.full((2, codebooks, 1), pad)
    zeros = torch.zeros_like(states), torch.zeros_like(mask)
    for position in range(1, 7 + max(delays)):
        logits = decoder.logits(tokens, states, mask)[:, :, -1].detach()
        if cfg > 1:
            other = decoder.logits(tokens, *zeros)[:, :, -1].detach()
            logits = other + cfg * (logits - other)
        chosen = logits.argmax(-1)
        for k, shift in enumerate(delays):
            if not shift < position <= 6 + shift:
                chosen[:, k] = pad
        tokens = torch.cat([tokens, chosen.unsqueeze(2)], dim=2)
    assert torch.equal(made, undelay(tokens[:, :, 1:], delays))
    assert made.max() < decoder.config.entries


def test_a_frame_comes_out_as_soon_as_its_last_codebook_is_there(monkeypatch):
    decoder = make_decoder()
    states, mask = make_text(decoder)
    steps, step = [], decoder.step
    monkeypatch.setattr(decoder, "step", lambda *args: steps.append(1) or step(*args))
    stream = frames(decoder, states, mask, SamplingSpec(), 4)
    seen = [len(steps) for _ in stream]
    assert seen == [3, 4, 5, 6]
    assert len(steps) == steps_for(decoder, 4) == 6


def test_seeds_decide_and_the_global_random_state_is_left_alone():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    one = collect(decoder, states, mask, SamplingSpec(seed=1), 10)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(collect(decoder, states, mask, SamplingSpec(seed=1), 10), one)
    assert not torch.equal(collect(decoder, states, mask, SamplingSpec(seed=2), 10), one)


def test_stopping_and_wrong_counts():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    answers = iter([False, False, False, True])
    with pytest.raises(Cancelled, match="stopped after 3 of 12 steps"):
        list(frames(decoder, states, mask, SamplingSpec(), 10, lambda: next(answers)))
    with pytest.raises(ValueError, match="frames_total must be 1 or more, got 0"):
        list(frames(decoder, states, mask, SamplingSpec(), 0))


def test_a_piece_begins_the_same_however_long_it_gets():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    short = collect(decoder, states, mask, SamplingSpec(seed=3), 10)
    long = collect(decoder, states, mask, SamplingSpec(seed=3), 40, window=10)
    assert torch.equal(long[:, :, :6], short[:, :, :6]), "as far as the first window of the long piece goes"
    assert torch.equal(collect(decoder, states, mask, SamplingSpec(seed=3), 10, window=10), short)


def test_memory_and_work_a_frame_do_not_grow_with_the_length(monkeypatch):
    decoder = make_decoder()
    states, mask = make_text(decoder)
    rooms, read = [], []
    prepare, prefill = decoder.prepare, decoder.prefill
    monkeypatch.setattr(decoder, "prepare", lambda *args: rooms.append(args[2]) or prepare(*args))
    monkeypatch.setattr(decoder, "prefill", lambda *args: read.append(args[0].shape[2]) or prefill(*args))
    work = []
    for total in (30, 300, 3000):
        read.clear()
        collect(decoder, states, mask, SamplingSpec(greedy=True, cfg=1.0), total, window=30)
        work.append(sum(read) / total)
    assert rooms == [32, 22, 22]
    assert work[0] == 0
    assert work[1] < work[2] < (2 + 2) / (20 - 2 - 2), "what is read again for each new frame"


def test_a_row_that_has_come_to_its_end_is_taken_up_from_its_opening_and_the_others_go_on():
    decoder = make_decoder(entries=60, codebooks=4)
    states, mask = make_text(decoder, batch=2)
    specs = [SamplingSpec(seed=1), SamplingSpec(seed=2)]
    plain = collect(decoder, states, mask, specs, 60, window=36)
    ended = collect(decoder, states, mask, specs, 60, window=36, over=lambda: torch.tensor([True, False]))
    assert torch.equal(ended[1], plain[1])
    assert torch.equal(ended[0, :, :24], plain[0, :, :24]), "a window of 24 frames slides for the first time"
    kept, longest = 3 + 3, 3
    assert torch.equal(ended[0, 0, 24 : 24 + longest], plain[0, 0, kept : kept + longest]), "what was under way there"
    again = collect(decoder, states[:1], mask[:1], specs[0], 60, window=36, over=lambda: torch.tensor([True]))
    assert torch.equal(again[0], ended[0])


def test_a_row_of_a_batch_is_its_single_run_in_float32():
    decoder = make_decoder(width=32, heads=4, entries=64, codebooks=4)
    states, mask = make_text(decoder, batch=5, tokens=6)
    mask[1, 4:] = 0
    specs = [SamplingSpec(seed=seed, temperature=0.8 + 0.1 * seed, top_k=10 * seed) for seed in range(5)]
    made = collect(decoder, states, mask, specs, 100, window=40)
    assert len({tuple(row.flatten().tolist()) for row in made}) == 5
    for row, spec in enumerate(specs):
        one = slice(row, row + 1)
        assert torch.equal(collect(decoder, states[one], mask[one], spec, 100, window=40), made[one])


def test_given_codes_are_gone_on_from_and_not_yielded():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    spec = SamplingSpec(greedy=True)
    whole = collect(decoder, states, mask, spec, 12)
    assert torch.equal(collect(decoder, states, mask, spec, 4, given=whole[:, :, :8]), whole[:, :, 8:])
    other = (whole[:, :, :8] + 7) % 20
    assert not torch.equal(collect(decoder, states, mask, spec, 4, given=other), whole[:, :, 8:])


def test_given_codes_are_read_in_blocks_and_a_stop_is_heeded_between_them():
    decoder = make_decoder()
    states, mask = make_text(decoder)
    codes = torch.zeros(1, 3, 100, dtype=torch.long)
    answers = iter([False, False, True])
    with pytest.raises(Cancelled, match="stopped after 0 of 12 steps"):
        list(frames(decoder, states, mask, SamplingSpec(), 10, lambda: next(answers), codes))


def test_what_does_not_fit_together_is_named():
    decoder = make_decoder()
    states, mask = make_text(decoder, batch=2)
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    for more, message in (
        ({"specs": [SamplingSpec()]}, "a batch of 2 needs one SamplingSpec or 2, got 1"),
        ({"specs": [SamplingSpec(cfg=1), SamplingSpec(cfg=2)]}, "must have the same cfg, got 1, 2"),
        ({"window": 0}, "a window must be 1 frame or more, got 0"),
        ({"given": codes[:1]}, r"given codes must be int64 \[2, 3, frames\], got torch.int64 \(1, 3, 4\)"),
        ({"given": codes.float()}, "got torch.float32"),
        ({"given": codes + 20}, "given codes must lie between 0 and 19"),
    ):
        arguments = {"specs": SamplingSpec(), "frames_total": 5} | more
        with pytest.raises(ValueError, match=message):
            list(frames(decoder, states, mask, **arguments))
