"""The model folder: configurations, 8-bit safetensors shards, loading and saving (layout as diffusers has it)."""
import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from . import instructnet, msdit, text_encoder, vae
from .sampler import FIRST_FRAME_STEPS

SHARD_BYTES = 15 << 20
QUANTIZE_FROM = 16384  # elements from which a matrix is stored in 8 bits
SCALE_F16_MIN = 1e-4  # smaller scales would be denormal in f16 and stay f32
FILE = "diffusion_pytorch_model"


def quantize(state: dict) -> dict:
    """State dict -> stored tensors: 8 bits by row for big matrices, F16 for other matrices, F32 for vectors."""
    stored = {}
    for name, tensor in state.items():
        value = tensor.detach().float().cpu().contiguous()
        big = name.endswith(".weight") and value.dim() >= 2 and value.numel() >= QUANTIZE_FROM
        if big:
            rows = value.flatten(1)
            scale = (rows.abs().amax(1) / 127).clamp(min=1e-8)  # [out]
            if float(scale.min()) >= SCALE_F16_MIN:
                scale = scale.half()
            stored[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).reshape(value.shape)
            stored[name + "_scale"] = scale
        else:
            stored[name] = value.half() if value.dim() >= 2 else value
    return stored


def dequantize(stored: dict) -> dict:
    """The inverse of `quantize`, in f32. Any tensor may also be F32, F16 or BF16."""
    state = {}
    for name, tensor in stored.items():
        if name.endswith(".weight_scale"):
            continue
        value = tensor.float()
        if tensor.dtype == torch.int8:
            value = value * stored[name + "_scale"].float().view(-1, *([1] * (value.dim() - 1)))
        state[name] = value
    return state


def shards_of(stored: dict) -> list[dict]:
    """Cuts stored tensors into parts of at most SHARD_BYTES; a matrix and its scale stay together."""
    parts, size = [{}], 0
    for name in [n for n in stored if not n.endswith(".weight_scale")]:
        group = {k: stored[k] for k in (name, name + "_scale") if k in stored}
        length = sum(v.numel() * v.element_size() for v in group.values())
        if parts[-1] and size + length > SHARD_BYTES:
            parts.append({})
            size = 0
        parts[-1].update(group)
        size += length
    return parts


def save_part(folder: Path, cfg: dict, state: dict, stem: str = FILE, sharded: bool = False):
    """Writes config.json and the tensors of one part of the model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    (folder / "config.json").write_text(json.dumps(cfg, indent=2) + "\n")
    parts = shards_of(quantize(state))
    if len(parts) == 1 and not sharded:
        save_file(parts[0], folder / f"{stem}.safetensors", metadata={"format": "pt"})
        return
    index, total = {}, 0
    for i, part in enumerate(parts, 1):
        name = f"{stem}-{i:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        index.update({key: name for key in part})
        total += sum(v.numel() * v.element_size() for v in part.values())
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}, indent=2)
    (folder / f"{stem}.safetensors.index.json").write_text(text + "\n")


def load_part(folder: Path) -> tuple[dict, dict]:
    """config.json and the dequantised state dict of one part of the model."""
    stored = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            stored.update({key: f.get_tensor(key) for key in f.keys()})
    if not stored:
        raise FileNotFoundError(f"no safetensors file in {folder}")
    return json.loads((folder / "config.json").read_text()), dequantize(stored)


class Model:
    """The four trained parts together."""

    def __init__(self, autoencoder, text, dit, instruct, first_steps: int = FIRST_FRAME_STEPS):
        """first_steps: steps of the first frame of a text-only start (scheduler/scheduler_config.json)."""
        self.vae: vae.AutoencoderKLCausal3D = autoencoder
        self.text: text_encoder.T5Encoder = text
        self.dit: msdit.MSDiT = dit
        self.instructnet: instructnet.InstructNet = instruct
        self.first_steps = first_steps

    @property
    def parts(self) -> dict:
        """Folder name -> module."""
        return {"vae": self.vae, "text_encoder": self.text, "transformer": self.dit, "instructnet": self.instructnet}

    def to(self, device) -> "Model":
        """Moves all parts."""
        for part in self.parts.values():
            part.to(device)
        return self

    def eval(self) -> "Model":
        """Puts all parts into evaluation mode without gradients."""
        for part in self.parts.values():
            part.eval().requires_grad_(False)
        return self


CLASSES = {"vae": vae.AutoencoderKLCausal3D, "text_encoder": text_encoder.T5Encoder, "transformer": msdit.MSDiT,
           "instructnet": instructnet.InstructNet}


def upgraded(name: str, cfg: dict, state: dict) -> tuple[dict, dict]:
    """Configuration and weights of a part in today's shape: what an older folder lacks starts anew."""
    if name == "vae" and "encoder.conv_in_2x.weight" not in state:
        return vae.default_config(), vae.start_two_fold(state)
    if name == "instructnet" and cfg["every"] != instructnet.default_config()["every"]:
        # The old fusion blocks sat after blocks 0, 3 and 6; each new one starts from the nearest.
        fresh = instructnet.InstructNet(instructnet.default_config()).state_dict()
        near = {0: 0, 2: 3, 4: 3, 6: 6}
        for key in fresh:
            parts = key.split(".")
            old = ".".join(["blocks", str(near[int(parts[1])]), *parts[2:]]) if parts[0] == "blocks" else key
            if old in state:
                fresh[key] = state[old]
        return instructnet.default_config(), fresh
    return cfg, state


def load_model(folder, upgrade: bool = False) -> Model:
    """Reads a model folder into f32 modules; `upgrade` accepts folders of before today's layers."""
    modules = []
    for name, make in CLASSES.items():
        cfg, state = load_part(Path(folder) / name)
        if upgrade:
            cfg, state = upgraded(name, cfg, state)
        module = make(cfg)
        module.load_state_dict(state)
        modules.append(module)
    scheduler = json.loads((Path(folder) / "scheduler" / "scheduler_config.json").read_text())
    return Model(*modules, scheduler["first_frame_steps"])


def new_model(vocab_size: int) -> Model:
    """Fresh weights in the default configuration."""
    return Model(vae.AutoencoderKLCausal3D(vae.default_config()),
                 text_encoder.T5Encoder(text_encoder.default_config(vocab_size)),
                 msdit.MSDiT(msdit.default_config()), instructnet.InstructNet(instructnet.default_config()))


def model_hash(folder) -> str:
    """sha256 over the safetensors files of the four parts in sorted path order; judges beside them do not count."""
    digest = hashlib.sha256()
    paths = [path for name in CLASSES for path in (Path(folder) / name).glob("*.safetensors")]
    for path in sorted(paths, key=lambda p: p.relative_to(folder).as_posix()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
