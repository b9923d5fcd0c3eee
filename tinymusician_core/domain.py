"""What the demo family knows: the classes of its music, and the phrases by which captions name them.

`PLAYED_BY`, `TEMPO`, `MOOD` and `KIND` map a class to its phrases, the usual ones several times, as captions draw from
them at random. A phrase that stands under several classes names none of them for sure. The family that is shipped may
have been trained on fewer classes than these.
"""

from __future__ import annotations

INSTRUMENTS = (
    "piano",
    "guitar",
    "harp",
    "violin",
    "cello",
    "flute",
    "clarinet",
    "trumpet",
    "organ",
    "marimba",
    "banjo",
    "accordion",
    "oboe",
    "vibraphone",
)
STYLES = ("reel", "hornpipe", "strathspey", "march", "polka", "jig", "slip jig", "waltz", "air")
TEMPI = ("slow", "moderate", "fast")
MODES = ("major", "minor")

TONICS = ("c", "c sharp", "d", "e flat", "e", "f", "f sharp", "g", "a flat", "a", "b flat", "b")
PLAYED_BY = {
    "piano": ("piano", "piano", "piano", "grand piano", "acoustic piano", "keyboard"),
    "guitar": (
        "guitar",
        "guitar",
        "acoustic guitar",
        "nylon guitar",
        "classical guitar",
        "spanish guitar",
        "fingerpicked guitar",
    ),
    "harp": ("harp", "harp", "celtic harp", "irish harp"),
    "violin": ("violin", "violin", "fiddle", "irish fiddle"),
    "cello": ("cello", "cello", "violoncello"),
    "flute": ("flute", "flute", "irish flute", "wooden flute"),
    "clarinet": ("clarinet", "clarinet", "woodwind clarinet"),
    "trumpet": ("trumpet", "trumpet", "brass trumpet"),
    "organ": ("organ", "organ", "church organ", "pipe organ"),
    "marimba": ("marimba", "marimba", "mallet percussion", "wooden marimba", "xylophone"),
    "banjo": ("banjo", "banjo", "five string banjo", "bluegrass banjo"),
    "accordion": ("accordion", "accordion", "squeezebox", "button accordion"),
    "oboe": ("oboe", "oboe", "baroque oboe"),
    "vibraphone": ("vibraphone", "vibraphone", "vibes", "vibraharp"),
}
TEMPO = {
    "slow": (
        "slow",
        "slow",
        "slow",
        "calm",
        "calm",
        "gentle",
        "relaxed",
        "peaceful",
        "quiet",
        "soft",
        "tender",
        "unhurried",
        "soothing",
        "adagio",
    ),
    "moderate": (
        "moderate",
        "mid tempo",
        "medium",
        "walking",
        "steady",
        "easy",
        "flowing",
        "andante",
        "moderately fast",
    ),
    "fast": (
        "fast",
        "fast",
        "fast",
        "lively",
        "lively",
        "upbeat",
        "energetic",
        "quick",
        "brisk",
        "driving",
        "allegro",
        "spirited",
        "up tempo",
        "exciting",
    ),
}
MOOD = {
    ("slow", "major"): (
        "warm",
        "dreamy",
        "tranquil",
        "sweet",
        "serene",
        "nostalgic",
        "romantic",
        "lullaby like",
        "relaxing",
    ),
    ("slow", "minor"): (
        "sad",
        "melancholy",
        "wistful",
        "mournful",
        "sorrowful",
        "dark",
        "lonely",
        "haunting",
        "emotional",
    ),
    ("moderate", "major"): ("happy", "bright", "warm", "cheerful", "pleasant", "sunny", "friendly", "playful", "sweet"),
    ("moderate", "minor"): ("mysterious", "wistful", "moody", "serious", "dark", "pensive", "melancholy", "sad"),
    ("fast", "major"): (
        "happy",
        "joyful",
        "cheerful",
        "bright",
        "merry",
        "festive",
        "playful",
        "fun",
        "uplifting",
        "dancing",
    ),
    ("fast", "minor"): ("urgent", "dramatic", "fiery", "restless", "intense", "dark", "mysterious", "wild", "tense"),
}
KIND = {
    "reel": ("reel", "reel", "irish reel", "celtic reel", "folk dance"),
    "hornpipe": ("hornpipe", "hornpipe", "sailor hornpipe", "folk dance"),
    "strathspey": ("strathspey", "scottish dance", "highland fling"),
    "march": ("march", "march", "marching tune"),
    "polka": ("polka", "folk polka"),
    "jig": ("jig", "jig", "irish jig", "celtic jig", "folk dance"),
    "slip jig": ("slip jig", "jig", "irish slip jig"),
    "waltz": ("waltz", "waltz", "waltz", "dance in three"),
    "air": ("air", "air", "irish air", "song", "ballad", "folk song"),
}
GENERIC = (
    "tune",
    "melody",
    "piece",
    "folk tune",
    "song",
    "music",
    "theme",
    "traditional tune",
    "folk music",
    "celtic music",
    "irish music",
)
SOLO = ("solo", "unaccompanied", "alone", "solo performance", "single instrument")
CHORDS = (
    "with {a} chords",
    "with {a} accompaniment",
    "accompanied by {a}",
    "and {a}",
    "over {a} chords",
    "with {a}",
    "backed by {a}",
)
BAND = (
    "with {a}, bass and drums",
    "with a band",
    "with bass and drums",
    "with a folk band",
    "with {a}, bass and light percussion",
    "and a rhythm section",
    "with drums",
)
REGISTER = {
    "high": ("high", "in a high register", "high pitched"),
    "low": ("low", "in a low register", "deep"),
    "middle": ("in a middle register",),
}
