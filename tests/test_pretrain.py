"""The demo family's recipe, from a tune in ABC to a teacher that trains, on the smallest data that shows each
stage."""

import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from tinymusician_core import domain
from tinymusician_core.pretrain import arrange as arranging
from tinymusician_core.pretrain import captions as captioning
from tinymusician_core.pretrain.accompany import INSTRUMENTS, LEAD
from tinymusician_core.pretrain.arrange import arrange
from tinymusician_core.pretrain.codec import CodecTraining, MelScales, NoteBook
from tinymusician_core.pretrain.notes import Companies
from tinymusician_core.pretrain.pieces import audio_path
from tinymusician_core.pretrain.quantizer import MovingCodebook
from tinymusician_core.pretrain.render import events_of, level, render_batch, write_midi
from tinymusician_core.pretrain.scores import parse_file, split_abc, style_of

ABC = """X:1
T:The Test Waltz
M:3/4
L:1/8
R:waltz
K:G
D2|G4B2|d4B2|c4A2|F4D2|G4B2|d4g2|f2e2d2|c2B2A2|G4B2|d4B2|c4A2|F4D2|E2F2G2|A2B2c2|B2A2F2|G6|

X:2
T:Too Short
M:3/4
L:1/8
K:D
A2|
"""


@pytest.fixture(scope="module")
def tune(tmp_path_factory):
    folder = tmp_path_factory.mktemp("abc") / "oneills1850"
    folder.mkdir()
    (folder / "book.abc").write_text(ABC)
    (only,) = parse_file(folder / "book.abc")
    return only


@pytest.fixture(scope="module")
def pieces(tune):
    return [piece for seed in range(60) if (piece := arrange(tune, seed)) is not None]


def test_a_tune_keeps_its_notes_metre_key_and_bars(tune):
    assert len(list(split_abc(ABC))) == 2
    assert (tune.title, tune.style, tune.meter, tune.mode, tune.tonic) == ("The Test Waltz", "waltz", "3/4", "major", 7)
    assert tune.notes[:3] == ((0.0, 1.0, 62), (1.0, 2.0, 67), (3.0, 1.0, 71))
    assert tune.bars[:2] == (1.0, 4.0)
    assert len(tune.bars) == 16


def test_two_settings_of_a_tune_share_a_split(tune):
    assert replace(tune, id="other", title="The TEST waltz!").split == tune.split
    splits = [replace(tune, title="x" * n).split for n in range(400)]
    assert 340 < splits.count("train") < 390
    assert splits.count("test") > 5
    assert splits.count("validation") > 5


def test_styles_follow_rhythm_title_and_metre():
    assert style_of("Anything", "reel", "4/4") == "reel"
    assert style_of("Paddy's Jig", "", "6/8") == "jig"
    assert style_of("The Jig of Slurs", "", "4/4") == "air"
    assert style_of("No Name", "", "3/4") == "waltz"


def test_pieces_stand_on_the_frame_grid_in_range_and_in_friendly_keys(pieces):
    for piece in pieces:
        lead = next(t for t in piece.tracks if t.role == LEAD)
        instrument = INSTRUMENTS[piece.facts.instrument]
        assert {b - a for a, b in zip(piece.bars, piece.bars[1:], strict=False)} == {piece.bars[1] - piece.bars[0]}
        assert piece.frames <= (max(arranging.MAX_SECONDS) + 1) * arranging.FRAME_RATE_HZ
        assert piece.music_frames == piece.bars[-1] + piece.bars[1] - piece.bars[0]
        assert all(instrument.low <= n.pitch <= instrument.high for n in lead.notes)
        assert all(0 <= n.start < n.end <= piece.music_frames for t in piece.tracks for n in t.notes)
        assert lead.notes[0].start == 0
    assert len({p.facts.instrument for p in pieces}) >= 8
    assert len({p.facts.texture for p in pieces}) >= 5


def test_an_arrangement_repeats_for_a_seed(tune, pieces):
    assert arrange(tune, 3) == arrange(tune, 3)
    assert len({p.facts for p in pieces}) > 20


def test_sixteenths_are_rewritten_as_eighths(tune):
    quick = replace(
        tune, notes=tuple((a / 4, d / 4, p) for a, d, p in tune.notes), bars=tuple(b / 4 for b in tune.bars), bar=0.75
    )
    assert arranging.in_eighths(quick).bar == 1.5
    assert arranging.in_eighths(tune) == tune


