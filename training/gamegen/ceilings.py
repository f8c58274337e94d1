"""What the judges say about rendered truth of the test worlds: no figure of a generator can mean more than these."""
import torch

from . import captions
from .judge_data import RENDER_SIZES, joints_of, key_labels
from .judges import DECIDED, KEYS, Judges, decide, small
from .video_prompts import motion_field

CLIP_FRAMES = 8  # frames of a clip that the attributes are read from
BEFORE = 30  # frames before a key script begins: at rest, or walking
HELD, SETTLED = 24, 8  # frames that a key of a script is held; judged are those after the first SETTLED
STARTS = ("rest", "walk")
CLEAR_SHARE = {"SPACE": 0.5}  # share of windows whose label must show the key (a jump ends and begins anew)
NEAR = 0.04  # of the picture's height: a joint within this is right


def share(right: torch.Tensor) -> dict:
    """The share of True, with its count."""
    return {"value": round(float(right.float().mean()), 4) if len(right) else None, "count": len(right)}


def attribute_rows(guess: dict[str, torch.Tensor], truth: torch.Tensor) -> dict:
    """Per attribute: the share of right clips, and the same for every value on its own."""
    rows = {}
    for i, (name, values) in enumerate(captions.ATTRIBUTES):
        right = guess[name].argmax(-1) == truth[:, i]
        rows[name] = share(right) | {"values": {v: share(right[truth[:, i] == k]) for k, v in enumerate(values)}}
    return rows


def attribute_ceilings(judges: Judges, world, clips: int, generator: torch.Generator) -> dict:
    """Attributes of rendered test clips of CLIP_FRAMES frames."""
    logits, truth, size = [], [], RENDER_SIZES[world.cuda]
    for _ in range(0, clips, 512):
        clip = world.clips(min(512, clips), CLIP_FRAMES, *size, generator, 2, split="test", unseen="any")
        logits.append(judges.attributes(judges.features(clip["frames"])))
        truth.append(clip["after"])
    return attribute_rows({n: torch.cat([part[n] for part in logits]) for n in logits[0]}, torch.cat(truth))


def key_script(key: str | None, start: str, device) -> torch.Tensor:
    """Keys [1,54,6] of a script: BEFORE frames at rest or walking, then HELD frames of `key`. SHIFT goes with W."""
    keys = torch.zeros(1, BEFORE + HELD, len(KEYS), device=device)
    keys[:, :BEFORE, KEYS.index("W")] = float(start == "walk")
    for name in ("W", "SHIFT") if key == "SHIFT" else (key,) if key else ():
        keys[:, BEFORE:, KEYS.index(name)] = 1
    return keys


def clear(labels: torch.Tensor, key: str | None) -> torch.Tensor:
    """Labels [B,N,6] of the judged windows -> [B]: did the key do its work, and nothing else happen?"""
    shown = (labels == 1).float().mean(1)  # [B,6]
    if key is None:
        return (labels[..., :DECIDED] == 0).all(-1).all(-1)
    wanted = [KEYS.index(k) for k in (("W", "SHIFT") if key == "SHIFT" else (key,))]
    others = [i for i in range(len(KEYS)) if i not in wanted]
    return (shown[:, wanted] >= CLEAR_SHARE.get(key, 1.0)).all(1) & (shown[:, others] == 0).all(1)


def scripted(world, clips: int, key: str | None, start: str, generator: torch.Generator, split: str = "test"):
    """Judged frames u8 [B,16,H,W,3] of a script in worlds of a split, and in which of them the key did its work [B]."""
    state, _ = world.reset(clips, generator, split=split, unseen="any")
    keys = key_script(key, start, world.device).expand(clips, -1, -1)
    params = world.simulate(state, keys)
    judged = slice(BEFORE + SETTLED, None)
    clip = params[:, judged].contiguous()
    done = clear(key_labels(clip, keys[:, judged]), key)
    return world.render(clip, *RENDER_SIZES[world.cuda], 2), done


