"""What `peers` measured, as a table and as a report of two files: report.json and report.md."""

from __future__ import annotations

from pathlib import Path

from .machine import notes as machine_notes
from .peers import GREEDY_FRAMES, REFERENCE, Peer, Peers
from .report import NOTHING, cell, document, made_with, table, write_files

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
  its own, one row at a time, after a warm-up that does not count. Figures are medians of the runs; of several runs the
  lowest and the highest time of a step stand in brackets.
- ms a step: all of the language model's time over its steps, drawing the tokens included. A step makes one column of
  four codebooks.
- x real time: seconds of sound over the whole time, text, language model and codec. Codec ms a s: decoding alone, for
  each second of sound. First sound: ours streams; the others have none before the whole clip is there.
- Peak memory: the highest resident set of a run, above the same process with its libraries and no model. What
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
    peak, several = figures.peak_memory_bytes, (figures.runs or 0) > 1
    same = {None: NOTHING, True: "yes", False: "NO"}[peer.same_tokens]
    return [
        f"{peer.row.name} ({layers})",
        cell(figures.ms_per_step, "{:.1f}", figures.spread.ms_per_step if several else None),
        cell(peer.x_reference, "{:.2f}"),
        cell(figures.x_realtime, "{:.3f}"),
        cell(peer.codec_ms_per_s, "{:.0f}"),
        cell(figures.first_sound_ms, "{:,.0f}"),
        cell(None if peak is None else peak / 1e6, "{:,.0f}"),
        cell(None if peer.step_bytes is None else peer.step_bytes / 1e6, "{:,.1f}"),
        cell(peer.gb_per_s, "{:.1f}"),
        cell(peer.bandwidth_share, "{:.0%}"),
        same,
    ]


def notes(found: Peers) -> list[str]:
    """What the table does not say: by which command, the machine, its bandwidth, and what was skipped."""
    setting = found.setting
    lines = [
        *made_with(found.command),
        f"MusicGen in the shape {setting.shape}; {setting.seconds:g} s of music, "
        f"{setting.runs} run{'s' * (setting.runs != 1)} a row, seed {setting.seed}",
        *machine_notes(found.machine),
        f"memory bandwidth: {found.bandwidth / 1e9:.1f} GB/s",
    ]
    return lines + [f"{peer.row.name}: not measured. {peer.skipped}" for peer in found.peers if peer.skipped]


def markdown(found: Peers) -> str:
    """The report as Markdown."""
    rows = table(COLUMNS, [cells(peer) for peer in found.peers])
    return document("MusicGen on a CPU: programs side by side", notes(found), rows, "How it was measured:", EXPLANATION)


def write_report(found: Peers, folder: Path) -> list[Path]:
    """Write report.json and report.md into a folder, which is made where there is none; returns their paths."""
    return write_files(folder, {"report.json": found.as_dict(), "report.md": markdown(found)})
