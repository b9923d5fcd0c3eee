"""Honest figures of a variant: speed, latency, memory and size, each measured in a process of its own."""
