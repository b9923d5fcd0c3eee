"""From a plan of pieces to tokens, in shards, with what is killed, cut short or hangs on the way."""

import json
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from tinymusician_core.codec.spectral import SpectralCodec, SpectralConfig, SpectralEncoder
from tinymusician_core.pretrain import encode, render
from tinymusician_core.pretrain.__main__ import build_parser
from tinymusician_core.pretrain.notes import AGES, NOTES, Companies, HarmonyStates, Vocabulary
from tinymusician_core.pretrain.pieces import (
    audio_path,
    failure_path,
    jobs,
    of_shard,
    parse_shard,
    plan_pieces,
    read_audio,
    read_pieces,
    read_plan,
    write_plan,
)
from tinymusician_core.pretrain.scores import Tune
from tinymusician_core.tokens import SPLITS, TokenDataset


def tune(number):
    notes = tuple((float(q), 1.0, 62 + (q * 5 + number) % 12) for q in range(48))
    bars = tuple(3.0 * b for b in range(16))
    return Tune(f"{number:012d}", "book", f"Tune {'x' * number}", "waltz", "3/4", 3.0, 2, "major", notes, bars)


TUNES = [tune(n) for n in range(60)]
PLAN = plan_pieces(TUNES, 1.2)


@pytest.fixture
def work(tmp_path):
    """A work folder with one planned piece of each split and one more, and their audio, as noise."""
    chosen = [next(p for p in PLAN if p.split == split) for split in SPLITS]
    chosen.append(next(p for p in PLAN if p not in chosen and p.split == "train"))
    write_plan(tmp_path, chosen)
    (tmp_path / "audio").mkdir()
    rng = np.random.default_rng(0)
    for piece in chosen:
        soundfile.write(audio_path(tmp_path, piece), rng.normal(0, 0.1, piece.frames * 1280), 32000, subtype="PCM_16")
    config = SpectralConfig(
        codebook_size=512,
        score_dim=4,
        harmony_dim=4,
        players_dim=4,
        note_ages=AGES,
        latent_dim=6,
        encoder_dim=16,
        encoder_blocks=1,
        decoder_dim=16,
        decoder_blocks=1,
    )
    torch.manual_seed(0)
    SpectralCodec(config).save(tmp_path / "codec" / "model", SpectralEncoder(config))
    return tmp_path


def test_a_plan_fills_the_hours_repeats_itself_and_grows_at_its_end():
    short, long = plan_pieces(TUNES, 0.5), plan_pieces(TUNES, 1.0)
    assert 0.5 * 90000 <= sum(p.music_frames for p in short) < 0.5 * 90000 + 48 * 25
    assert long[: len(short)] == short == plan_pieces(TUNES, 0.5)
    assert len({p.id for p in long}) == len(long)
    for piece in long:
        assert piece.split == next(t.split for t in TUNES if t.id == piece.tune)


def test_hours_that_cannot_be_planned_are_refused():
    with pytest.raises(ValueError, match="above zero, got 0"):
        plan_pieces(TUNES, 0)
    with pytest.raises(ValueError, match=r"1 tunes give 0\.\d\d hours of music, not 66"):
        plan_pieces(TUNES[:1], 66)


def test_every_tune_comes_once_a_round_and_those_of_rare_styles_more_often():
    rounds = list(jobs([TUNES[0], replace(TUNES[1], style="reel")]))
    assert sorted(n for t, n in rounds if t.style == "reel") == list(range(14))
    assert sorted(n for t, n in rounds if t.style == "waltz") == list(range(28))
    assert {t.style for t, _ in rounds[:3]} == {"reel", "waltz"}


def test_shards_share_everything_out_once():
    items = list(range(11))
    shards = [list(of_shard(items, (i, 3))) for i in (1, 2, 3)]
    assert sorted(sum(shards, [])) == items
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert parse_shard("2/3") == (2, 3)
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="a shard is i/n"):
            parse_shard(wrong)


