"""Checkpoints as they are found: read, and fitted to the model that is asked for."""

import argparse
import pickle
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from flashkat_lite import GRKAN, coefficients
from flashkat_lite.vit import VisionTransformer

from . import Refused
from .data import different

# Where timm and others put a model's state dict; averaged weights come first.
KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")


def read(file: Path) -> dict:
    """What a file holds, on the CPU. Nothing in it is executed. Raises Refused, with the file's path."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py keeps its options so
            contents = torch.load(file, map_location="cpu", weights_only=True)
    except ImportError:
        raise Refused(f"{file} is read with a library of its own: pip install safetensors") from None
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of a pickle or an archive that is broken or none, each with its own
        raise Refused(f"{file} is no checkpoint that can be read: {unreadable(file, error)}") from None
    if not isinstance(contents, dict):
        raise Refused(f"{file} holds a {type(contents).__name__}, not a state dict")
    return contents


def unreadable(file: Path, error: Exception) -> str:
    if file.suffix == ".npz":
        return "ViT's own .npz files are offered by timm as state dicts, too"
    if isinstance(error, pickle.UnpicklingError):
        try:
            asks = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except Exception:
            asks = []
        if asks:
            return f"it asks for {', '.join(asks)}, which data need not; save the state dict alone"
    return str(error).partition("\n")[0]


def state_dict(contents: dict, key: str | None, file: Path) -> tuple[dict[str, Tensor], str]:
    """A ViT's state dict with timm's names, and the keys under which it was. key: instead of the first of KEYS."""
    found, place = contents, []
    while not all(isinstance(value, Tensor) for value in found.values()):
        wanted = [key] if key and not place else KEYS
        name = next((name for name in wanted if isinstance(found.get(name), dict)), None)
        if name is None:
            raise Refused(f"{file} has no state dict {' or '.join(wanted)}; it has {', '.join(map(str, found))}")
        found, place = found[name], [*place, name]
    if key and not place:
        raise Refused(f"{file} has nothing but a state dict, so no {key}")
    # What torch.compile, DDP and others put before a name or into it.
    found = {name.replace("_orig_mod.", ""): value for name, value in found.items()}
    prefixes = [name.removesuffix("cls_token") for name in found if name.endswith("cls_token")]
    if len(prefixes) != 1:
        raise Refused(f"{file} holds {len(prefixes)} class tokens: one ViT or KAT, with timm's names, was expected")
    length = len(prefixes[0])
    return {name[length:]: value for name, value in found.items() if name.startswith(prefixes[0])}, ".".join(place)


@torch.no_grad()
def start(
    model: VisionTransformer, contents: dict, file: Path, names: list[str], key: str | None = None, whole: bool = False
) -> str:
    """Gives a model the weights of a checkpoint; returns a sentence that says which, and what was changed.

    Positions are resized; a head of other classes is left out, or refused where `whole`. A ViT's linear layers go into
    GRKANs whose first function is the identity and whose second starts as the ViT's own, GELU. (KAT's published scripts
    start from ViT with the same layers and SiLU, further from what the ViT computes.)

    names: of the classes. A checkpoint of our own has them too, and its head is kept if they are the same; another's is
    if their number is. Raises Refused.
    """
    state, place = state_dict(contents, key, file)
    done = []
    head, theirs = state.get("head.weight"), contents.get("classes", names)
    if head is None:
        done.append("it has no head")
    elif len(head) != len(names) or theirs != names:
        del state["head.weight"]
        state.pop("head.bias", None)
        done.append(f"its head of {len(head)} other classes is left out")
    if done and whole:
        why = different(theirs, file, names, "the data") if theirs != names else done[0]
        raise Refused(f"{file} cannot be tested on these {len(names)} classes: {why}")
    positions = state.get("pos_embed")
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        state["pos_embed"], (old, new) = resized(positions, model.pos_embed.shape[1], file)
        done.append(f"positions {old} × {old} resized to {new} × {new}")
    grkans = [block.mlp for block in model.blocks if isinstance(block.mlp, GRKAN)]
    from_vit = bool(grkans) and not any(".act1." in name or ".act2." in name for name in state)
    if from_vit:
        for mlp in grkans:
            for activation, name in ((mlp.act1, "identity"), (mlp.act2, "gelu")):
                numerator, denominator = coefficients.initial(name, activation.degrees)
                activation.numerator.copy_(numerator)
                activation.denominator.copy_(denominator)
                activation.init = name
        done.append("a ViT, so the second function of each MLP starts as GELU")
    misfits = {
        name: f"{list(value.shape)} instead of {list(mine.shape)}"
        for name, mine in model.state_dict().items()
        if (value := state.get(name)) is not None and value.shape != mine.shape and ".act" not in name
    }
    if misfits:
        raise Refused(f"{file} holds another model ({some(misfits)}): --size, --width, --depth, --patch-size may help")
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:  # tables of other groups or degrees
        raise Refused(f"{file}: {' '.join(str(error).split())}") from None
    fresh = ("head.",) + ((".act1.", ".act2.") if from_vit else ())
    missing = [name for name in missing if not any(part in name for part in fresh)]
    if missing or unexpected:
        sides = [f"it lacks {some(missing)}"] if missing else []
        sides += [f"it has {some(unexpected)} besides"] if unexpected else []
        hint = "; --model kat takes its functions" if any(".act1." in name for name in unexpected) else ""
        raise Refused(f"{file} holds another model: {', '.join(sides)}{hint}")
    return "; ".join([f"starts from {file}" + (f", {place}" if place else ""), *done])


def resized(positions: Tensor, count: int, file: Path) -> tuple[Tensor, tuple[int, int]]:
    """Positions [1, 1 + n², width] as [1, count, width], bicubic, the class token's as it was; and both sides."""
    old, new = round((positions.shape[1] - 1) ** 0.5), round((count - 1) ** 0.5)
    if positions.shape[1] != 1 + old * old:
        raise Refused(f"{file} has {positions.shape[1]} positions, not those of a class token and a square of patches")
    grid = positions[:, 1:].float().transpose(1, 2).unflatten(2, (old, old))  # [1, width, n, n]
    grid = functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    return torch.cat([positions[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1), (old, new)


def some(names) -> str:
    """A few of many."""
    shown = [f"{name}: {names[name]}" for name in names] if isinstance(names, dict) else list(names)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
