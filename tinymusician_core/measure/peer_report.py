"""What `peers` measured, as a table and as a report of two files: report.json and report.md."""

from __future__ import annotations

import json
from pathlib import Path

from ..files import whole_file
from .peers import GREEDY_FRAMES, REFERENCE, Peer, Peers

NOTHING = "–"
COLUMNS = (
    "",
    "ms a step",
    f"x {REFERENCE}",
    "x real time",
    "codec ms a s",
    "first sound ms",
    "peak memory MB",
    "MB read a step",
    "GB/s",
    "of bandwidth",
    "same tokens",
)
EXPLANATION = f"""
- Every row plays the same random weights, prompt tokens and seed with guidance 3 and top-k 250, in a fresh process of
  its own, one row at a time, after a warm-up that does not count. Figures are the median of the runs.
- ms a step: all of the language model's time over its steps, drawing the tokens included. A step makes one column of
  four codebooks.
- x real time: seconds of sound over the whole time, text, language model and codec. Codec ms a s: decoding alone, for
  each second of sound. First sound: ours streams; the others have none before the whole clip is there.
- Peak memory: the highest resident set while playing, above the same process with its libraries and no model. What
  making the weights took is given back before.
- MB read a step: the weights of qkv, out, cross_q, cross_out, fc1, fc2 and heads, as they are stored. GB/s: those
  bytes over the time of a step; of bandwidth: the share of what the machine was seen to read, before the first row or
  after the last. No share is given where all of it fits into the processor's cache.
- bf16 and fp16 are the decoder and the text encoder, the codec being float32; int8 and int4 are the presets fast and
  int4 of `tinymusician quantize`.
- Same tokens: whether the first {GREEDY_FRAMES} frames, greedily, are those of {REFERENCE}.
"""


def cells(peer: Peer) -> list[str]:
    """A row of the table, as `COLUMNS` names it."""
    figures, layers = peer.figures, f"{peer.layers} layer{'s' * (peer.layers != 1)}"
    peak = figures.peak_memory_bytes
    same = {None: NOTHING, True: "yes", False: "NO"}[peer.same_tokens]
    return [
        f"{peer.row.name} ({layers})",
        _cell(figures.ms_per_step, "{:.1f}"),
        _cell(peer.x_reference, "{:.2f}"),
        _cell(figures.x_realtime, "{:.3f}"),
        _cell(peer.codec_ms_per_s, "{:.0f}"),
        _cell(figures.first_sound_ms, "{:,.0f}"),
        _cell(None if peak is None else peak / 1e6, "{:,.0f}"),
        _cell(None if peer.step_bytes is None else peer.step_bytes / 1e6, "{:,.1f}"),
        _cell(peer.gb_per_s, "{:.1f}"),
        _cell(peer.bandwidth_share, "{:.0%}"),
        same,
    ]


def _cell(value: float | None, form: str) -> str:
    return NOTHING if value is None else form.format(value)


def notes(found: Peers) -> list[str]:
    """What the table does not say: the machine, its bandwidth, and what was skipped."""
    machine, setting = found.machine, found.setting
    versions = (f"{name} {machine[name]}" for name in ("torch", "transformers", "audiocraft") if machine[name])
    lines = [
        f"MusicGen in the shape {setting.shape}; {setting.seconds:g} s of music, "
        f"{setting.runs} run{'s' * (setting.runs != 1)} a row, seed {setting.seed}, {machine['date']}",
        f"{machine['cpu']} ({machine['instructions']}), {machine['threads']} threads on {machine['cores']} cores; "
        f"Python {machine['python']}, {', '.join(versions)}; OMP_WAIT_POLICY={machine['omp_wait_policy']} in every row",
        f"memory bandwidth: {found.bandwidth / 1e9:.1f} GB/s",
    ]
    return lines + [f"{peer.row.name}: not measured. {peer.skipped}" for peer in found.peers if peer.skipped]


def markdown(found: Peers) -> str:
    """The report as Markdown."""
    table = [COLUMNS, ["---", *["---:"] * (len(COLUMNS) - 1)], *map(cells, found.peers)]
    lines = ["# MusicGen on a CPU: programs side by side", ""]
    lines += [f"- {note}" for note in notes(found)]
    lines += ["", *(f"| {' | '.join(row)} |" for row in table), "", "How it was measured:"]
    return "\n".join(lines) + "\n" + EXPLANATION


def write_report(found: Peers, folder: Path) -> list[Path]:
    """Write report.json and report.md into a folder, which is made where there is none; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"report.json": json.dumps(found.as_dict(), indent=1, allow_nan=False) + "\n", "report.md": markdown(found)}
    for name, text in texts.items():
        with whole_file(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]
