"""What a prompt asks for: as people write prompts, and as captions are written, of which the truth is known."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinymusician_core.domain import INSTRUMENTS, KIND, MODES, PLAYED_BY, STYLES, TEMPI, TEMPO
from tinymusician_core.evaluate.asked import METERS, Asked, asked
from tinymusician_core.evaluate.phrases import mentions, normalise, vocabulary
from tinymusician_core.evaluate.tempi import FAMILY_BPM, classes_meant, tempo_class
from tinymusician_core.pretrain.arrange import FRAMES_PER_QUARTER, arrange, tempo_of
from tinymusician_core.pretrain.captions import captions
from tinymusician_core.pretrain.scores import METERS as BARS
from tinymusician_core.pretrain.scores import Tune, style_of

PROMPTS = {
    "a calm piano waltz in G major": ("piano", "waltz", "slow", "major"),
    "Lively Irish fiddle reel with guitar chords": ("violin", "reel", "fast", None),
    "upbeat jig on the flute, 120 bpm": ("flute", "jig", "fast", None),
    "120bpm reel for banjo": ("banjo", "reel", "moderate", None),
    "sad cello in D minor": ("cello", None, None, "minor"),
    "SLOW AIR played on the harp": ("harp", "air", "slow", None),
    "classical guitar, Spanish style, in Am": ("guitar", None, None, "minor"),
    "a fast polka for accordion and tuba": ("accordion", "polka", "fast", None),
    "Moderately fast strathspey from the highlands": (None, "strathspey", "moderate", None),
    "vibraphone solo, mid-tempo, 100 BPM": ("vibraphone", None, "moderate", None),
    "melancholic oboe melody in F# minor": ("oboe", None, None, "minor"),
    "quiet church organ, E♭ major": ("organ", None, "slow", "major"),
    "C maj, allegro, clarinet": ("clarinet", None, "fast", "major"),
    "violins playing a reel in the key of C-sharp minor": ("violin", "reel", None, "minor"),
    "tempo: 95, instrument: oboe, mode: minor": ("oboe", None, "moderate", "minor"),
    "accordion player in a Paris café, playing a waltz": ("accordion", "waltz", None, None),
    "a slow piano ballad in a minor key": ("piano", "air", "slow", "minor"),
    "slip jig in 9/8": (None, "slip jig", None, None),
    "hornpipe": (None, "hornpipe", None, None),
    "Music for a party!": (None, None, "fast", None),
    # Who leads, who plays along.
    "flute melody over piano chords": ("flute", None, None, None),
    "guitar waltz accompanied by piano": ("guitar", "waltz", None, None),
    "singer with piano accompaniment": (None, None, None, None),
    "waltz with violin": ("violin", "waltz", None, None),
    "violin waltz with a soft organ in the background": ("violin", "waltz", "slow", None),
    "a tune with the melody on trumpet": ("trumpet", None, None, None),
    "piano with a violin solo": (None, None, None, None),
    "piano and violin duet": (None, None, None, None),
    "guitar, violin and cello": (None, None, None, None),
    "xylophone and marimba": ("marimba", None, None, None),
    # Not wanted, or not meant.
    "no piano, just cello": ("cello", None, None, None),
    "not too fast, a gentle organ march": ("organ", "march", "slow", None),
    "a march without drums, for trumpet": ("trumpet", "march", None, None),
    "heavy metal electric guitar solo, 180 bpm": (None, None, "fast", None),
    "a major hit song with acoustic guitar": ("guitar", None, None, None),
    "good vibes only, summer pop": (None, None, None, None),
    "chill vibes and piano": (None, None, None, None),
    "a waltz on vibes": ("vibraphone", "waltz", None, None),
    "a breath of fresh air": (None, None, None, None),
    # Not sure: words that are shared, or against each other.
    "folk dance": (None, None, None, None),
    "folk dance in 6/8": (None, "jig", None, None),
    "jigs and reels": (None, None, None, None),
    "slow, then fast: a violin piece that speeds up": ("violin", None, None, None),
    "slow waltz at 180 bpm": (None, "waltz", None, None),
    "a tune at 120 bpm": (None, None, None, None),
    "a tune at 108 bpm": (None, None, "moderate", None),
    "from C major to C minor": (None, None, None, None),
    # What is said outright counts before a mood.
    "a sad fiddle tune": ("violin", None, None, "minor"),
    "fast but sad fiddle tune": ("violin", None, "fast", "minor"),
    "romantic dinner music in A minor": (None, None, "slow", "minor"),
    "mournful": (None, None, "slow", "minor"),
    # Outside the domain.
    "techno": (None, None, None, None),
    "chill lofi beats to study to": (None, None, None, None),
    "epic orchestral trailer music": (None, None, None, None),
    "ein langsamer Walzer für Klavier": (None, None, None, None),
    "🎵🎵🎵 piano": ("piano", None, None, None),
}


@pytest.mark.parametrize(("prompt", "wanted"), PROMPTS.items())
def test_prompts_as_people_write_them(prompt, wanted):
    assert asked(prompt) == Asked(*wanted)


def made_up_tune(style: str, meter: str, rng: random.Random) -> Tune:
    bar = BARS[meter]
    bars = tuple(i * bar for i in range(8))
    notes = tuple((i / 2, 0.5, rng.randrange(60, 80)) for i in range(int(16 * bar)))
    mode = rng.choice(MODES)
    return Tune(f"{style}{meter}{rng.random()}", "none", style, style, meter, bar, rng.randrange(12), mode, notes, bars)


def test_no_caption_asks_for_what_its_piece_is_not():
    rng, seen, count = random.Random(5), dict.fromkeys(("instrument", "style", "tempo", "mode"), 0), 0
    for style, meters in METERS.items():
        for number in range(12 * len(meters)):
            facts = arrange(made_up_tune(style, meters[number % len(meters)], rng), number).facts
            for text in captions(facts, f"{style}{number}"):
                found = asked(text)
                count += 1
                for name in seen:
                    wanted = getattr(found, name)
                    assert wanted in (None, getattr(facts, name)), f"{text!r} asks for {name} {wanted}: {facts}"
                    seen[name] += wanted is not None
    assert seen["instrument"] > 0.99 * count
    assert min(seen["style"], seen["tempo"], seen["mode"]) > count / 3


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(vocabulary())) | st.text(max_size=12), min_size=1).map(" ".join))
def test_any_text_asks_for_known_classes_or_nothing(text):
    text = f"x{text}"[:1000]
    found = asked(text)
    assert found.instrument in (None, *INSTRUMENTS)
    assert found.style in (None, *STYLES)
    assert found.tempo in (None, *TEMPI)
    assert found.mode in (None, *MODES)


def test_every_phrase_of_one_class_asks_for_it():
    for name, phrases in PLAYED_BY.items():
        assert {asked(f"a tune for {p}").instrument for p in phrases} == {name}
    for name, phrases in TEMPO.items():
        assert {asked(p).tempo for p in phrases} == {name}
    for name, phrases in KIND.items():
        assert {asked(p).style for p in phrases} <= {name, None}
        assert asked(name).style == name


def test_the_longest_phrase_wins():
    (only,) = mentions("moderately fast")
    assert only.classes == {"moderate"}
    assert [m.phrase for m in mentions("an irish slip jig")] == ["irish slip jig"]


def test_a_prompt_is_spelt_as_the_phrases_are():
    assert normalise("  Mid-Tempo REEL; in B♭/F#m (6/8)\n at 92.5bpm ") == (
        "mid tempo reel , in b flat f sharp m , 6/8 , , at 92 bpm"
    )
    assert normalise("uptempo & bright, in 3 4 time") == "up tempo and bright , in 3/4 time"


def test_tempo_classes_are_those_of_the_arranger():
    for quarter in {q for known in FRAMES_PER_QUARTER.values() for q in known}:
        for compound in (False, True):
            name, bpm = tempo_of(quarter, compound)
            assert tempo_class(bpm, compound) == name
            assert bpm in FAMILY_BPM[compound]
    for compound, known in FAMILY_BPM.items():
        assert all(
            classes_meant(round(bpm * g), (compound,)) >= {tempo_class(bpm, compound)}
            for bpm in known
            for g in (0.9, 1.0, 1.1)
        )
    with pytest.raises(ValueError, match="above 0 beats a minute, got 0"):
        tempo_class(0, False)


def test_metres_are_those_of_the_scores():
    for style, meters in METERS.items():
        assert {style_of("", style, meter) for meter in meters} == {style} or style == "air"
        assert all(style_of("", "air", meter) == "air" for meter in METERS["air"])


@pytest.mark.parametrize(("prompt", "complaint"), [("  ", "prompt is empty"), ("x" * 1001, "1001 characters")])
def test_what_is_no_prompt_is_refused(prompt, complaint):
    with pytest.raises(ValueError, match=complaint):
        asked(prompt)
