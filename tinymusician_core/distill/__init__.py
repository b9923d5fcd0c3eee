"""Distillation: a small student learns from a MusicGen-family teacher."""