def test_captions_vary_say_only_what_is_true_and_repeat_for_a_seed(pieces):
    for piece in pieces[:20]:
        facts, lines = piece.facts, captioning.captions(piece.facts, piece.id, 40)
        assert lines == captioning.captions(facts, piece.id, 40)
        assert len(set(lines)) > 30
        assert all(any(name in line for name in domain.PLAYED_BY[facts.instrument]) for line in lines)
        wrong = {"major", "minor"} - {facts.mode}
        assert not any(wrong & set(line.replace(",", "").split()) for line in lines)
        alone = ("solo", "unaccompanied", "alone", "by itself")
        assert facts.texture == "solo" or not any(word in line for line in lines for word in alone)


def phrases_of(table):
    """Phrase -> the classes that it may stand for."""
    found = {}
    for name, phrases in table.items():
        for phrase in phrases:
            found.setdefault(phrase, set()).add(name)
    return found


def asked_by(line, known):
    """What the longest phrases of a caption stand for, the words of each used once."""
    left, found = f" {line.replace(',', ' ').replace(':', ' ')} ".replace("  ", " "), []
    for phrase in sorted(known, key=len, reverse=True):
        while f" {phrase} " in left:
            left = left.replace(f" {phrase} ", " | ", 1)
            found.append(known[phrase])
    return found


def reading():
    """Phrase -> what it asks for: attribute -> classes. General names ask for nothing, "song" among them."""
    known = {}
    for what, table in (("tempo", domain.TEMPO), ("tempo", domain.PACE), ("style", domain.KIND), ("mode", domain.MODE)):
        for phrase, names in phrases_of(table).items():
            known.setdefault(phrase, {})[what] = names
    for (tempo, mode), phrases in domain.MOOD.items():
        for phrase in phrases:
            asks = known.setdefault(phrase, {})
            asks["tempo"] = asks.get("tempo", set()) | {tempo}
            asks["mode"] = asks.get("mode", set()) | {mode}
    return known | {
        phrase: {} for table in (domain.GENERIC, domain.BACKGROUND, *domain.USE.values()) for phrase in table
    }


def test_no_phrase_of_a_caption_contradicts_the_facts(pieces):
    """Read by the longest phrase, as a parser of prompts does, tempo, mode and style are never another class's."""
    known, classes = reading(), list(product(domain.STYLES, domain.TEMPI, domain.MODES))
    for number, (style, tempo, mode) in enumerate(classes):
        facts = replace(pieces[number % len(pieces)].facts, style=style, tempo=tempo, mode=mode)
        for line in captioning.captions(facts, f"{number}", 40):
            for what, names in (pair for asks in asked_by(line, known) for pair in asks.items()):
                assert getattr(facts, what) in names, (line, what, names)


def test_midi_is_in_milliseconds_and_every_note_ends(pieces):
    for piece in pieces[:10]:
        events = sorted(events_of(piece, 5000), key=lambda e: (e[0], e[1]))
        sounding = set()
        for _, _, messages in events:
            for m in messages:
                if m.type == "note_on":
                    sounding.add((m.channel, m.note))
                elif m.type == "note_off":
                    sounding.discard((m.channel, m.note))
        assert not sounding
        notes = [(t, m) for t, _, ms in events for m in ms if m.type == "note_on"]
        assert notes[0][0] == 5000
        assert all((t - 5000) % 40 == 0 for t, _ in notes)


def test_pieces_follow_one_another_in_a_midi_file(pieces, tmp_path):
    from mido import MidiFile

    starts = write_midi(pieces[:2], tmp_path / "two.mid")
    assert starts == [0, pieces[0].frames * 40 + 1000]
    assert MidiFile(tmp_path / "two.mid").length == pytest.approx(
        (starts[1] + pieces[1].frames * 40 + 1000) / 1000, abs=0.01
    )


@pytest.mark.skipif(
    shutil.which("fluidsynth") is None,
    reason="FluidSynth is not installed (apt-get install fluidsynth musescore-general-soundfont)",
)
def test_rendered_notes_are_heard_where_they_are_written(pieces, tmp_path):
    import soundfile

    piece = next(p for p in pieces if p.facts.texture == "solo" and p.facts.instrument == "piano")
    (tmp_path / "audio").mkdir()
    assert render_batch([piece], tmp_path) == 0
    audio, rate = soundfile.read(audio_path(tmp_path, piece))
    assert rate == 32000
    assert len(audio) == piece.frames * 1280
    note = piece.tracks[0].notes[0]
    spectrum = np.abs(np.fft.rfft(audio[:8192] * np.hanning(8192)))
    pitch = 440 * 2 ** ((note.pitch - 69) / 12)
    assert abs(spectrum.argmax() * rate / 8192 / pitch - 1) < 0.02


