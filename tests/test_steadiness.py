"""Music made here, so that it is known what is wrong with it: each fault is found by the figure that is for it."""

import numpy as np
import pytest

from tinymusician_core.evaluate.held_out import HeldOut
from tinymusician_core.evaluate.limits import LEAST, MEASURES, REFERENCE, compared, failures, limits_of, summary, within
from tinymusician_core.evaluate.steadiness import (
    RELATIVE_GATE,
    Steadiness,
    flatness_db,
    key_likeness,
    repetition,
    sameness,
    silent_share,
    steadiness,
    tempo_likeness,
)

RATE_HZ, SECONDS = 32000, 30.0
SAMPLES = int(RATE_HZ * SECONDS)
MAJOR, MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
RHYTHM = (1, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.5, 0.5, 2)  # beats, five notes a bar
CHORDS = (0, 3, 4, 0, 5, 1, 4, 0)  # degrees of the scale, one a bar
UNKNOWN = Steadiness(None, None, 1.0, None, None, None)


def note(pitch: float, seconds: float, loud: float) -> np.ndarray:
    """Four partials that begin at once and sink to a third by the end: sound [n]."""
    t = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    hz = 440 * 2 ** ((pitch - 69) / 12)
    wave = sum(np.sin(2 * np.pi * hz * k * t) / k for k in (1, 2, 3, 4))
    return loud * wave * np.exp(-t / seconds) * np.minimum(1, t * 300) * np.minimum(1, (t[-1] - t) * 300)


