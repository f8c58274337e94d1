"""The procedural open world that training footage comes from: builds world/world.cu and runs it in batches."""
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

from .captions import ATTRIBUTES

SOURCE = Path(__file__).with_name("world")
STATE_SIZE, FRAME_SIZE, KEY_COUNT = 40, 56, 6
# Places in the state of a clip (world/layout.h).
S_YAW, S_PHASE, S_TIME, S_LIGHT, S_WEATHER, S_EFFECT, S_TARGET, S_BIOME = 4, 7, 8, 10, 14, 18, 22, 25
S_CHARACTER, S_COLOR, S_VIEW, S_SEED, S_SUN = 26, 27, 28, 29, 30
# Places in the parameters of a frame.
F_YAW, F_CROP_X, F_CROP_Y, F_FULL_W, F_FULL_H = 3, 45, 46, 47, 48
WARM_FRAMES = 52  # simulated before a clip begins, so that it starts in motion
CHANGE_FRAMES = 28  # a change of the environment may begin this long before a clip
RENDER_CHUNK = 32768  # frames a launch (limit of the grid's third axis: 65535)
# Share of each key combination: W S A D SPACE SHIFT, weight.
KEY_MODES = [
    (0, 0, 0, 0, 0, 0, .08), (1, 0, 0, 0, 0, 0, .20), (1, 0, 1, 0, 0, 0, .10), (1, 0, 0, 1, 0, 0, .10),
    (0, 0, 1, 0, 0, 0, .13), (0, 0, 0, 1, 0, 0, .13), (0, 1, 0, 0, 0, 0, .08), (1, 0, 0, 0, 0, 1, .08),
    (1, 0, 1, 0, 0, 1, .03), (1, 0, 0, 1, 0, 1, .03), (0, 1, 1, 0, 0, 0, .02), (0, 1, 0, 1, 0, 0, .02),
]
KEY_CHANGE, JUMP = 0.07, 0.035  # chances a frame
JUMP_FRAMES = 3  # a jump key is held this long


