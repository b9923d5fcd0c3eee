"""The tables of an evaluation's report, from the record that `Evaluation.as_dict` gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..measure.report import Range, cell, table
from .limits import LEAST
from .listener import HEADS

QUALITY = (
    ("perplexity", "perplexity", "{:.1f}"),
    ("KL to teacher", "kl_to_teacher", "{:.3f}"),
    ("FAD∞", "fad_infinity", "{:.2f}"),
    ("FAD", "fad", "{:.2f}"),
    ("KAD", "kad", "{:.2f}"),
    ("kappa", "kappa", "{:.2f}"),
    ("CLAP score", "clap_score", "{:.3f}"),
)
MORE_IS_BETTER = ("kappa", "clap_score", "x_realtime", "si_sdr_db")
RATIOS = (("NLL", "nll"), *((title, key) for title, key, _ in QUALITY))
SPEED = (
    ("x real time", "x_realtime", 1.0, "{:.2f}"),
    ("first sound ms", "first_sound_ms", 1.0, "{:,.0f}"),
    ("ms a step", "ms_per_step", 1.0, "{:.2f}"),
    ("total s", "total_s", 1.0, "{:.2f}"),
    ("peak memory MB", "peak_memory_bytes", 1e-6, "{:,.1f}"),
    ("on disk MB", "disk_bytes", 1e-6, "{:,.1f}"),
)
CODEC = (("log-mel L1", "log_mel_l1", "{:.3f}"), ("SI-SDR dB", "si_sdr_db", "{:.1f}"))
CODEC_MEANING = """
Log-mel L1: mean distance of natural-log mel magnitudes over four window lengths, which is what is heard. SI-SDR
compares waveforms: a codec that rebuilds magnitudes and makes up the phases, as ours does, is far below 0 dB there and
none the worse for it; one that codes waveforms should be above.
"""


def ends(figure: Mapping) -> Range:
    """The interval of a figure; None where it has none."""
    return None if figure["low"] is None else (figure["low"], figure["high"])


def scaled(spread: Sequence[float] | None, factor: float) -> Range:
    """Lowest and highest in another unit; None where nothing is known of them."""
    return None if spread is None else (spread[0] * factor, spread[1] * factor)


def interval_cell(figure: Mapping | None, form: str) -> str:
    """A figure with its interval; a dash where it was not measured."""
    return cell(None, form) if figure is None else cell(figure["value"], form, ends(figure))


def share(figure: Mapping | None) -> str:
    """A figure in percent with its interval; a dash where it was not measured."""
    return interval_cell(figure, "{:.1%}")


def _rows(record: Mapping) -> list[tuple[str, Mapping]]:
    """Name and quality of variants and baselines."""
    variants = [(variant["model"], variant["quality"]) for variant in record["variants"]]
    return variants + [(each["name"], each["quality"]) for each in record["baselines"]]


def retention(pairs: Mapping[str, Mapping]) -> str:
    """The headline and its parts, one row a pair of variants."""
    if not pairs:
        return "One variant alone: there is nothing to compare it with."
    columns = ("", "retention", "likelihood", "sound", "prompt")
    return table(columns, [[name, *(share(kept[part]) for part in columns[1:])] for name, kept in pairs.items()])


def ratios(pairs: Mapping[str, Mapping]) -> list[str]:
    """What a pair keeps of every single figure of quality; nothing for one variant alone."""
    found = {name: kept["ratios"] for name, kept in pairs.items()}
    rows = _ratio_rows(RATIOS, found)
    return ["Figure by figure, the one over the other:", table(("", "better", *pairs), rows)] if rows else []


def _ratio_rows(names: Sequence[tuple[str, str]], pairs: Mapping[str, Mapping]) -> list[list[str]]:
    """One row a figure that any pair has, one column a pair, and whether more or less of it is better."""
    return [
        [title, "more" if key in MORE_IS_BETTER else "less", *(share(pair[key]) for pair in pairs.values())]
        for title, key in names
        if any(pair[key] is not None for pair in pairs.values())
    ]


def quality(record: Mapping) -> str:
    """Every figure of quality, one row a variant or baseline."""
    rows = [[name, *(interval_cell(found[key], form) for _, key, form in QUALITY)] for name, found in _rows(record)]
    return table(["", *(title for title, _, _ in QUALITY)], rows)


def codebooks(record: Mapping) -> list[str]:
    """Likelihood and divergence of each codebook apart; nothing where no variant has any."""
    blocks = []
    for title, key in (("NLL", "nll_per_codebook"), ("KL to teacher", "kl_per_codebook")):
        found = {each["model"]: each["quality"][key] for each in record["variants"] if each["quality"][key]}
        if found:
            count = max(map(len, found.values()))
            rows = [[name, *(interval_cell(each, "{:.3f}") for each in values)] for name, values in found.items()]
            columns = ["", *(f"codebook {number}" for number in range(1, count + 1))]
            blocks += [f"{title} in nats a token, codebook by codebook:", table(columns, rows)]
    return blocks


def codec(found: Mapping[str, Mapping]) -> list[str]:
    """What the codec's round trip costs; nothing where that was not measured."""
    if not found:
        return []
    rows = [
        [title, "more" if key in MORE_IS_BETTER else "less", interval_cell(found[key], form), str(found[key]["n"])]
        for title, key, form in CODEC
    ]
    heading = ["## The codec", "Held-out music, encoded and decoded, against itself:"]
    return [*heading, table(("", "better", "round trip", "windows"), rows), CODEC_MEANING]


