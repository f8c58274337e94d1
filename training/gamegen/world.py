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
F_COLOR, F_PLAYER, F_AIR = 32, 34, 40  # F_PLAYER: x, y, z; F_AIR: 1 in a jump
WARM_FRAMES = 52  # simulated before a clip begins, so that it starts in motion
CHANGE_FRAMES = 28  # a change of the environment may begin this long before a clip
RENDER_CHUNK = 32768  # frames a launch (limit of the grid's third axis: 65535)
# Share of each key combination: W S A D SPACE SHIFT, weight.
KEY_MODES = [
    (0, 0, 0, 0, 0, 0, .11), (1, 0, 0, 0, 0, 0, .17), (1, 0, 1, 0, 0, 0, .07), (1, 0, 0, 1, 0, 0, .07),
    (0, 0, 1, 0, 0, 0, .12), (0, 0, 0, 1, 0, 0, .12), (0, 1, 0, 0, 0, 0, .15), (1, 0, 0, 0, 0, 1, .10),
    (1, 0, 1, 0, 0, 1, .02), (1, 0, 0, 1, 0, 1, .02), (0, 1, 1, 0, 0, 0, .025), (0, 1, 0, 1, 0, 0, .025),
]
# Seeds of the worlds of each split, low <= seed < high. No other world belongs to any of them.
SPLITS = {"train": (1, 3_000_000), "val": (3_000_000, 3_500_000), "test": (3_500_000, 4_194_304)}
# Combinations that training never shows; every single value stays frequent.
UNSEEN = [
    (("biome", "snow"), ("effects", "fire")), (("biome", "desert"), ("effects", "magic")),
    (("biome", "volcanic"), ("weather", "snow")), (("biome", "alien"), ("weather", "fog")),
    (("biome", "forest"), ("lighting", "dawn")), (("lighting", "night"), ("effects", "sandstorm")),
    (("character", "knight"), ("color", "green")), (("character", "wizard"), ("color", "gold")),
]
UNSEEN_MODES = ("exclude", "only", "any")
REDRAWS = 20  # a row stays forbidden with chance 0.33 ** 20
PLAIN, FIRST_PERSON = 0.2, 0.45  # shares of clips made to have no effect, and in first person
JOINTS = ["head", "neck", "left shoulder", "right shoulder", "left hand", "right hand", "left hip", "right hip",
          "left knee", "right knee", "left foot", "right foot", "horse"]
KEY_CHANGE, JUMP = 0.07, 0.012  # chances a frame; a jump lasts 20 frames
ENVIRONMENT = (1, 2, 3)  # columns of ATTRIBUTES that an instruction changes: light, weather, effect
SIBLING = (*ENVIRONMENT, 4, 5)  # and those in which a sibling may differ: also character and its colour
JUMP_FRAMES = 3  # a jump key is held this long


def _choice(field: str, value: str, allowed):
    """allowed[value] of a dictionary, or value itself; an error names what is allowed."""
    if value not in allowed:
        raise ValueError(f"{field} is {value!r}; allowed are {', '.join(allowed)}")
    return allowed[value] if isinstance(allowed, dict) else value