def build(cuda: bool) -> str:
    """Compiles the world once for each source version; returns the path of the shared library."""
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sorted(SOURCE.iterdir()))).hexdigest()[:12]
    folder = Path(os.environ.get("STATE") or tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / f"world_{'gpu' if cuda else 'cpu'}_{digest}.so"
    if library.exists():
        return str(library)
    partial, source = str(library) + f".{os.getpid()}", str(SOURCE / "world.cu")
    if cuda:
        found = [p for p in ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc") if os.path.exists(p)]
        nvcc = shutil.which("nvcc") or (found[0] if found else "nvcc")
        major, minor = torch.cuda.get_device_capability()
        arch = f"-gencode=arch=compute_{major}{minor},code=sm_{major}{minor}"
        command = [nvcc, "-O3", "--use_fast_math", "-shared", "-Xcompiler", "-fPIC", arch, "-o", partial, source]
        if subprocess.run(command).returncode:
            subprocess.run([*command, "-cudart", "shared"], check=True)
    else:
        subprocess.run(["g++", "-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC", "-w",
                        "-x", "c++", source, "-o", partial], check=True)
    os.rename(partial, library)
    return str(library)


class World:
    """Batched simulator and renderer on one device. All random draws come from the generator given."""

    def __init__(self, device):
        self.device = torch.device(device)
        self.cuda = self.device.type == "cuda"
        self.lib = ctypes.CDLL(build(self.cuda))
        pointer, integer = ctypes.c_void_p, ctypes.c_int
        self.lib.w_sim.argtypes = [pointer] * 4 + [integer] * 3 + [pointer]
        self.lib.w_render.argtypes = [pointer] * 2 + [integer] * 4 + [pointer]
        sizes = [self.lib.w_dims(i) for i in range(3)]
        if sizes != [STATE_SIZE, FRAME_SIZE, KEY_COUNT]:
            raise RuntimeError(f"world library has layout {sizes}")
        self.modes = torch.tensor(KEY_MODES, device=self.device)

    def _stream(self):
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream) if self.cuda else None

    def reset(self, count: int, gen: torch.Generator, **fixed):
        """New clips: state [B,40] and attributes [B,7] (order of ATTRIBUTES). fixed: attribute name -> index or [B]."""
        dev = self.device
        rand = lambda *shape: torch.rand(*shape, generator=gen, device=dev)
        draw = [torch.randint(0, len(v), (count,), generator=gen, device=dev) for _, v in ATTRIBUTES]
        attrs = torch.stack(draw, 1)  # [B,7]
        attrs[:, 3] = torch.where(rand(count) < 0.45, torch.zeros_like(attrs[:, 3]), attrs[:, 3])  # plain more often
        attrs[:, 6] = (rand(count) < 0.4).long()
        for i, (name, _) in enumerate(ATTRIBUTES):
            if name in fixed:
                attrs[:, i] = torch.as_tensor(fixed[name], device=dev)
        state = torch.zeros(count, STATE_SIZE, device=dev)
        rows = torch.arange(count, device=dev)
        for i, place in ((1, S_LIGHT), (2, S_WEATHER), (3, S_EFFECT)):
            state[rows, place + attrs[:, i]] = 1
            state[:, S_TARGET + i - 1] = attrs[:, i].float()
        for i, place in ((0, S_BIOME), (4, S_CHARACTER), (5, S_COLOR), (6, S_VIEW)):
            state[:, place] = attrs[:, i].float()
        state[:, S_SEED] = torch.randint(1, 1 << 22, (count,), generator=gen, device=dev).float()
        state[:, S_SUN], state[:, S_YAW] = rand(count) * 6.28318, rand(count) * 6.28318
        state[:, S_TIME], state[:, S_PHASE] = rand(count) * 20, rand(count) * 6.28
        self.simulate(state, torch.zeros(count, 1, KEY_COUNT, device=dev), spawn=True)
        return state, attrs

    def simulate(self, state, keys, targets=None, spawn: bool = False) -> torch.Tensor:
        """Advances state in place by keys [B,T,6]; targets [B,T,3] light, weather, effect (-1: keep) -> [B,T,56]."""
        b, t = keys.shape[:2]
        keys = keys.contiguous().float()
        targets = torch.full((b, t, 3), -1.0, device=self.device) if targets is None else targets.contiguous().float()
        frames = torch.zeros(b, t, FRAME_SIZE, device=self.device)
        code = self.lib.w_sim(state.data_ptr(), keys.data_ptr(), targets.data_ptr(), frames.data_ptr(), b, t,
                              int(spawn), self._stream())
        if code:
            raise RuntimeError(f"simulation kernel failed with {code}")
        return frames

    def render(self, frames: torch.Tensor, height: int, width: int, samples: int = 2) -> torch.Tensor:
        """Frame parameters [...,56] -> pixels u8 [...,H,W,3]."""
        shape = frames.shape[:-1]
        frames = frames.reshape(-1, FRAME_SIZE).contiguous()
        out = torch.empty(frames.shape[0], height, width, 3, dtype=torch.uint8, device=self.device)
        for i in range(0, frames.shape[0], RENDER_CHUNK):
            count = min(RENDER_CHUNK, frames.shape[0] - i)
            code = self.lib.w_render(frames[i:].data_ptr(), out[i:].data_ptr(), count, height, width, samples,
                                     self._stream())
            if code:
                raise RuntimeError(f"rendering kernel failed with {code}")
        return out.reshape(*shape, height, width, 3)

    def random_keys(self, count: int, frames: int, gen: torch.Generator) -> torch.Tensor:
        """Keys [B,T,6] held for a while each, with jumps."""
        dev = self.device
        mode = torch.multinomial(self.modes[:, 6], count * frames, True, generator=gen).reshape(count, frames)
        change = torch.rand(count, frames, generator=gen, device=dev) < KEY_CHANGE
        change[:, 0] = True
        index = torch.arange(frames, device=dev).expand(count, frames)
        source = torch.cummax(torch.where(change, index, torch.zeros_like(index)), 1).values
        keys = self.modes[mode.gather(1, source)][..., :KEY_COUNT].clone()
        start = (torch.rand(count, frames, generator=gen, device=dev) < JUMP).float()
        held = start.clone()
        for k in range(1, JUMP_FRAMES):
            held[:, k:] = torch.maximum(held[:, k:], start[:, :-k])
        keys[..., 4] = held
        return keys

    def clips(self, count: int, frames: int, height: int, width: int, gen, samples: int = 2, p_event: float = 0.0,
              **fixed) -> dict:
        """Random clips: frames u8 [B,T,H,W,3], keys [B,T,6], attributes before and after a change, its frame [B].

        With chance p_event light, weather or effect changes; the change may lie before or after the clip.
        """
        dev = self.device
        state, before = self.reset(count, gen, **fixed)
        keys = self.random_keys(count, WARM_FRAMES + frames, gen)
        event = torch.rand(count, generator=gen, device=dev) < p_event
        kind = torch.randint(0, 3, (count,), generator=gen, device=dev)
        value = torch.randint(0, 4, (count,), generator=gen, device=dev)
        rows = torch.arange(count, device=dev)
        after = before.clone()
        after[rows, 1 + kind] = torch.where(event, value, after[rows, 1 + kind])
        at = (torch.rand(count, generator=gen, device=dev) * (frames + CHANGE_FRAMES)).long() - CHANGE_FRAMES
        time = torch.arange(WARM_FRAMES + frames, device=dev)[None] - WARM_FRAMES
        changed = (time >= at[:, None]).float()[..., None]
        targets = before[:, None, 1:4].float() * (1 - changed) + after[:, None, 1:4].float() * changed
        params = self.simulate(state, keys, targets)[:, WARM_FRAMES:]
        return {"frames": self.render(params, height, width, samples), "keys": keys[:, WARM_FRAMES:].contiguous(),
                "before": before, "after": after, "at": at, "params": params, "state": state}