def tune(bpm=lambda share: 100.0, tonic=lambda share: 0, scale=MAJOR, seed=0) -> np.ndarray:
    """A melody that walks over the scale in one rhythm of two bars, over a chord a bar: sound [1,N].

    `bpm` and `tonic` are asked how much of the tune is over.
    """
    rng, audio, at, turn, degree = np.random.default_rng(seed), np.zeros(2 * SAMPLES), 0.0, 0, 0
    while at < SECONDS:
        share, beats = at / SECONDS, RHYTHM[turn % len(RHYTHM)]
        beat, root = 60 / bpm(share), 60 + tonic(share)
        degree = int(np.clip(degree + rng.integers(-3, 4), -3, 9))
        played = [(degree, beats, 0.1)]
        if turn % 5 == 0:
            chord = CHORDS[turn // 5 % len(CHORDS)]
            played += [(chord + step - 7, 4.0, 0.05) for step in (0, 2, 4)]
        for step, length, loud in played:
            sound = note(root + scale[step % 7] + 12 * (step // 7), length * beat, loud)
            audio[int(at * RATE_HZ) :][: len(sound)] += sound
        at, turn = at + beats * beat, turn + 1
    return audio[None, :SAMPLES].astype(np.float32)


def after_half(tune_: np.ndarray, rest: np.ndarray) -> np.ndarray:
    return np.concatenate([tune_[:, : SAMPLES // 2], rest[:, : SAMPLES - SAMPLES // 2]], axis=1).astype(np.float32)


def hiss(loud: float) -> np.ndarray:
    return (loud * np.random.default_rng(1).standard_normal((1, SAMPLES))).clip(-1, 1).astype(np.float32)


def bar_of(sound: np.ndarray, seconds: float) -> np.ndarray:
    """The first bar over and over."""
    return np.tile(sound[:, : int(seconds * RATE_HZ)], (1, int(SECONDS / seconds) + 1))[:, :SAMPLES]


def organ(pitch: int) -> np.ndarray:
    t = np.arange(SAMPLES) / RATE_HZ
    hz = 440 * 2 ** ((pitch - 69) / 12)
    return 0.1 * sum(np.sin(2 * np.pi * hz * k * t) / k for k in (1, 2, 3, 4))[None].astype(np.float32)


@pytest.fixture(scope="module")
def limits() -> dict[str, float]:
    """Those that the shipped held-out music sets."""
    return limits_of(HeldOut.from_folder().steady[REFERENCE])


@pytest.mark.parametrize(("tonic", "scale", "bpm"), [(0, MAJOR, 100), (4, MINOR, 125)])
def test_a_steady_tune_is_within_every_limit(limits, tonic, scale, bpm):
    held = steadiness(tune(lambda _: bpm, lambda _: tonic, scale, seed=bpm), RATE_HZ)
    assert failures(held, limits) == ()
    assert held.same_scale
    assert held.silence == 0


def test_a_tune_that_goes_to_its_relative_minor_keeps_its_key(limits):
    held = steadiness(after_half(tune(seed=50), tune(tonic=lambda _: 9, scale=MINOR, seed=150)), RATE_HZ)
    assert within(held, "key", limits["key"]) == 1
    assert held.first_key == "c major"
    assert held.same_scale


@pytest.mark.parametrize("steps", [1, 2, 3, 6, 7, 10])
def test_a_tune_that_modulates_leaves_its_key_and_nothing_else(limits, steps):
    held = steadiness(tune(tonic=lambda share: steps * (share > 0.5), seed=32), RATE_HZ)
    assert failures(held, limits) == ("key",)
    assert not held.same_scale


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 1.5, 2.0])
def test_a_tune_that_changes_its_tempo_leaves_it_and_keeps_its_key(limits, factor):
    """By an octave too, which two counts of the beats would call the same."""
    held = steadiness(tune(bpm=lambda share: 100 * (factor if share > 0.5 else 1), seed=33), RATE_HZ)
    assert within(held, "tempo", limits["tempo"]) == 0
    assert within(held, "key", limits["key"]) == 1
    assert held.tempo < 0


def test_a_tune_that_drifts_slowly_leaves_its_tempo(limits):
    assert "tempo" in failures(steadiness(tune(bpm=lambda share: 90 * 1.5**share, seed=34), RATE_HZ), limits)


def test_a_tune_that_falls_silent(limits):
    held = steadiness(after_half(tune(seed=35), np.zeros((1, SAMPLES))), RATE_HZ)
    assert held.silence == pytest.approx(0.5, abs=0.03)
    assert {"silence", "key", "tempo"} <= set(failures(held, limits))
    faint = steadiness(after_half(tune(seed=35), 0.02 * tune(seed=36)), RATE_HZ)
    assert faint.silence == pytest.approx(0.5, abs=0.03)


def test_silence_is_nothing_but_silence(limits):
    held = steadiness(np.zeros((1, SAMPLES), np.float32), RATE_HZ)
    assert held == UNKNOWN
    assert failures(held, limits) == ("key", "tempo", "silence")
    assert [within(held, name, limits[name]) for name in ("noise", "loop", "stuck")] == pytest.approx(
        [np.nan] * 3, nan_ok=True
    )


@pytest.mark.parametrize("sound", [hiss(0.1), after_half(tune(seed=37), hiss(0.1))])
def test_noise_from_the_start_or_from_the_middle(limits, sound):
    held = steadiness(sound, RATE_HZ)
    assert "noise" in failures(held, limits)
    assert held.noise == pytest.approx(-2.5, abs=0.3)


@pytest.mark.parametrize("seconds", [1.2, 2.4, 4.0])
def test_one_bar_over_and_over_from_the_middle(limits, seconds):
    held = steadiness(after_half(tune(seed=38), bar_of(tune(seed=39), seconds)), RATE_HZ)
    assert "loop" in failures(held, limits)
    assert held.loop > 0.9
    assert held.noise < limits["noise"]


def test_a_note_that_never_ends(limits):
    held = steadiness(after_half(tune(seed=40), organ(67)), RATE_HZ)
    assert "stuck" in failures(held, limits)
    assert held.stuck > 0.95


def test_level_channels_and_rate_do_not_matter():
    loud = tune(seed=41) + hiss(0.001)  # nothing real is as clean as made-up tones
    one, other = steadiness(loud, RATE_HZ), steadiness(np.concatenate([loud, loud]) * np.float32(0.1), RATE_HZ)
    for name in MEASURES:
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=0.01), name


def test_a_record_brings_it_back():
    held = steadiness(tune(seed=42), RATE_HZ)
    again = Steadiness.from_record(held.as_record() | {"kind": "real audio"})
    assert again.as_record() == held.as_record()
    assert again.key == pytest.approx(held.key, abs=1e-4)


def test_short_sound_is_refused():
    with pytest.raises(ValueError, match="at least 20 s of sound, got 19 s"):
        steadiness(np.zeros((1, 19 * RATE_HZ), np.float32), RATE_HZ)


# the figures beside closed forms and slow twins


def test_key_likeness_is_the_fit_less_that_of_the_best_transposition():
    chroma = np.random.default_rng(0).random((12, 31))
    first, last = chroma[:, :10].mean(1), chroma[:, -10:].mean(1)
    fits = [np.corrcoef([first[(k - steps) % 12] for k in range(12)], last)[0, 1] for steps in range(12)]
    assert key_likeness(chroma) == pytest.approx(fits[0] - max(fits[1:]))
    up_a_fifth = np.concatenate([chroma[:, :10], np.zeros((12, 11)), np.roll(chroma[:, :10], 7, axis=0)], axis=1)
    assert key_likeness(up_a_fifth) == pytest.approx(np.corrcoef(np.roll(first, 7), first)[0, 1] - 1)
    assert key_likeness(np.ones((12, 30))) is None


def test_a_pulse_fits_itself_alone_and_not_at_half_the_tempo():
    """Accents on every other pulse: the same at either end, or twice as fast at the last."""
    frames = np.arange(3000)
    rhythm = (frames % 50 < 3) + 1.0 * (frames % 100 < 3)
    twice = np.where(frames < 1500, rhythm, (frames % 25 < 3) + 1.0 * (frames % 50 < 3))
    assert tempo_likeness(rhythm, 100.0) > 0.3
    assert tempo_likeness(twice, 100.0) < -0.1
    assert tempo_likeness(twice[::-1].copy(), 100.0) == pytest.approx(tempo_likeness(twice, 100.0), abs=0.1)
    assert tempo_likeness(np.ones(3000), 100.0) is None


def test_silence_beside_the_gates_worked_out_block_by_block():
    rng = np.random.default_rng(2)
    sound = rng.standard_normal(22050 * 6) * np.repeat([1e-6, 0.1, 0.2, 0.001, 0.05, 0.03], 22050)
    powers = [np.mean(sound[start : start + 8820] ** 2) for start in range(0, len(sound) - 8819, 2205)]
    loud = [power for power in powers if 10 * np.log10(power) >= -70]
    gated = [power < 1e-7 or power < RELATIVE_GATE * np.mean(loud) for power in powers]
    assert silent_share(sound) == np.mean(gated)
    assert 0.2 < np.mean(gated) < 0.5


def test_flatness_of_noise_and_of_a_tone():
    """The logarithm of chi-square power lies 2.51 dB below its mean: Euler's constant times 10 / ln 10."""
    rng = np.random.default_rng(3)
    assert flatness_db(0.1 * rng.standard_normal(22050 * 6)) == pytest.approx(
        -10 * np.euler_gamma / np.log(10), abs=0.1
    )
    assert flatness_db(np.sin(np.arange(22050 * 6) / 10)) < -50
    assert flatness_db(np.zeros(22050 * 6)) is None


def test_repetition_beside_a_slow_twin():
    chroma = np.random.default_rng(4).random((12, 240))
    slow = []
    for half in (chroma[:, :120], chroma[:, 120:]):
        unit = half / np.sqrt((half**2).sum(0))
        centred = unit - unit.mean(1, keepdims=True)
        for lag in range(4, 51):
            pairs = [(centred[:, t], centred[:, t + lag]) for t in range(120 - lag)]
            both = sum(a @ b for a, b in pairs)
            slow.append(both / np.sqrt(sum(a @ a for a, _ in pairs) * sum(b @ b for _, b in pairs)))
    assert repetition(chroma, 10.0) == pytest.approx(max(slow))
    looped = np.tile(chroma[:, :30], (1, 8))
    assert repetition(looped, 10.0) == pytest.approx(1.0)
    assert repetition(np.ones((12, 240)), 10.0) is None


def test_sameness_is_the_mean_cosine_of_all_pairs():
    chroma = np.random.default_rng(5).random((12, 20))
    unit = chroma / np.sqrt((chroma**2).sum(0))
    assert sameness(np.concatenate([chroma, np.zeros((12, 5))], axis=1)) == pytest.approx((unit.T @ unit).mean())
    assert sameness(np.zeros((12, 4))) is None


# limits


def clips(**values: np.ndarray) -> list[Steadiness]:
    count = len(next(iter(values.values())))
    plain = {"key": 0.9, "tempo": 0.5, "silence": 0.0, "noise": -40.0, "loop": 0.3, "stuck": 0.5}
    return [Steadiness(**plain | {name: float(each[k]) for name, each in values.items()}) for k in range(count)]


def test_limits_are_the_percentiles_of_real_music():
    values = np.arange(101) / 100
    found = limits_of(clips(key=values, loop=values))
    assert (found["key"], found["loop"], found["silence"]) == pytest.approx((0.05, 0.95, 0.0))
    for name in ("key", "loop"):
        assert np.mean([within(each, name, found[name]) for each in clips(key=values, loop=values)]) > 0.94
    assert limits_of(clips(key=values[:19])) is None
    assert limits_of([UNKNOWN] * 30) is None


def test_what_cannot_be_heard_is_not_held_and_no_noise_either():
    assert [within(UNKNOWN, name, 0.0) for name in LEAST] == [0, 0]
    assert np.isnan(within(UNKNOWN, "loop", 0.5))


def test_a_summary_says_mean_and_share_with_intervals():
    keys = np.r_[np.full(10, 0.2), np.full(30, 0.8)]
    real = clips(key=np.linspace(0.5, 1, 41))
    found = compared({"student": clips(key=keys)}, {REFERENCE: real, "real audio": real[::2], "none": ()}, 0, 50)
    assert list(found["rows"]) == ["student", "real audio"]
    row = found["rows"]["student"]
    assert row["mean"]["key"]["value"] == pytest.approx(0.65)
    assert row["mean"]["key"]["low"] < 0.65 < row["mean"]["key"]["high"]
    assert row["within"]["key"]["value"] == row["within"]["all"]["value"] == 0.75
    assert row["within"]["tempo"]["value"] == row["within"]["no_collapse"]["value"] == 1
    assert (found["windows"], row["same_scale"]["value"]) == (41, 0)
    assert compared({"student": [*clips(key=keys), None]}, {REFERENCE: real}, 0) is None
    unlimited = compared({"student": clips(key=keys)}, {}, 0, 50)
    assert unlimited["limits"] is unlimited["rows"]["student"]["within"] is None


def test_a_clip_of_silence_is_summed_up_too():
    limits = limits_of(clips(key=np.linspace(0.5, 1, 41)))
    row = summary([UNKNOWN] * 20, limits, 0, 20)
    assert row["mean"]["key"] == {"value": None, "low": None, "high": None, "n": 0}
    assert row["within"]["silence"]["value"] == 0
    assert row["within"]["loop"]["n"] == 0
    assert row["within"]["all"]["value"] == row["within"]["no_collapse"]["value"] == 0
    assert set(row["within"]) == {*MEASURES, "no_collapse", "all"}
