"""TinyMusician: text-to-music models that are small enough for the machine in front of you.

    import tinymusician_core as tm
    clip = tm.generate(tm.load("student"), "a calm piano waltz in G major", seconds=8, seed=7)
    clip.save("waltz.wav")

Importing this package is quick: each public name is imported when it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_HOME = {
    "load": ".variants",
    "generate": ".pipeline",
    "Pipeline": ".pipeline",
    "compare": ".measure.bench",
    "distill": ".distill.train",
    "quantize": ".quant.apply",
    "evaluate": ".evaluate.run",
    "Cancelled": ".records",
    "Clip": ".records",
    "Figures": ".records",
    "ModelError": ".records",
    "Progress": ".records",
    "SamplingSpec": ".records",
    "Timing": ".records",
    "Waveform": ".records",
}
__all__ = sorted(_HOME)


class _CallablePackage(ModuleType):
    """A sub-package named like a public function: `tm.distill(...)` calls, `tm.distill.train` looks up."""

    def __call__(self, *args, **kwargs):
        name = self.__name__.rpartition(".")[2]
        return getattr(import_module(_HOME[name], __package__), name)(*args, **kwargs)


class _Package(ModuleType):
    """This package; a sub-package named like a public function becomes callable as soon as anything imports it."""

    def __setattr__(self, name, value):
        if name in _HOME and type(value) is ModuleType:
            value.__class__ = _CallablePackage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name], __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})
