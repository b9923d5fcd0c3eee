"""Quantization: schemes, plans that name which module gets which, and the folders that they are written to."""
