"""Quantization: schemes, plans that name which module gets which, and the folders that they are written to.

A plan is given, or searched for within a budget: `adaptive` measures what every scheme costs on this machine and does
to the model (`cost`, `trial`, `sensitivity`), `search` finds the best plan exactly, and all of it is measured again.
"""