def test_level_is_one_and_silence_is_refused():
    tone = np.sin(np.arange(32000) / 10) * 0.01
    assert np.sqrt(np.mean(level(tone) ** 2)) == pytest.approx(0.1)
    assert np.abs(level(np.eye(1, 32000)[0])).max() == pytest.approx(0.95)
    with pytest.raises(ValueError, match="silent"):
        level(np.zeros(10))


def test_a_note_book_learns_to_tell_entries_apart_but_not_those_of_one_group():
    torch.manual_seed(0)
    groups, target = torch.tensor([0, 1, 1, 2]), torch.randint(4, (2, 50))
    book, vectors = NoteBook(torch.nn.Embedding(4, 3), groups), torch.nn.Parameter(torch.randn(4, 3))
    optimizer = torch.optim.Adam([vectors, book.table.weight], 0.1)
    costs = []
    for _ in range(100):
        heard, cost, right = book(vectors[groups[target]], target)
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        costs.append(cost.item())
    assert costs[-1] < 0.05 < costs[0]
    assert right == 1
    assert torch.equal(groups[heard], groups[target])


def test_the_loss_of_a_note_book_is_that_of_its_definition():
    book = NoteBook(torch.nn.Embedding(4, 3), torch.tensor([0, 1, 1, 2]))
    x, target = torch.randn(1, 5, 3), torch.tensor([[0, 1, 2, 3, 1]])
    distance = (x[0, :, None] - book.table.weight).square().sum(-1)
    shares = (-distance).softmax(-1)
    right = [shares[0, 0], *(shares[i, 1:3].sum() for i in (1, 2)), shares[3, 3], shares[4, 1:3].sum()]
    expected = -torch.stack(right).log().mean()
    heard, loss, _ = book(x, target)
    torch.testing.assert_close(loss, expected)
    assert heard[0].tolist() == distance.argmin(-1).tolist()


def test_a_moving_codebook_finds_clusters_and_revives_dead_entries():
    rng = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 3, generator=rng) * 5
    data = centres[torch.randint(4, (400,), generator=rng)] + 0.05 * torch.randn(400, 3, generator=rng)
    book = MovingCodebook(torch.nn.Embedding(8, 3))
    with torch.no_grad():
        book.table.weight.fill_(100.0)
    book.counts.fill_(0.0)
    for _ in range(60):
        book(data[None], rng)
    rows, _, commit = book(data[None])
    assert commit < 0.05
    assert torch.allclose(rows[0], data, atol=0.5)
    before = book.table.weight.clone()
    book(data[None] + 1)
    assert torch.equal(before, book.table.weight)


def test_mel_distance_is_zero_at_identity_and_grows_with_noise():
    scales, tone = MelScales(32000), torch.sin(torch.arange(16000) / 20)[None, None]
    noise = torch.randn(tone.shape, generator=torch.Generator().manual_seed(0))
    same, slight, strong = (scales(tone + a * noise, tone)[0] for a in (0.0, 0.01, 0.3))
    assert same == 0
    assert 0 < slight < strong


def test_the_sound_does_not_steer_the_score_codes(small_codec):
    audio, notes = torch.randn(2, 1, 1280 * 8) * 0.1, torch.zeros(2, 3, 8, dtype=torch.long)
    losses = small_codec(audio, notes, torch.Generator())
    (losses["mel"] + losses["convergence"]).backward()
    assert small_codec.encoder.to_score.weight.grad is None
    assert small_codec.encoder.to_harmony.weight.grad is None
    assert small_codec.encoder.to_players.weight.grad is None
    assert small_codec.encoder.to_latent.weight.grad.abs().sum() > 0
    assert small_codec.decoder.from_score.weight.grad.abs().sum() > 0
    assert small_codec.decoder.from_harmony.weight.grad.abs().sum() > 0
    assert small_codec.decoder.from_players.weight.grad.abs().sum() > 0


@pytest.fixture
def small_codec():
    from tinymusician_core.codec.spectral import SpectralConfig

    return CodecTraining(
        SpectralConfig(
            codebook_size=16,
            score_dim=4,
            harmony_dim=4,
            players_dim=4,
            note_blocks=1,
            note_ages=8,
            latent_dim=6,
            encoder_dim=16,
            encoder_blocks=1,
            decoder_dim=16,
            decoder_blocks=1,
        ),
        Companies(((0,), (73,))),
    )
