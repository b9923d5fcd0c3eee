"""The process of a worker around a model of known slowness and hunger: what `tests/test_meter.py` measures."""

import sys
import time

import numpy as np

from tinymusician_core import variants, worker_process

MB = 2**20
TEXT_S, STEP_S, CODEC_S = 0.15, 0.01, 0.08  # of reading a prompt, of a decoder step, of each piece of sound
LOAD_BYTES, RUN_BYTES = 160 * MB, 64 * MB  # taken for a moment while loading, and in each run


def use(size_bytes: int) -> None:
    """Touch every page of so much memory, and give it back."""
    assert np.ones(size_bytes, dtype=np.uint8)[::4096].all()


def slowed(function, seconds: float, size_bytes: int = 0):
    """The function, so many seconds later, and with so much memory for a moment."""

    def call(*args, **options):
        time.sleep(seconds)
        if size_bytes:
            use(size_bytes)
        return function(*args, **options)

    return call


def load_slowly(model: str, device: str):
    """A model as `variants.load` gives it, every part of which sleeps."""
    pipeline = load(model, device)
    use(LOAD_BYTES)
    pipeline.text_encoder.encode_each = slowed(pipeline.text_encoder.encode_each, TEXT_S, RUN_BYTES)
    pipeline.decoder.step = slowed(pipeline.decoder.step, STEP_S)
    stream = pipeline.codec.stream

    def slow_stream(*args):
        made = stream(*args)
        made.push = slowed(made.push, CODEC_S)
        return made

    pipeline.codec.stream = slow_stream
    return pipeline


if __name__ == "__main__":
    load, variants.load = variants.load, load_slowly
    sys.argv = ["worker_process", *sys.argv[-1:]]
    worker_process.main()
