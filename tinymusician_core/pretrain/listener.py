"""Train the listener on the real audio of the training tunes, measure it on tunes held out, publish it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinymusician_core.codec.spectral import SpectralCodec
from tinymusician_core.evaluate.listener import HEADS, WINDOW_S, Listener, save_listener
from tinymusician_core.evaluate.listener_net import ListenerConfig, ListenerNet
from tinymusician_core.evaluate.spectra import PITCH_HOP, SAMPLE_RATE_HZ
from tinymusician_core.pretrain.listener_accuracy import Accuracy, accuracy
from tinymusician_core.pretrain.listener_data import ListenerData, Windows, build_spectra
from tinymusician_core.pretrain.pieces import read_audio
from tinymusician_core.training import CHECKPOINT, Trainer, TrainSettings

LENGTHS_S = ((WINDOW_S, 0.6), (5.0, 0.15), (7.5, 0.15), (15.0, 0.1))
HEAD_WEIGHTS = {"instrument": 1.0, "style": 1.0, "tempo": 1.0, "mode": 1.0}
KEY_WEIGHT, CHROMA_WEIGHT = 0.5, 2.0
RARE_POWER, SMOOTHING = 0.5, 0.05
DEFAULT = ListenerConfig()
KINDS = (("", "value"), (" balanced", "balanced"))


def class_weights(shares: np.ndarray, power: float = RARE_POWER) -> Tensor:
    """Loss weights float32 [classes]: a class counts by its share to the power of minus `power`, and the average piece
    counts 1; a class that does not occur counts nothing."""
    weights = np.where(shares > 0, np.maximum(shares, 1e-9) ** -power, 0.0)
    return torch.from_numpy(weights / (weights * shares).sum()).float()


class ListenerTraining(nn.Module):
    """The network, what training alone reads from it (the sounding notes), and the loss."""

    def __init__(self, config: ListenerConfig, shares: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.net = ListenerNet(config, {head: len(classes) for head, classes in HEADS.items()})
        self.notes = nn.Conv2d(config.chroma_dim, 1, 1)
        for head, values in shares.items():
            self.register_buffer(f"weight_{head}", class_weights(values), persistent=False)

    def loss(self, windows: Windows) -> dict[str, Tensor]:
        """Cross-entropy of the four heads, of the key (tonic and mode), and of the sounding pitch classes."""
        judged = self.net(windows.seen.levelled())
        losses = {}
        for head, logits in judged.logits.items():
            weight = getattr(self, f"weight_{head}")
            target = windows.classes[head]
            each = F.cross_entropy(logits, target, reduction="none", label_smoothing=SMOOTHING)
            losses[head] = (each * weight[target]).mean()
        key = windows.classes["mode"] * 12 + windows.tonic
        each = F.cross_entropy(judged.keys.flatten(1), key, reduction="none")
        losses["key"] = (each * self.weight_mode[windows.classes["mode"]]).mean()
        notes = self.notes(judged.chroma)[:, 0].float()
        losses["notes"] = F.binary_cross_entropy_with_logits(notes, windows.chroma)
        total = sum(HEAD_WEIGHTS[head] * losses[head] for head in HEADS)
        losses["loss"] = total + KEY_WEIGHT * losses["key"] + CHROMA_WEIGHT * losses["notes"]
        return losses


def draw_length(rng: torch.Generator, seconds: Sequence[tuple[float, float]], longest_s: float) -> float:
    """A window length by its odds, among those that the longest piece has."""
    fit = [(s, odds) for s, odds in seconds if s <= longest_s]
    if not fit:
        return longest_s
    return fit[int(torch.multinomial(torch.tensor([odds for _, odds in fit]), 1, generator=rng))][0]


def averaged_net(trainer: Trainer) -> ListenerNet:
    """The network with the weights to keep."""
    net = copy.deepcopy(trainer.model.net)
    state = trainer.averaged_state()
    net.load_state_dict({name: state[f"net.{name}"] for name in net.state_dict()})
    return net.eval()


@torch.inference_mode()
def judge(net: ListenerNet, data: ListenerData, batch: int = 32) -> dict[str, Accuracy]:
    """How well the network does on every window of a split, head by head."""
    places, samples = data.places(), round(WINDOW_S * SAMPLE_RATE_HZ)
    judged = [net(data.gather(places[i : i + batch], samples).seen.levelled()) for i in range(0, len(places), batch)]
    of = [i for i, _ in places]
    tunes = [data.pieces[i].tune for i in of]
    guess = {head: torch.cat([j.logits[head] for j in judged]).argmax(1).numpy() for head in HEADS}
    return {head: accuracy(data.classes[head][of], guess[head], tunes) for head in HEADS}


def train_listener(
    work: Path,
    minutes: float | None = None,
    steps: int | None = None,
    batch: int = 32,
    learning_rate: float = 2e-3,
    start_from: Path | None = None,
    config: ListenerConfig = DEFAULT,
) -> None:
    """Train on the windows of the training tunes for so many minutes or steps, over all resumed runs, and write
    `work/listener/model`, whose accuracy is still empty: `publish_listener` measures it. A new one may start from an
    earlier one's weights (a folder that `Listener.from_folder` reads)."""
    build_spectra(work)
    train, held_out = ListenerData(work, "train"), ListenerData(work, "validation")
    torch.manual_seed(0)
    model = ListenerTraining(config, {head: train.shares(head) for head in HEADS})
    if start_from is not None and not (work / "listener" / CHECKPOINT).exists():
        model.net.load_state_dict(Listener.from_folder(start_from).net.state_dict())
    settings = TrainSettings(
        learning_rate,
        minutes,
        steps,
        warm_up_steps=50,
        weight_decay=0.05,
        ema=0.999,
        betas=(0.9, 0.99),
        log_every=50,
        validate_every_s=120,
    )
    trainer = Trainer(model, settings, work / "listener")
    trainer.resume()
    longest_s = float(train.samples.max() / SAMPLE_RATE_HZ)

    def loss(rng: torch.Generator, _: float) -> dict[str, Tensor]:
        model.train()
        return model.loss(train.batch(rng, batch, draw_length(rng, LENGTHS_S, longest_s)))

    def validate() -> dict[str, float]:
        reached = judge(averaged_net(trainer), held_out)
        record = {f"{head}{kind}": getattr(a, key) for head, a in reached.items() for kind, key in KINDS}
        print("listener: unseen tunes: " + ", ".join(f"{k} {v:.3f}" for k, v in record.items()), flush=True)
        return {f"validation_{name}": value for name, value in record.items()}

    trainer.run(
        loss,
        validate,
        lambda progress: print(f"listener: {progress}", flush=True),
    )
    save_listener(work / "listener" / "model", averaged_net(trainer), {})