def unseen_table(pairs=UNSEEN) -> list[list[int]]:
    """Rows of column, value, column, value (order of ATTRIBUTES) of the held-out combinations."""
    columns = [name for name, _ in ATTRIBUTES]
    names = dict(ATTRIBUTES)
    return [[number for name, value in pair for number in (columns.index(name), names[name].index(value))]
            for pair in pairs]


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
        self.lib.w_pose.argtypes = [pointer] * 2 + [integer] * 3 + [pointer]
        sizes, wanted = [self.lib.w_dims(i) for i in range(4)], [STATE_SIZE, FRAME_SIZE, KEY_COUNT, len(JOINTS)]
        if sizes != wanted:
            raise RuntimeError(f"world library has layout {sizes}, this program {wanted}")
        self.unseen = torch.tensor(unseen_table(), device=self.device)  # [P,4]
        self.modes = torch.tensor(KEY_MODES, device=self.device)

    def _stream(self):
        return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream) if self.cuda else None

    def reset(self, count: int, gen: torch.Generator, split: str = "train", unseen: str = "exclude", **fixed):
        """New clips: state [B,40] and attributes [B,7] (order of ATTRIBUTES). fixed: attribute name -> index or [B].

        split: whose worlds, a key of SPLITS. unseen: "exclude" combinations of UNSEEN, "only" them, or "any".
        """
        dev = self.device
        low, high = _choice("split", split, SPLITS)
        pinned = self._pinned(count, fixed)
        attrs = self._attributes(count, gen, unseen, pinned)
        rand = lambda *shape: torch.rand(*shape, generator=gen, device=dev)
        state = torch.zeros(count, STATE_SIZE, device=dev)
        rows = torch.arange(count, device=dev)
        for i, place in ((1, S_LIGHT), (2, S_WEATHER), (3, S_EFFECT)):
            state[rows, place + attrs[:, i]] = 1
            state[:, S_TARGET + i - 1] = attrs[:, i].float()
        for i, place in ((0, S_BIOME), (4, S_CHARACTER), (5, S_COLOR), (6, S_VIEW)):
            state[:, place] = attrs[:, i].float()
        state[:, S_SEED] = torch.randint(low, high, (count,), generator=gen, device=dev).float()
        state[:, S_SUN], state[:, S_YAW] = rand(count) * 6.28318, rand(count) * 6.28318
        state[:, S_TIME], state[:, S_PHASE] = rand(count) * 20, rand(count) * 6.28
        self.simulate(state, torch.zeros(count, 1, KEY_COUNT, device=dev), spawn=True)
        return state, attrs

    def _pinned(self, count: int, fixed: dict) -> dict[int, torch.Tensor]:
        """Column of ATTRIBUTES -> its given values [B]."""
        columns = [name for name, _ in ATTRIBUTES]
        for name in fixed:
            _choice("attribute", name, columns)
        return {columns.index(name): torch.as_tensor(value, device=self.device).long().expand(count)
                for name, value in fixed.items()}

    def _draw(self, count: int, gen: torch.Generator) -> torch.Tensor:
        """Attributes [B,7] without regard to held-out combinations."""
        dev = self.device
        draw = [torch.randint(0, len(v), (count,), generator=gen, device=dev) for _, v in ATTRIBUTES]
        attrs = torch.stack(draw, 1)
        chance = torch.rand(count, 2, generator=gen, device=dev)
        attrs[:, 3] = torch.where(chance[:, 0] < PLAIN, torch.zeros_like(attrs[:, 3]), attrs[:, 3])
        attrs[:, 6] = (chance[:, 1] < FIRST_PERSON).long()
        return attrs

    def _attributes(self, count: int, gen: torch.Generator, unseen: str, pinned: dict) -> torch.Tensor:
        """Attributes [B,7]: rows that `unseen` forbids are drawn again, all at once and without looking at them."""
        _choice("unseen", unseen, UNSEEN_MODES)
        attrs = self._pin(self._draw(count, gen), pinned)
        if unseen == "any":
            return attrs
        for _ in range(REDRAWS):
            again = self._draw(count, gen)
            if unseen == "only":
                again = self._impose(again, gen)
            wrong = self.has_unseen(attrs) != (unseen == "only")
            attrs = torch.where(wrong[:, None], self._pin(again, pinned), attrs)
        if pinned and bool((self.has_unseen(attrs) != (unseen == "only")).any()):
            names = ", ".join(ATTRIBUTES[i][0] for i in pinned)
            raise ValueError(f"unseen={unseen!r} cannot hold with the fixed values of {names}: change them or pass "
                             "unseen='any'")
        return attrs

    def _impose(self, attrs: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
        """Gives every row one held-out combination, each as often."""
        pair = self.unseen[torch.randint(0, len(self.unseen), (len(attrs),), generator=gen, device=self.device)]
        return attrs.scatter(1, pair[:, 0::2], pair[:, 1::2])

    def _pin(self, attrs: torch.Tensor, pinned: dict) -> torch.Tensor:
        for column, values in pinned.items():
            attrs[:, column] = values
        return attrs

    def has_unseen(self, attrs: torch.Tensor) -> torch.Tensor:
        """Which rows of attributes [B,7] hold a combination of UNSEEN: bool [B]."""
        p = self.unseen
        return ((attrs[:, p[:, 0]] == p[:, 1]) & (attrs[:, p[:, 2]] == p[:, 3])).any(1)

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
              split: str = "train", unseen: str = "exclude", p_sibling: float = 0.0, **fixed) -> dict:
        """Random clips: frames u8 [B,T,H,W,3], keys [B,T,6], attributes before and after a change, its frame [B].

        With chance p_event light, weather or effect changes to another value; the change may lie before or after
        the clip. split, unseen, fixed: as in reset(); `unseen` holds for the attributes after the change too.
        p_sibling > 0 adds siblings, see `_siblings`.
        """
        dev = self.device
        state, before = self.reset(count, gen, split, unseen, **fixed)
        keys = self.random_keys(count, WARM_FRAMES + frames, gen)
        event = torch.rand(count, generator=gen, device=dev) < p_event
        after = torch.where(event[:, None], self._changed(before, gen, unseen, ENVIRONMENT), before)
        siblings = {}
        if p_sibling:
            moved = (before != after).any(1)
            siblings = self._siblings(state, keys, before, moved, gen, unseen, p_sibling)
            siblings["sibling_frames"] = self.render(siblings.pop("params")[:, WARM_FRAMES:], height, width, samples)
        at = (torch.rand(count, generator=gen, device=dev) * (frames + CHANGE_FRAMES)).long() - CHANGE_FRAMES
        time = torch.arange(WARM_FRAMES + frames, device=dev)[None] - WARM_FRAMES
        changed = (time >= at[:, None]).float()[..., None]
        targets = before[:, None, 1:4].float() * (1 - changed) + after[:, None, 1:4].float() * changed
        params = self.simulate(state, keys, targets)[:, WARM_FRAMES:]
        return {"frames": self.render(params, height, width, samples), "keys": keys[:, WARM_FRAMES:].contiguous(),
                "before": before, "after": after, "at": at, "params": params, "state": state} | siblings

    def _siblings(self, state: torch.Tensor, keys: torch.Tensor, before: torch.Tensor, moved: torch.Tensor, gen,
                  unseen: str, share: float) -> dict:
        """The same walks in the same worlds, but for one attribute.

        A clip with a change (`moved` [B]) has a sibling in which it never comes. Of the other clips `share` have one
        with another light, weather, effect, character or colour. Returns `sibling_rows` [S], their attributes
        `sibling` [S,7] and parameters of all frames. state is that of the clips' start and stays as it is.
        """
        other = torch.where(moved[:, None], before, self._changed(before, gen, unseen, SIBLING))
        wanted = torch.rand(len(before), generator=gen, device=self.device) < share
        rows = (moved | (wanted & (other != before).any(1))).nonzero()[:, 0]
        state, other = state[rows].clone(), other[rows]
        state[:, S_CHARACTER], state[:, S_COLOR] = other[:, 4].float(), other[:, 5].float()
        targets = other[:, None, 1:4].float().expand(-1, keys.shape[1], -1)
        return {"sibling_rows": rows, "sibling": other, "params": self.simulate(state, keys[rows], targets)}

    def _changed(self, before: torch.Tensor, gen: torch.Generator, unseen: str, columns: tuple) -> torch.Tensor:
        """Attributes [B,7] with another value in one of `columns`. Rows for which no allowed change was found stay."""
        count, rows, after = len(before), torch.arange(len(before), device=self.device), before
        for _ in range(REDRAWS):
            chosen = torch.randint(0, len(columns), (count,), generator=gen, device=self.device)
            column = torch.tensor(columns, device=self.device)[chosen]
            step = torch.randint(1, 4, (count,), generator=gen, device=self.device)
            new = before.clone()
            new[rows, column] = (before[rows, column] + step) % 4
            allowed = torch.ones_like(rows, dtype=torch.bool)
            if unseen != "any":
                allowed = self.has_unseen(new) == (unseen == "only")
            take = allowed & (after == before).all(1)
            after = torch.where(take[:, None], new, after)
        return after

    def pose(self, params: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Joints of the player's figure [...,13,3] (order of JOINTS) of frame parameters [...,56].

        x and y in pixels of a height x width picture, and 1 where the joint lies in it. A joint outside it, the horse
        of somebody who has none, and everything in first person is 0, 0, 0.
        """
        shape = params.shape[:-1]
        params = params.reshape(-1, FRAME_SIZE).contiguous()
        out = torch.empty(params.shape[0], len(JOINTS), 3, device=self.device)
        code = self.lib.w_pose(params.data_ptr(), out.data_ptr(), params.shape[0], height, width, self._stream())
        if code:
            raise RuntimeError(f"pose kernel failed with {code}")
        return out.reshape(*shape, len(JOINTS), 3)
