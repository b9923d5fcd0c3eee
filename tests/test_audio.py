import math
import shutil

import numpy as np
import pytest
import soundfile

from tinymusician_core import Waveform
from tinymusician_core import audio as au


def tone(seconds=1.0, hz=997.0, rate=32000, level=0.5, channels=1) -> Waveform:
    wave = level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
    return Waveform(np.repeat(wave[None], channels, axis=0), rate)


def test_a_wav_comes_back_with_its_rate_channels_samples_and_tags(tmp_path):
    sound = tone(channels=2, rate=44100)
    tags = {"title": "café 🎹", "software": "TinyMusician", "comment": '{"seed": 7}'}
    path = au.write_wav(tmp_path / "a.wav", sound, tags)
    back = au.read(path)
    assert (back.sample_rate_hz, back.audio.shape) == (44100, (2, 44100))
    np.testing.assert_allclose(back.audio, sound.audio, atol=1.01 / 32768)
    info = soundfile.info(path)
    assert (info.format, info.subtype) == ("WAV", "PCM_16")
    read = au.read_tags(path)
    assert (read["title"], read["comment"]) == (tags["title"], tags["comment"])
    assert read["software"].startswith("TinyMusician")


def test_tags_of_what_is_no_sound_are_one_sentence_and_of_a_plain_file_none(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        au.read_tags(tmp_path / "none.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF nonsense")
    with pytest.raises(ValueError, match=r"b\.wav is no WAV, FLAC, OGG or MP3"):
        au.read_tags(tmp_path / "b.wav")
    assert au.read_tags(au.write_wav(tmp_path / "c.wav", tone())) == {}


def test_the_same_sound_gives_the_same_bytes(tmp_path):
    one, two = (au.write_wav(tmp_path / name, tone(), {"title": "t"}).read_bytes() for name in ("1.wav", "2.WAV"))
    assert one == two


def test_full_scale_neither_clips_nor_wraps(tmp_path):
    back = au.read(au.write_wav(tmp_path / "a.wav", Waveform(np.array([[1.0, -1.0, 0.0, 0.5]]), 8000)))
    np.testing.assert_allclose(back.audio, [[1.0, -1.0, 0.0, 0.5]], atol=1e-4)


def test_writing_names_what_is_wrong_and_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.wav"):
        au.write_wav(tmp_path / "a.txt", tone())
    with pytest.raises(ValueError, match="tags can be title, software, comment, got mood"):
        au.write_wav(tmp_path / "a.wav", tone(), {"mood": "calm"})
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        au.write_wav(tmp_path / "nowhere" / "a.wav", tone())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_older_file(tmp_path, monkeypatch):
    path = au.write_wav(tmp_path / "a.wav", tone())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tinymusician_core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        au.write_wav(path, tone(level=0.1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_reading_refuses_what_is_no_sound(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        au.read(tmp_path / "a.wav")
    (tmp_path / "b.wav").write_bytes(b"RIFF nonsense")
    with pytest.raises(ValueError, match=r"b\.wav is no WAV, FLAC, OGG or MP3"):
        au.read(tmp_path / "b.wav")
    soundfile.write(tmp_path / "c.wav", np.zeros((0, 1)), 8000)
    with pytest.raises(ValueError, match="holds no sound"):
        au.read(tmp_path / "c.wav")


@pytest.mark.parametrize("rate", [16000, 44100, 48000])
def test_resampling_keeps_length_and_pitch(rate):
    sound = au.resample(tone(1.0, hz=440.0), rate)
    assert sound.sample_rate_hz == rate
    assert sound.seconds == pytest.approx(1.0, abs=1e-4)
    spectrum = np.abs(np.fft.rfft(sound.audio[0]))
    assert np.argmax(spectrum) * rate / sound.audio.shape[1] == pytest.approx(440, abs=1)
    middle = slice(rate // 10, -rate // 10)
    np.testing.assert_allclose(sound.audio[:, middle], tone(1.0, 440.0, rate).audio[:, middle], atol=5e-3)


def test_resampling_to_the_same_rate_changes_nothing_and_checks_the_rate():
    sound = tone()
    assert au.resample(sound, 32000) is sound
    with pytest.raises(ValueError, match="sample_rate_hz"):
        au.resample(sound, 0)


@pytest.mark.parametrize("rate", [32000, 44100, 48000])
def test_loudness_is_that_of_the_standard(rate):
    # BS.1770: a 997 Hz sine at full scale in one channel measures -3.01 LUFS.
    assert au.loudness(tone(3.0, rate=rate, level=1.0)) == pytest.approx(-3.01, abs=0.1)
    assert au.loudness(tone(3.0, rate=rate, level=0.1)) == pytest.approx(-23.01, abs=0.1)
    assert au.loudness(tone(3.0, rate=rate, level=0.1, channels=2)) == pytest.approx(-20.0, abs=0.1)


def test_loudness_of_loud_treble_does_not_saturate():
    loud, soft = tone(3.0, hz=8000, level=1.0), tone(3.0, hz=8000, level=0.1)
    assert au.loudness(loud) - au.loudness(soft) == pytest.approx(20.0, abs=0.01)


def test_loudness_leaves_pauses_out():
    sound = tone(3.0)
    paused = Waveform(np.concatenate([sound.audio, np.zeros_like(sound.audio)], axis=1), 32000)
    assert au.loudness(paused) == pytest.approx(au.loudness(sound), abs=0.3)


def test_loudness_of_silence_and_of_very_short_sound():
    assert au.loudness(Waveform(np.zeros((1, 32000)), 32000)) == -math.inf
    assert au.loudness(Waveform(np.full((1, 32000), 1e-6), 32000)) == -math.inf
    assert -30 < au.loudness(tone(0.1)) < 0
    with pytest.raises(ValueError, match="1 to 5 channels, got 6"):
        au.loudness(tone(channels=6))


def test_levels_are_matched_to_the_quietest_without_clipping():
    silence = Waveform(np.zeros((1, 32000)), 32000)
    sounds = [tone(level=0.9), tone(level=0.05), tone(hz=300, level=0.4), silence]
    matched = au.match_levels(sounds)
    levels = [au.loudness(sound) for sound in matched]
    assert levels[:3] == pytest.approx([au.loudness(sounds[1])] * 3, abs=0.05)
    assert levels[3] == -math.inf
    assert all(np.abs(new.audio).max() <= np.abs(old.audio).max() for new, old in zip(matched, sounds, strict=True))
    assert au.match_levels([]) == []
    assert au.match_levels([silence]) == [silence]


def test_fades_begin_and_end_in_silence_and_leave_the_middle():
    sound = Waveform(np.full((2, 1000), 0.5), 1000)
    faded = au.fade(sound, in_s=0.1, out_s=0.2).audio
    assert faded[:, [0, -1]].max() < 0.001
    assert (np.diff(faded[0, :100]) > 0).all()
    assert (np.diff(faded[0, -200:]) < 0).all()
    np.testing.assert_array_equal(faded[:, 100:800], sound.audio[:, 100:800])
    assert sound.audio.min() == 0.5
    for bad in ((-0.1, 0), (0.6, 0.6), (math.nan, 0)):
        with pytest.raises(ValueError, match="fades must be 0 or more and fit into 1 seconds"):
            au.fade(sound, *bad)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
@pytest.mark.parametrize("ending", ["mp3", "flac", "ogg"])
def test_exports_play_back_with_their_title(tmp_path, ending):
    path = au.export(tmp_path / f"a.{ending}", tone(channels=2), {"title": "a jig", "comment": "{}"})
    back = au.read(path)
    assert (back.sample_rate_hz, back.audio.shape[0]) == (32000, 2)
    assert back.seconds == pytest.approx(1.0, abs=0.1)
    assert au.loudness(back) == pytest.approx(au.loudness(tone(channels=2)), abs=0.5)
    assert au.read_tags(path)["title"] == "a jig"
    assert list(tmp_path.iterdir()) == [path]


def test_exports_without_ffmpeg_are_one_sentence_and_wav_needs_none(tmp_path, monkeypatch):
    monkeypatch.setattr(au.shutil, "which", lambda name: None)
    with pytest.raises(au.AudioError, match="^writing MP3 needs ffmpeg, which is not installed; WAV works without it$"):
        au.export(tmp_path / "a.mp3", tone())
    assert au.export(tmp_path / "a.wav", tone()).is_file()
    with pytest.raises(ValueError, match=r"must end in \.wav, \.mp3, \.flac, \.ogg, got 'a\.aac'"):
        au.export(tmp_path / "a.aac", tone())


@pytest.mark.parametrize("same", [False, True], ids=["unlike sounds", "the same sound"])
def test_a_crossfade_begins_old_ends_new_and_keeps_the_level(same):
    random = np.random.default_rng(0).standard_normal((2, 2, 8000)).astype(np.float32)
    old, new = random[0], random[0 if same else 1]
    mixed = au.crossfade(old, new)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(mixed[:, 0], old[:, 0])
    np.testing.assert_allclose(mixed[:, -1], new[:, -1], atol=2e-3)
    powers = [(part**2).mean() for part in np.split(mixed, 4, axis=1)]
    assert max(powers) < 1.15 * min(powers)


def test_a_crossfade_of_contrary_sounds_turns_nothing_up():
    sound = np.full((1, 100), 0.5, np.float32)
    assert np.abs(au.crossfade(sound, -sound)).max() <= 0.5
    assert not au.crossfade(0 * sound, 0 * sound).any()


def test_an_unreadable_file_shows_in_its_beginning(tmp_path):
    au.check_readable(au.write_wav(tmp_path / "good.wav", tone()))
    (tmp_path / "bad.wav").write_bytes(b"RIFF, and then nothing")
    for name in ("bad.wav", "none.wav"):
        said = []
        for look in (au.check_readable, au.read):
            with pytest.raises(ValueError, match=name) as caught:
                look(tmp_path / name)
            said.append(str(caught.value))
        assert said[0] == said[1]
