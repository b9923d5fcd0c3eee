"""The studio's look: warm paper by day, a dim control room by night, one record-red accent, system fonts only.

Gradio's own widgets take their colours from the theme; what the studio draws itself is in studio.css, which uses the
same palette through CSS variables.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr
from gradio.themes import Base, Color
from gradio.themes.utils.sizes import Size

HERE = Path(__file__).parent
CSS = HERE / "studio.css"
SCRIPTS = (HERE / "sound.js", HERE / "player.js")
FAVICON = HERE / "favicon.svg"

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Liberation Sans", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Consolas", "Liberation Mono", "monospace")

RECORD = Color(
    "#fdf1ee", "#fbdfd8", "#f6bfb2", "#f09a86", "#f0735a", "#d9543b", "#c0402a", "#9f3422", "#7d2a1d", "#5a2017",
    "#38130d", name="record",
)  # fmt: skip
PAPER = Color(
    "#fffdf8", "#f6f2ea", "#e9e3d6", "#d8d0c0", "#a8a598", "#7d8480", "#59666a", "#3a474b", "#263135", "#182023",
    "#101618", name="paper",
)  # fmt: skip
RADIUS = Size("2px", "4px", "6px", "10px", "12px", "16px", "20px", name="studio")

# Each value by day and by night; the names are Gradio's.
COLOURS = {
    "body_background_fill": ("*neutral_100", "*neutral_950"),
    "body_text_color": ("#1d2b2f", "#ece6d9"),
    "body_text_color_subdued": ("#59666a", "#a3aead"),
    "background_fill_primary": ("*neutral_50", "*neutral_900"),
    "background_fill_secondary": ("*neutral_100", "*neutral_950"),
    "border_color_primary": ("#e2dbcc", "#2c373b"),
    "border_color_accent": ("*primary_600", "*primary_400"),
    "color_accent_soft": ("*primary_50", "#3a1d17"),
    "link_text_color": ("*primary_700", "*primary_300"),
    "link_text_color_hover": ("*primary_800", "*primary_200"),
    "link_text_color_visited": ("*primary_700", "*primary_300"),
    "link_text_color_active": ("*primary_700", "*primary_300"),
    "block_background_fill": ("transparent", "transparent"),
    "block_border_color": ("transparent", "transparent"),
    "block_title_text_color": ("#59666a", "#a3aead"),
    "block_label_text_color": ("#59666a", "#a3aead"),
    "block_info_text_color": ("#6a7476", "#8f9b9b"),
    "accordion_text_color": ("#1d2b2f", "#ece6d9"),
    "input_background_fill": ("#ffffff", "#11181a"),
    "input_background_fill_focus": ("#ffffff", "#11181a"),
    "input_border_color": ("#d8d0c0", "#354146"),
    "input_border_color_focus": ("*primary_600", "*primary_400"),
    "input_placeholder_color": ("#8b9290", "#77837f"),
    "checkbox_background_color": ("#ffffff", "#11181a"),
    "checkbox_background_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_border_color": ("#b9b3a4", "#4a575b"),
    "checkbox_border_color_selected": ("*primary_600", "*primary_500"),
    "checkbox_label_background_fill": ("#ffffff", "#11181a"),
    "checkbox_label_background_fill_hover": ("*neutral_50", "#1d272a"),
    "checkbox_label_background_fill_selected": ("#ffffff", "#11181a"),
    "checkbox_label_border_color": ("#d8d0c0", "#354146"),
    "checkbox_label_border_color_selected": ("#1d2b2f", "#ece6d9"),
    "checkbox_label_text_color": ("#1d2b2f", "#ece6d9"),
    "checkbox_label_text_color_selected": ("#1d2b2f", "#ece6d9"),
    "button_primary_background_fill": ("*primary_600", "*primary_400"),
    "button_primary_background_fill_hover": ("*primary_700", "*primary_300"),
    "button_primary_border_color": ("transparent", "transparent"),
    "button_primary_text_color": ("#ffffff", "#1b0d09"),
    "button_primary_text_color_hover": ("#ffffff", "#1b0d09"),
    "button_secondary_background_fill": ("#ffffff", "#1d272a"),
    "button_secondary_background_fill_hover": ("*neutral_50", "#263236"),
    "button_secondary_border_color": ("#d8d0c0", "#354146"),
    "button_secondary_border_color_hover": ("#a8a598", "#59666a"),
    "button_secondary_text_color": ("#1d2b2f", "#ece6d9"),
    "button_secondary_text_color_hover": ("#1d2b2f", "#ece6d9"),
    "error_background_fill": ("#fdf1ee", "#2c1814"),
    "error_border_color": ("*primary_600", "*primary_400"),
    "error_text_color": ("#7d2a1d", "#f6bfb2"),
}
FLAT = {
    "block_shadow": "none",
    "block_border_width": "0px",
    "block_padding": "0px",
    "block_title_text_weight": "550",
    "block_title_text_size": "*text_sm",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 3px color-mix(in srgb, *primary_500 22%, transparent)",
    "input_radius": "*radius_lg",
    "checkbox_label_border_width": "1px",
    "checkbox_label_shadow": "none",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_border_width": "1px",
    "button_large_radius": "*radius_lg",
    "button_medium_radius": "*radius_lg",
    "button_small_radius": "*radius_md",
    "button_large_text_weight": "600",
    "form_gap_width": "0px",
    "layout_gap": "16px",
}


def theme() -> Base:
    """The Gradio theme; it names system fonts only, so that the studio needs no network."""
    look = Base(
        primary_hue=RECORD,
        secondary_hue=PAPER,
        neutral_hue=PAPER,
        radius_size=RADIUS,
        font=list(SANS),
        font_mono=list(MONO),
    )
    night = {f"{name}_dark": dark for name, (_, dark) in COLOURS.items()}
    return look.set(**{name: day for name, (day, _) in COLOURS.items()}, **night, **FLAT)


def html(value: str = "", **options) -> gr.HTML:
    """A piece of the studio's own markup, kept clear of Gradio's text styles."""
    return gr.HTML(value, apply_default_css=False, **options)


def head() -> str:
    """What goes into the page's head: the players' scripts and the colour of a phone's address bar."""
    scripts = "".join(script.read_text(encoding="utf-8") for script in SCRIPTS)
    return (
        '<meta name="theme-color" media="(prefers-color-scheme: light)" content="#f6f2ea">'
        '<meta name="theme-color" media="(prefers-color-scheme: dark)" content="#101618">'
        f"<script>{scripts}</script>"
    )