def test_the_command_line_takes_shards_and_says_what_they_are(capsys):
    options = build_parser().parse_args(["audio", "--work", "w", "--hours", "60", "--shard", "2/4"])
    assert (options.hours, options.shard) == (60, (2, 4))
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["tokens", "--work", "w", "--shard", "5/4"])
    assert stop.value.code == 2
    assert "a shard is i/n with i from 1 to n, got '5/4'" in capsys.readouterr().err


def test_the_command_line_takes_splits_and_says_what_they_are(capsys):
    assert build_parser().parse_args(["audio", "--work", "w"]).splits is None
    assert build_parser().parse_args(["audio", "--work", "w", "--splits", "test", "train"]).splits == ["test", "train"]
    with pytest.raises(SystemExit) as stop:
        build_parser().parse_args(["audio", "--work", "w", "--splits", "tests"])
    assert stop.value.code == 2
    assert "unknown split 'tests'; allowed are train, validation, test" in capsys.readouterr().err


def test_a_plan_comes_back_as_it_was_written_and_old_plans_are_read(work):
    plan = read_plan(work)
    assert len(plan) == 4
    assert all(p in PLAN for p in plan)
    records = [json.loads(line) for line in (work / "pieces.jsonl").read_text().splitlines()]
    for record in records:
        del record["facts"]["pattern"]
    (work / "pieces.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert [p.id for p in read_plan(work)] == [p.id for p in plan]


def test_only_whole_audio_counts(work):
    pieces = read_pieces(work)
    path = audio_path(work, pieces[0])
    whole = path.read_bytes()
    soundfile.write(path, np.zeros(32000), 32000)
    with pytest.raises(ValueError, match="has 32000 samples, not .* render it anew"):
        read_audio(work, pieces[0])
    path.unlink()
    path.with_name(f".{path.name}.x.part.flac").write_bytes(whole[:1000])
    assert read_pieces(work) == pieces[1:]


def fake_synthesis(hangs):
    """FluidSynth as noise, which hangs on files with the pitch `hangs`."""

    def synthesize(midi, raw, timeout_s):
        from mido import MidiFile

        file = MidiFile(midi)
        if any(m.type == "note_on" and m.note == hangs for m in file.tracks[0]):
            raise subprocess.TimeoutExpired("fluidsynth", timeout_s)
        return np.random.default_rng(0).normal(0, 0.1, round(file.length * 32000)).astype(np.float32)

    return synthesize


def test_a_piece_that_hangs_is_noted_and_left_out_and_the_others_are_rendered(work, monkeypatch):
    pieces = read_plan(work)
    lead = pieces[3].tracks[0]
    lead = replace(lead, notes=(replace(lead.notes[0], pitch=127), *lead.notes[1:]))
    pieces[3] = replace(pieces[3], tracks=(lead, *pieces[3].tracks[1:]))
    for piece in pieces:
        audio_path(work, piece).unlink()
    monkeypatch.setattr(render, "synthesize", fake_synthesis(127))
    assert render.render_batch(pieces, work) == 1
    assert "timed out" in failure_path(work, pieces[3]).read_text()
    assert [p.id for p in read_pieces(work)] == [p.id for p in pieces[:3]]
    assert all(len(read_audio(work, p)) == p.frames * 1280 for p in read_pieces(work))
    encode.build_tokens(work)
    assert [len(TokenDataset(work / "tokens", split)) for split in SPLITS] == [1, 1, 1]


def test_splits_alone_are_rendered_of_a_whole_plan(work, monkeypatch):
    class Here:
        """A pool of no processes."""

        def Pool(self, processes):  # noqa: N802
            return self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def apply_async(self, call, args):
            call(*args)
            return SimpleNamespace(get=lambda: 0)

    plan, rendered = read_plan(work), []
    for piece in plan:
        audio_path(work, piece).unlink()
    monkeypatch.setattr(render.multiprocessing, "get_context", lambda kind: Here())
    monkeypatch.setattr(render, "make_plan", lambda folder, hours: plan)
    monkeypatch.setattr(render, "render_batch", lambda pieces, folder: rendered.extend(pieces))
    render.build_audio(work, 1.0, splits=("test", "validation"))
    assert rendered == [p for p in plan if p.split != "train"]
    assert len(rendered) == 2


def test_shards_of_tokens_meet_in_one_set_without_the_release(work, capsys, monkeypatch):
    encode.build_tokens(work, (1, 2))
    assert not (work / "tokens").exists()
    assert "2 pieces are left to other shards" in capsys.readouterr().out
    encode.build_tokens(work, (2, 2))
    plan = read_plan(work)
    for split in SPLITS:
        data, pieces = TokenDataset(work / "tokens", split), [p for p in plan if p.split == split]
        assert [r["id"] for r in data.records] == [p.id for p in pieces]
        assert data.offsets.diff().tolist() == [p.music_frames for p in pieces]
        assert all(r["bars"][-1] < p.music_frames for r, p in zip(data.records, pieces, strict=True))
        assert data.rounds.all()
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    whole = codec.encode(torch.from_numpy(read_audio(work, plan[0]))[None, None])[0]
    clip = TokenDataset(work / "tokens", "train").clip(0)
    assert torch.equal(clip[NOTES:], whole[NOTES:, : plan[0].music_frames])
    written = Vocabulary.read(work / "notes.json").codes(plan[0])[:, : plan[0].music_frames]
    assert np.array_equal(clip[:NOTES].numpy(), written), "the notes are as they were written"

    monkeypatch.setattr(encode, "encode_piece", None)  # all is there: nothing is encoded again
    encode.build_tokens(work)


def test_notes_alone_are_tokens_before_anything_is_rendered(work):
    plan = read_plan(work)
    encode.build_tokens(work)
    whole = {split: TokenDataset(work / "tokens", split) for split in SPLITS}
    for piece in plan:
        audio_path(work, piece).unlink()
    encode.write_notes(work)
    for split, full in whole.items():
        data = TokenDataset(work / "tokens", split)
        assert data.records == full.records
        assert torch.equal(data.codes[:NOTES], full.codes[:NOTES])
        assert (data.codes[NOTES:] == -1).all()


def test_another_codec_gives_other_tokens_but_a_polished_decoder_does_not(work):
    codec = SpectralCodec.from_folder(work / "codec" / "model")
    known = Vocabulary(HarmonyStates(((), (97,))), Companies(((0,),)))
    first = encode.meaning_of(codec, known)
    with torch.no_grad():
        codec.decoder.from_score.weight.add_(1.0)
    assert encode.meaning_of(codec, known) == first
    with torch.no_grad():
        codec.decoder.score_codebook.weight.add_(1.0)
    changed = encode.meaning_of(codec, known)
    assert changed != first
    assert encode.meaning_of(codec, replace(known, players=Companies(((1,),)))) != changed


def test_tokens_of_pieces_that_were_not_rendered_are_refused(work):
    audio_path(work, read_plan(work)[0]).unlink()
    with pytest.raises(ValueError, match="1 of 4 pieces have not been rendered; run the audio stage first"):
        encode.build_tokens(work)


def test_tokens_of_unheard_pieces_are_their_notes_where_they_are_welcome(work):
    encode.build_tokens(work)
    whole = TokenDataset(work / "tokens", "train")
    shutil.rmtree(work / "codes")
    unheard = next(p for p in read_plan(work) if p.split == "train")
    audio_path(work, unheard).unlink()
    encode.build_tokens(work, unheard=True)
    data = TokenDataset(work / "tokens", "train")
    assert data.records == whole.records
    for index, record in enumerate(data.records):
        clip, heard = data.clip(index), record["id"] != unheard.id
        assert torch.equal(clip[:NOTES], whole.clip(index)[:NOTES])
        assert torch.equal(clip[NOTES:], whole.clip(index)[NOTES:] if heard else torch.full_like(clip[NOTES:], -1))


def test_a_split_without_pieces_is_named(work):
    write_plan(work, [p for p in read_plan(work) if p.split != "validation"])
    with pytest.raises(ValueError, match="no pieces for validation"):
        encode.build_tokens(work)