def key_right(logits: torch.Tensor, key: str | None) -> torch.Tensor:
    """Logits of windows [B,N,6] -> [B]: does the judge name the key? SHIFT is its own question."""
    if key == "SHIFT":
        return logits[..., KEYS.index(key)].mean(1) > 0
    return decide(logits) == (KEYS.index(key) if key else -1)


OPPOSITE = {"W_S": ("W", "S"), "A_D": ("A", "D")}


def directions(frames: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """u8 [B,T,H,W,3] -> mean shift to the right of the upper half and mean motion away from the centre, each [B].

    Units: half-size pixels a frame, from the motion of blocks.
    """
    field = motion_field(frames)[:, 1:].float()  # [B,T-1,h,w,2]
    h, w = field.shape[2:4]
    shift = field[:, :, :(h + 1) // 2, :, 0].mean((1, 2, 3))
    y = torch.arange(h, device=field.device)[:, None].expand(h, w) - (h - 1) * 0.5
    x = torch.arange(w, device=field.device)[None].expand(h, w) - (w - 1) * 0.5
    away = torch.stack([x, y], -1) / torch.sqrt(x * x + y * y).clamp(min=1.0)[..., None]  # [h,w,2]
    return shift, (field * away)[:, :, h // 3:].sum(-1).mean((1, 2, 3))


def signs_of(name: str, logits: dict[str, torch.Tensor], clips: dict[str, torch.Tensor]) -> dict:
    """Both signs of one pair of OPPOSITE, see `signs`."""
    a, b = OPPOSITE[name]
    margin = lambda key: (logits[key][..., KEYS.index(a)] - logits[key][..., KEYS.index(b)]).mean(1)
    side = 1 if name == "W_S" else 0
    return {"sign": share(margin(a) > margin(b)),
            "block_sign": share(directions(clips[a])[side] > directions(clips[b])[side])}


def signs(logits: dict[str, torch.Tensor], clips: dict[str, torch.Tensor]) -> dict:
    """Opposite keys from the same start: share of pairs whose difference has the right sign.

    "sign" is that of the inverse-dynamics judge's logits (the one key's minus the other's), "block_sign" that of the
    motion of blocks, which knows nothing of keys. logits [B,N,6] and frames u8 [B,T,H,W,3] by key, rows in pairs.
    """
    rows = {name: signs_of(name, logits, clips) for name in OPPOSITE}
    return {kind: {name: row[kind] for name, row in rows.items()} for kind in ("sign", "block_sign")}


def key_ceilings(judges: Judges, world, clips: int, generator: torch.Generator) -> dict:
    """Keys of rendered test clips under scripts; clips where the key met an obstacle are left out and counted."""
    rows = {}
    for key in (*KEYS, None):
        right, by_start = [], {}
        for start in STARTS:
            frames, done = scripted(world, clips, key, start, generator)
            found = key_right(judges.keys(frames), key)[done]
            by_start[start] = share(found)
            right.append(found.cpu())
        rows[key or "none"] = share(torch.cat(right)) | {"starts": by_start, "rendered": clips * len(STARTS)}
    return rows


def sign_ceilings(judges: Judges, world, clips: int, seed: int) -> dict:
    """`signs` of rendered test clips; both keys of a pair begin in the same place and both did their work."""
    result = {}
    for name, pair in OPPOSITE.items():
        same = lambda key: scripted(world, clips, key, "rest", torch.Generator(world.device).manual_seed(seed))
        made = {key: same(key) for key in pair}
        both = made[pair[0]][1] & made[pair[1]][1]
        frames = {key: clip[both] for key, (clip, _) in made.items()}
        logits = {key: judges.keys(clip) for key, clip in frames.items()}
        for kind, row in signs_of(name, logits, frames).items():
            result[f"{name}_{kind}"] = row
    return result


def pose_ceilings(judges: Judges, world, clips: int, generator: torch.Generator) -> dict:
    """Joints of rendered test frames: the mean distance in heights of the picture, and the share that is near."""
    clip = world.clips(clips, 1, *RENDER_SIZES[world.cuda], generator, 2, split="test", unseen="any")
    truth, guess = joints_of(world, clip["params"])[:, 0], judges.pose(clip["frames"])[:, 0]  # [B,J,3]
    seen = truth[..., 2] > 0
    offset = (guess - truth)[..., :2] * torch.tensor([16 / 9.6, 1.0], device=truth.device)
    distance = offset.norm(dim=-1)[seen]
    return {"near": share(distance < NEAR), "seen": share(((guess[..., 2] > 0) == seen).flatten()),
            "distance": {"value": round(float(distance.mean()), 5), "count": len(distance)}}


STATISTICS = ("brightness", "contrast", "saturation", "detail", "confidence")
OUTERMOST, MARGIN = 0.002, 0.15  # quantile of rendered truth on each side, and how far beyond it is still no collapse


def statistics(judges: Judges, frames: torch.Tensor) -> torch.Tensor:
    """u8 [B,T,H,W,3] -> STATISTICS of each clip [B,5], from pictures of 160x96 in 0..1, means over the frames.

    Contrast is the deviation of the brightness in a frame, detail the mean difference of neighbours, confidence the
    mean over attributes of the judge's likeliest value.
    """
    x = torch.stack([small(part) for part in frames]) * 0.5 + 0.5  # [B,T,3,96,160]
    gray = x.mean(2)
    detail = (gray[..., 1:] - gray[..., :-1]).abs().mean((1, 2, 3))
    spread = x.amax(2) - x.amin(2)
    guess = judges.attributes(judges.features(frames))
    sure = torch.stack([v.exp().amax(-1) for v in guess.values()]).mean(0)
    return torch.stack([gray.mean((1, 2, 3)), gray.std((2, 3)).mean(1), spread.mean((1, 2, 3)), detail, sure], 1)


def rendered_ranges(judges: Judges, world, clips: int, generator: torch.Generator) -> dict:
    """For each statistic the range of rendered test clips, widened by MARGIN of its length."""
    rows = []
    for _ in range(0, clips, 512):
        clip = world.clips(min(512, clips), CLIP_FRAMES, *RENDER_SIZES[world.cuda], generator, 2, split="test",
                           unseen="any")
        rows.append(statistics(judges, clip["frames"]))
    rows = torch.cat(rows).cpu()
    low, high = rows.quantile(OUTERMOST, 0), rows.quantile(1 - OUTERMOST, 0)
    room = (high - low) * MARGIN
    limits = torch.stack([low - room, high + room], 1).tolist()
    inside = ((rows >= low - room) & (rows <= high + room)).all(1)
    return {"limits": {name: [round(v, 5) for v in pair] for name, pair in zip(STATISTICS, limits)},
            "inside": share(inside)}


def outside(judges: Judges, frames: torch.Tensor, ranges: dict) -> dict[int, str]:
    """Clips u8 [B,T,H,W,3] that leave the range of rendered truth: their number and the statistic that does."""
    found = {}
    for run, row in enumerate(statistics(judges, frames).tolist()):
        for name, value in zip(STATISTICS, row):
            low, high = ranges["limits"][name]
            if not low <= value <= high:
                found.setdefault(run, f"{name} {value:.3f} is outside of {low:.3f} to {high:.3f}")
    return found


def measure(judges: Judges, world, clips: int, seed: int = 20) -> dict:
    """The tables of all judges that are there; `clips` for the attributes, fewer for the rest."""
    gen = torch.Generator(world.device).manual_seed(seed)
    tables = {"attributes": lambda: attribute_ceilings(judges, world, clips, gen),
              "keys": lambda: key_ceilings(judges, world, max(2, clips // 16), gen),
              "pose": lambda: pose_ceilings(judges, world, clips, gen)}
    result = {name: tables[name]() for name in tables if name in judges.parts}
    if "keys" in judges.parts:
        result["signs"] = sign_ceilings(judges, world, max(2, clips // 16), seed)
    if "attributes" in judges.parts:
        result["ranges"] = rendered_ranges(judges, world, clips, gen)
    return result


def lowest(table: dict) -> dict:
    """The worst row of each judge, for a line of the log."""
    rows_of = lambda rows: [(v["value"], k) for k, v in rows.items() if k != "distance" and v["value"] is not None]
    return {part: min(rows_of(rows)) for part, rows in table.items() if part != "ranges"}