def adherence(record: Mapping) -> str:
    """One row a variant and judge, one column an attribute, with chance."""
    rows = []
    for name, found in _rows(record):
        for judge, heard in found["adherence"].items():
            rows.append([name, judge, *(_asked_cell(heard.get(attribute)) for attribute in HEADS)])
    return table(["", "judge", *HEADS], rows)


def heard(pairs: Mapping[str, Mapping]) -> list[str]:
    """How much more often the one of a pair is what the prompts ask for; nothing where none asks, or for one alone."""
    names = [name for name in HEADS if any(name in kept["heard"] for kept in pairs.values())]
    rows = [[pair, *(_gain(kept["heard"].get(name)) for name in names)] for pair, kept in pairs.items()]
    said = "How much more often the one than the other, prompt by prompt, as the listener hears it (in points):"
    return [said, table(["", *names], rows)] if names else []


def _gain(found: Mapping | None) -> str:
    if found is None:
        return share(None)
    points = {name: None if found[name] is None else 100 * found[name] for name in ("value", "low", "high")}
    return interval_cell(points, "{:+.1f}")


def _asked_cell(found: Mapping | None) -> str:
    if found is None:
        return share(None)
    accuracy = found["accuracy"]
    return f"{share(accuracy)}, chance {found['chance']:.0%}, n {accuracy['n']}"


STEADY = (
    ("key", "key", "{:.2f}"),
    ("tempo", "tempo", "{:.2f}"),
    ("silence", "silence", "{:.1%}"),
    ("noise dB", "noise", "{:.1f}"),
    ("loop", "loop", "{:.2f}"),
    ("stuck", "stuck", "{:.2f}"),
)
STEADINESS = """
- Key: how much better the pitch classes of the first and the last third fit as they are than transposed. Tempo: how
  much better the rhythms of the two thirds fit as they are than at any other tempo. Silence: share of the clip. Noise:
  spectral flatness of the noisiest third (white noise: -2.5). Loop: how exactly the clip repeats what it played up to
  5 s before (one bar over and over: 1). Stuck: how alike its moments are (one chord: 1).
- Within: as real music is in 95 of 100 windows, figure by figure; so real music is the measure, not 100%. No
  collapse: within the limits of silence, noise, loop and stuck. All: within all six limits. Same scale: the nearest
  keys of the first and the last third are one key, or relatives.
"""


def steadiness(record: Mapping) -> list[str]:
    """Whether clips stay one piece of music; nothing for short ones."""
    found = record["steadiness"]
    if found is None:
        return []
    shares = [*((title.split()[0], key) for title, key, _ in STEADY), ("no collapse", "no_collapse"), ("all", "all")]
    within = [
        [name, *(share(row["within"] and row["within"][key]) for _, key in shares), share(row["same_scale"])]
        for name, row in found["rows"].items()
    ]
    means = [
        [name, *(interval_cell(row["mean"][key], form) for _, key, form in STEADY)]
        for name, row in found["rows"].items()
    ]
    if found["limits"] is None:
        limits = "There is too little real music as long as this to say what is within its range."
    else:
        limits = f"Limits of {found['windows']} windows of real music of {found['seconds']:g} s: " + "; ".join(
            f"{title} {'at least' if key in LEAST else 'at most'} {form.format(found['limits'][key])}"
            for title, key, form in STEADY
        )
    return [
        f"## Whether clips of {record['settings']['seconds']:g} s stay one piece of music",
        "Share of clips within the range of real music:",
        table(["", *(title for title, _ in shares), "same scale"], within),
        limits,
        "Means:",
        table(["", *(title for title, _, _ in STEADY)], means),
        STEADINESS,
    ]


def speed(record: Mapping) -> list[str]:
    """Speed and size of the variants with the spread of their runs, and every variant's ratios to others."""
    variants, pairs = record["variants"], record["retention"]
    rows = [[variant["model"], *(_speed_cell(variant, *words) for words in SPEED)] for variant in variants]
    blocks = [_speed_how(variants[0]["figures"]), table(["", *(title for title, *_ in SPEED)], rows)]
    names = [(title, key) for title, key, _, _ in SPEED]
    lines = _ratio_rows(names, {name: kept["speed_ratios"] for name, kept in pairs.items()})
    return [*blocks, "The one over the other:", table(("", "better", *pairs), lines)] if lines else blocks


def _speed_how(figures: Mapping) -> str:
    if not figures["runs"]:
        return "Speed and memory were not measured."
    threads = f"{figures['threads']} thread{'s' * (figures['threads'] != 1)}"
    return f"Medians of {figures['runs']} runs in a fresh process on {figures['device']}, {threads}."


def _speed_cell(variant: Mapping, title: str, key: str, factor: float, form: str) -> str:
    value = variant["figures"][key]
    return cell(None if value is None else value * factor, form, scaled(variant["spread"].get(key), factor))


def judges(found: Mapping) -> str:
    """How often the judges are right about held-out music, as sound and after the codec."""
    rows = []
    for judge, attributes in found.items():
        for attribute, kinds in attributes.items():
            rows.append([judge, attribute, *(share(kinds.get(kind)) for kind in ("real", "codec"))])
    return table(["judge", "attribute", "right about real audio", "right after the codec"], rows)
