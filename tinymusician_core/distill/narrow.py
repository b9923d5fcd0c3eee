"""Weights for a narrower student, from its teacher's alone; the rule of each part, as declared:

residual channels  the `width` that carry most: a channel's share in the energy of what is written, times its share in
                   what is read, over all kept layers, embeddings and heads
heads              in each attention the ones whose values weigh most once written out, |W_o W_v| (Frobenius)
head width         where it shrinks, the best products of that rank: W_q' W_k and W_o W_v are cut by SVD (Eckart-Young)
hidden units       of each feed-forward layer the ones with the largest |row of fc1| |column of fc2|
text projection    with all that reads the text it is one product, [W_k; W_v] [P b]; it is cut by SVD to the new width,
                   and exact where that is at least the text encoder's width + 1

The positions are computed from their formula for the new width, and layer norms see fewer channels: a narrowed model
has to be trained before it is of use, but it starts from what it can keep.
H heads, D the teacher's width, d the student's, h and r their head widths.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYERS = "model.decoder.layers."
READERS = (  # what reads the residual stream of a layer, and the layer norm before it
    ("self_attn.q_proj.weight", "self_attn_layer_norm.weight"),
    ("self_attn.k_proj.weight", "self_attn_layer_norm.weight"),
    ("self_attn.v_proj.weight", "self_attn_layer_norm.weight"),
    ("encoder_attn.q_proj.weight", "encoder_attn_layer_norm.weight"),
    ("fc1.weight", "final_layer_norm.weight"),
)
WRITERS = ("self_attn.out_proj.weight", "encoder_attn.out_proj.weight", "fc2.weight")


@dataclass(frozen=True)
class Size:
    """What a student is to be: which of the teacher's layers, and how wide."""

    layers: tuple[int, ...]
    width: int
    heads: int
    ffn: int


@dataclass(frozen=True, eq=False)
class Narrowed:
    """A narrower decoder's weights, its text projection where the width has changed, and which residual channels and
    which hidden units of each layer it kept."""

    state: dict[str, Tensor]
    projection: nn.Linear | None
    channels: Tensor
    units: tuple[Tensor, ...]


