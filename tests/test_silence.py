import numpy as np

from tinymusician_core.silence import OVER_S, Silence

RATE = 1000


def sound(*levels):
    """[B,2,500]: half a second for each row, the second channel at this level."""
    audio = np.zeros((len(levels), 2, 500), np.float32)
    audio[:, 1] = np.array(levels)[:, None]
    return audio


def test_a_row_is_over_after_a_while_of_silence_and_back_with_any_sound():
    silence = Silence(2, RATE)
    seen = []
    for levels in ((0.5, 0.5), (0.001, 0.5), (0.0, 0.5), (0.0, 0.5), (0.0, 0.0), (-0.2, 0.0), (0.0, 0.0)):
        silence.hear(sound(*levels))
        seen.append(silence.over().tolist())
    assert OVER_S == 1.5
    assert [first for first, _ in seen] == [False, False, False, True, True, False, False]
    assert [second for _, second in seen] == [False] * 6 + [True]


def test_silence_counts_from_the_last_loud_sample():
    silence = Silence(1, RATE)
    audio = np.zeros((1, 1, 2000), np.float32)
    audio[0, 0, 500] = 0.5
    silence.hear(audio[:, :, :1999])
    assert not silence.over().any()
    silence.hear(np.zeros((1, 1, 2), np.float32))
    assert silence.over().all()