def measure_listener(listener: Listener, work: Path, codec: SpectralCodec) -> dict[str, dict[str, dict[str, float]]]:
    """The listener's accuracy on the real audio of the test tunes, in windows of 10 s, and on the same windows after
    the codec's round trip: what `Listener.accuracy` holds."""
    data = ListenerData(work, "test")
    places, samples = data.places(), round(WINDOW_S * SAMPLE_RATE_HZ)
    guess: dict[str, dict[str, list[int]]] = {kind: {head: [] for head in HEADS} for kind in ("real", "codec")}
    for index, row in places:
        audio = read_audio(work, data.pieces[index])[row * PITCH_HOP :][:samples][None]
        decoded = codec.decode(codec.encode(torch.from_numpy(audio)[None]))[0, :, :samples].numpy().clip(-1, 1)
        for kind, sound in (("real", audio), ("codec", decoded)):
            heard = listener.hear(sound, SAMPLE_RATE_HZ)
            for head, probabilities in heard.probabilities.items():
                guess[kind][head].append(int(probabilities.argmax()))
    of = [i for i, _ in places]
    tunes = [data.pieces[i].tune for i in of]
    return {
        head: {kind: asdict(accuracy(data.classes[head][of], np.array(guess[kind][head]), tunes)) for kind in guess}
        for head in HEADS
    }


def publish_listener(work: Path, assets: Path) -> None:
    """Measure the trained listener on the test tunes with the codec in `assets/models`, and write `assets/listener`."""
    listener = Listener.from_folder(work / "listener" / "model")
    build_spectra(work, splits=("test",))
    reached = measure_listener(listener, work, SpectralCodec.from_folder(assets / "models" / "codec"))
    for head, kinds in reached.items():
        for kind, a in kinds.items():
            print(
                f"{head}, {kind}: {a['value']:.3f} ({a['low']:.3f} to {a['high']:.3f}; {a['n']} windows of "
                f"{a['tunes']} tunes), balanced {a['balanced']:.3f}, majority {a['majority']:.3f}"
            )
    save_listener(assets / "listener", listener.net, reached)