def cut(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best product [n,rank] [rank,m] of that rank in the place of `left` [n,h] `right` [h,m], evenly shared out."""
    outer, inner = torch.linalg.qr(left), torch.linalg.qr(right.T)
    u, sizes, v = torch.linalg.svd(outer.R @ inner.R.T, full_matrices=False)
    roots = sizes[:rank].sqrt()
    found = (outer.Q @ u[:, :rank]) * roots, roots[:, None] * (v[:rank] @ inner.Q.T)
    lacking = rank - len(roots)  # more room than the product can fill: zeros
    return tuple(nn.functional.pad(x, pad) for x, pad in zip(found, ((0, lacking), (0, 0, 0, lacking)), strict=True))


def narrow(state: dict[str, Tensor], heads: int, size: Size, projection: nn.Linear | None) -> Narrowed:
    """The weights of a student of that size, in float32 on the CPU.

    Args:
        state: the teacher's MusicgenForCausalLM weights.
        heads: the teacher's.
        size: the student's; at most the teacher's in everything, its head width included.
        projection: the teacher's, from text encoder to D; None where the two have one width.
    """
    kept = {name: tensor.detach().float().cpu() for name, tensor in state.items()}
    channels = important_channels(kept, size)
    width = kept["model.decoder.layer_norm.weight"].shape[0]
    text = projection
    if size.width < width:
        text = cut_text(kept, size, projection)
    found, units = {}, []
    for place, index in enumerate(size.layers):
        layer = {
            name.removeprefix(f"{LAYERS}{index}."): x
            for name, x in kept.items()
            if name.startswith(f"{LAYERS}{index}.")
        }
        units.append(important_units(layer, channels, size.ffn))
        narrowed = _layer(layer, channels, units[-1], heads, width // heads, size)
        found |= {f"{LAYERS}{place}.{name}": tensor.contiguous() for name, tensor in narrowed.items()}
    for name, tensor in kept.items():
        if not name.startswith(LAYERS) and "embed_positions" not in name:
            found[name] = tensor[..., channels].contiguous()  # embeddings, heads, and the last norm
    return Narrowed(found, text if size.width < width else None, channels, tuple(units))


def important_channels(state: dict[str, Tensor], size: Size) -> Tensor:
    """The `size.width` residual channels that carry most, in order."""
    norm = state["model.decoder.layer_norm.weight"]
    written = [x.square().sum(0) for name, x in state.items() if "embed_tokens" in name]
    read = [(x * norm).square().sum(0) for name, x in state.items() if name.startswith("lm_heads")]
    for index in size.layers:
        prefix = f"{LAYERS}{index}."
        written += [state[prefix + name].square().sum(1) for name in WRITERS]
        read += [(state[prefix + name] * state[prefix + gain]).square().sum(0) for name, gain in READERS]
    carried = sum(x / x.sum() for x in written) * sum(x / x.sum() for x in read)
    return carried.topk(size.width).indices.sort().values


def cut_text(state: dict[str, Tensor], size: Size, projection: nn.Linear | None) -> nn.Linear:
    """Cut what the text passes through to the new width: its readers in `state` change, the projection comes back."""
    names = [f"{LAYERS}{i}.encoder_attn.{part}_proj.weight" for i in size.layers for part in "kv"]
    readers = torch.cat([state[name] for name in names])
    if projection is None:
        into = torch.eye(readers.shape[1])
    else:
        into = torch.cat([projection.weight.detach(), projection.bias.detach()[:, None]], dim=1).float().cpu()
    readers, into = cut(readers, into, size.width)
    state.update(zip(names, readers.chunk(len(names)), strict=True))
    bias = torch.zeros(size.width) if projection is None else into[:, -1]
    weight = into if projection is None else into[:, :-1]
    made = nn.Linear(weight.shape[1], size.width)
    made.load_state_dict({"weight": weight.contiguous(), "bias": bias.contiguous()})
    return made


def important_units(layer: dict[str, Tensor], channels: Tensor, count: int) -> Tensor:
    """The `count` hidden units of a layer that do most between the kept channels, in order."""
    size = layer["fc1.weight"][:, channels].norm(dim=1) * layer["fc2.weight"][channels].norm(dim=0)
    return size.topk(count).indices.sort().values


def _layer(
    layer: dict[str, Tensor], channels: Tensor, units: Tensor, heads: int, head_width: int, size: Size
) -> dict[str, Tensor]:
    """One layer's weights, by their names in it."""
    found = {name: x[channels] for name, x in layer.items() if "layer_norm" in name}
    for attention in ("self_attn", "encoder_attn"):
        parts = {name: layer[f"{attention}.{name}_proj.weight"] for name in ("q", "k", "v", "out")}
        parts["q"], parts["out"] = parts["q"][:, channels], parts["out"][channels]
        if attention == "self_attn":
            parts |= {name: parts[name][:, channels] for name in ("k", "v")}
        cut_parts = _attention(parts, heads, head_width, size)
        found |= {f"{attention}.{name}_proj.weight": tensor for name, tensor in cut_parts.items()}
    fc1, fc2 = layer["fc1.weight"][units][:, channels], layer["fc2.weight"][channels][:, units]
    return found | {"fc1.weight": fc1, "fc2.weight": fc2}


def _attention(parts: dict[str, Tensor], heads: int, head_width: int, size: Size) -> dict[str, Tensor]:
    """q, k, v [H h, .] and out [., H h] with the student's heads of the student's width."""
    q, k, v = (parts[name].unflatten(0, (heads, head_width)) for name in "qkv")  # [H,h,.]
    out = parts["out"].unflatten(1, (heads, head_width)).transpose(0, 1)  # [H,.,h]
    weight = torch.stack([torch.linalg.matrix_norm(o @ x) for o, x in zip(out, v, strict=True)])
    chosen = weight.topk(size.heads).indices.sort().values
    q, k, v, out = (x[chosen] for x in (q, k, v, out))
    rank = size.width // size.heads
    if rank < head_width:
        quieter = (rank / head_width) ** 0.25  # scores are divided by the root of the head width: keep their size
        pairs = [cut(a.T, b, rank) for a, b in zip(q, k, strict=True)]
        q, k = (torch.stack(x) * quieter for x in ([a.T for a, _ in pairs], [b for _, b in pairs]))
        pairs = [cut(o, x, rank) for o, x in zip(out, v, strict=True)]
        out, v = (torch.stack(x) for x in ([o for o, _ in pairs], [x for _, x in pairs]))
    return {"q": q.flatten(0, 1), "k": k.flatten(0, 1), "v": v.flatten(0, 1), "out": out.transpose(0, 1).flatten(1)}
