#!/usr/bin/env python3
"""Checks of the procedural world and the video prompts: splits, held-out combinations, poses, keys, edges, motion."""
import sys

import torch

from gamegen import checkpoint, data, tokenizer, video_prompts
from gamegen.captions import ATTRIBUTES
from gamegen.world import F_COLOR, F_PLAYER, JOINTS, S_LIGHT, S_SEED, SPLITS, UNSEEN, World

HEIGHT, WIDTH = 192, 320
COLUMNS = [name for name, _ in ATTRIBUTES]


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def column(attrs: torch.Tensor, name: str) -> torch.Tensor:
    return attrs[:, COLUMNS.index(name)]


def held_out(attrs: torch.Tensor) -> torch.Tensor:
    """Rows with a combination of UNSEEN, found by names and not by the world's own table."""
    names = dict(ATTRIBUTES)
    found = torch.zeros(len(attrs), dtype=torch.bool)
    for pair in UNSEEN:
        found |= torch.stack([column(attrs, name) == names[name].index(value) for name, value in pair]).all(0)
    return found


def walked(world: World, count: int, frames: int = 12, seed: int = 2, **fixed) -> torch.Tensor:
    """Parameters [B,56] of the last frame after W was held."""
    state, _ = world.reset(count, generator(seed), unseen="any", **fixed)
    keys = torch.zeros(count, frames, 6)
    keys[..., 0] = 1
    return world.simulate(state, keys)[:, -1].clone()


def raises(function, *words: str):
    """The function refuses, and says the words."""
    try:
        function()
    except ValueError as error:
        assert all(word in str(error) for word in words), error
        return
    raise AssertionError(f"no error that says {words}")


def test_splits_are_disjoint(world):
    spans = sorted(SPLITS.values())
    assert all(low < high for low, high in spans)
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:]))
    assert spans[-1][1] <= 1 << 24  # a float holds every seed
    for split, (low, high) in SPLITS.items():
        seeds = world.reset(256, generator(), split=split)[0][:, S_SEED]
        assert ((seeds >= low) & (seeds < high) & (seeds == seeds.floor())).all(), split
    raises(lambda: world.reset(2, generator(), split="all"), "split", "all", "train, val, test")


def test_unseen_combinations(world):
    seen = world.reset(4000, generator())[1]
    assert not held_out(seen).any()
    only = world.reset(2000, generator(), unseen="only")[1]
    assert held_out(only).all()
    both = held_out(world.reset(4000, generator(), unseen="any")[1]).float().mean()
    assert 0.1 < both < 0.5, both
    for i, (name, values) in enumerate(ATTRIBUTES):
        shares = torch.bincount(seen[:, i], minlength=len(values)) / len(seen)
        assert shares.min() > 0.09, (name, shares)  # every single value stays frequent
    assert abs(column(seen, "perspective").float().mean() - 0.45) < 0.03
    raises(lambda: world.reset(2, generator(), character=1, color=2), "character, color", "unseen='any'")
    assert held_out(world.reset(2, generator(), unseen="any", character=1, color=2)[1]).all()
    raises(lambda: world.reset(2, generator(), unseen="never"), "unseen", "never", "exclude, only, any")
    raises(lambda: world.reset(2, generator(), colour=1), "attribute", "colour", "color")
    pinned = world.reset(64, generator(), unseen="only", biome=2, effects=torch.arange(64) % 4)[1]
    assert held_out(pinned).all() and (column(pinned, "biome") == 2).all()


def test_changes(world):
    clips = world.clips(512, 2, 4, 4, generator(), 1, p_event=1.0)
    before, after = clips["before"], clips["after"]
    assert not held_out(before).any() and not held_out(after).any()
    assert ((before != after).sum(1) == 1).all()
    assert (before[:, [0, 4, 5, 6]] == after[:, [0, 4, 5, 6]]).all()
    still = world.clips(64, 2, 4, 4, generator(), 1)
    assert (still["before"] == still["after"]).all()
    only = world.clips(64, 2, 4, 4, generator(), 1, p_event=1.0, split="test", unseen="only")
    assert held_out(only["before"]).all() and held_out(only["after"]).all()
    assert (only["state"][:, S_SEED] >= SPLITS["test"][0]).all()


def test_siblings_differ_in_one_attribute(world):
    clips = world.clips(48, 3, 32, 48, generator(), 1, p_event=0.5, p_sibling=0.5)
    rows, other = clips["sibling_rows"], clips["sibling"]
    moved = (clips["before"] != clips["after"]).any(1)
    assert set(moved.nonzero()[:, 0].tolist()) <= set(rows.tolist()) and moved[rows].any() and (~moved[rows]).any()
    assert (other[moved[rows]] == clips["before"][rows][moved[rows]]).all()
    assert ((other != clips["after"][rows]).sum(1) == 1).all() and not held_out(other).any()
    assert (other[:, [0, 6]] == clips["after"][rows][:, [0, 6]]).all()
    shown, sibling = clips["frames"][rows].float(), clips["sibling_frames"].float()
    assert sibling.shape == shown.shape
    still = ~moved[rows]
    assert ((shown - sibling).abs().mean((1, 2, 3, 4))[still] > 0.2).all()  # another light, weather, effect or figure
    plain = world.clips(48, 3, 32, 48, generator(), 1, p_event=0.5)
    assert "sibling" not in plain and torch.equal(plain["before"], clips["before"])


def test_a_change_takes_less_than_a_second(world):
    state, before = world.reset(16, generator(), lighting=0)
    keys = torch.zeros(16, 24, 6)
    targets = before[:, None, 1:4].float().repeat(1, 24, 1)
    targets[..., 0] = 2
    world.simulate(state, keys[:, :7], targets[:, :7])
    half = state[:, S_LIGHT + 2].clone()
    world.simulate(state, keys[:, 7:], targets[:, 7:])
    assert ((half > 0.3) & (half < 0.7)).all() and (state[:, S_LIGHT + 2] > 0.99).all()


def test_pose_lies_on_the_figure(world):
    count = 24
    plain = dict(perspective=0, lighting=0, weather=0, effects=0)
    params = walked(world, count, 16, character=torch.arange(count) % 4, **plain)
    joints = world.pose(params, HEIGHT, WIDTH)
    assert joints.shape == (count, len(JOINTS), 3)
    without = params.clone()
    without[:, F_PLAYER + 1] -= 1000
    frames, empty = (world.render(p, HEIGHT, WIDTH).float() for p in (params, without))
    figure = (frames - empty).abs().amax(-1)
    figure = torch.nn.functional.max_pool2d(figure[:, None], 3, 1, 1)[:, 0] > 12
    on = torch.tensor([[not v or bool(figure[i, int(y), int(x)]) for x, y, v in row]
                       for i, row in enumerate(joints.tolist())])
    shown = joints[..., 2] > 0
    assert shown[:, :12].float().mean() > 0.95
    assert (shown[:, 12] == (torch.arange(count) % 4 == 2)).all()  # only the rider has a horse
    for character in range(4):
        rows = torch.arange(count) % 4 == character
        share = (on & shown)[rows].sum() / shown[rows].sum()
        assert share > 0.93, (character, share)  # a tree may stand before the figure
    first = walked(world, 4, perspective=1)
    assert not world.pose(first, HEIGHT, WIDTH).any()


def test_color_fills_enough_of_the_picture(world):
    for view, least in ((0, 0.02), (1, 0.05)):
        count = 8
        params = walked(world, count, perspective=view, character=torch.arange(count) % 4, color=0, effects=0)
        other = params.clone()
        other[:, F_COLOR] = 1
        changed = (world.render(params, 96, 160).float() - world.render(other, 96, 160).float()).abs().amax(-1) > 40
        shares = changed.float().mean((1, 2)).view(-1, 4).mean(0)
        assert shares.min() > least, (view, shares)


def test_opposite_keys(world):
    states = [world.reset(32, generator(), unseen="any")[0] for _ in range(4)]
    moved = []
    for key, state in zip((0, 1, 2, 3), states):  # W S A D
        keys = torch.zeros(32, 12, 6)
        keys[..., key] = 1
        start = state.clone()
        world.simulate(state, keys)
        yaw = start[:, 4]
        ahead = (state[:, 0] - start[:, 0]) * yaw.sin() + (state[:, 2] - start[:, 2]) * yaw.cos()
        moved.append((ahead, state[:, 4] - yaw))
    assert (moved[0][0] > 0.2).float().mean() > 0.9 and (moved[1][0] < -0.1).float().mean() > 0.9
    assert (moved[2][1] < -0.2).all() and (moved[3][1] > 0.2).all()


def test_canny():
    frames = torch.zeros(2, 48, 64, 3, dtype=torch.uint8)
    frames[:, 12:36, 16:48] = 255
    edges = video_prompts.edges(frames)
    assert edges.shape == frames.shape[:3] and set(edges.unique().tolist()) == {0, 1} and (edges[0] == edges[1]).all()
    on = edges[0] > 0
    assert not on[16:32, 20:44].any() and not on[:8].any() and not on[40:].any()
    assert on[14:34, 14:18].any(1).all() and on[14:34, 46:50].any(1).all()  # both sides, without a gap
    assert on[10:14, 18:46].any(0).all() and on[34:38, 18:46].any(0).all()
    assert (on[16:32].sum(1) == 2).all()  # thin
    drawn = video_prompts.canny(frames)
    assert drawn.shape == frames.shape and drawn.dtype == torch.uint8 and set(drawn.unique().tolist()) == {0, 255}
    assert ((drawn[0, 16:32, :, 0] > 0).sum(1) == 6).all()  # the same lines, three pixels wide
    assert not video_prompts.canny(torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)).any()


def test_motion():
    noise = torch.rand(1, 3, 24, 40, generator=generator())
    texture = torch.nn.functional.interpolate(noise, (240, 400), mode="bicubic").clamp(0, 1)
    texture = (texture[0] * 255).to(torch.uint8).permute(1, 2, 0)
    places = [(24, 40), (24, 34), (32, 34), (16, 48)]  # top left corner of the window of each frame
    frames = torch.stack([texture[y:y + HEIGHT, x:x + WIDTH] for y, x in places])[None]
    field = video_prompts.motion_field(frames)
    assert field.shape == (1, 4, 6, 10, 2) and not field[:, 0].any()
    inner = field[0, :, 1:-1, 1:-1]
    for t in range(1, 4):
        dy, dx = ((places[t - 1][i] - places[t][i]) // 2 for i in (0, 1))
        assert (inner[t] == torch.tensor([dx, dy])).all(), (t, dx, dy)
    picture = video_prompts.motion_vectors(frames)
    assert picture.shape == frames.shape and (picture[0, 0] == 128).all()
    assert picture[0, 1, 100, 100].tolist() == [128 + 76, 128, 128]
    odd = video_prompts.motion_vectors(frames[:, :, :61, :75])
    assert odd.shape == (1, 4, 61, 75, 3)


def test_stills_stand_on_the_ground(world):
    torch.manual_seed(6)
    tok, model = tokenizer.build(tokenizer.words()), checkpoint.new_model(len(tokenizer.words())).eval()
    cfg = data.PoolConfig(8, 64, 96, 12, 0.5, 0.5, 0.5, samples=1)
    pool = data.ClipPool(cfg, world, model.vae, tok, generator(), 7)
    pool.fill(12)
    assert pool.ground.any() and not pool.ground.all()
    stills = pool.stills(40)
    assert stills["latents"].shape == (40, 2, 64, 2, 3) and stills["keys"].shape == (40, 2, 6)
    assert (stills["latents"][:, 0] == stills["latents"][:, 1]).all()
    known = pool.latents.flatten(0, 1)
    for z, ground in zip(stills["latents"][:, 0], stills["ground"][:, 0]):
        index = int((known == z).flatten(1).all(1).nonzero()[0])
        assert ground == pool.ground.flatten()[index]
        assert ground or not pool.ground[index // cfg.frames].any()


def test_pose_picture():
    joints = torch.zeros(2, len(JOINTS), 3)
    joints[0, 0], joints[0, 1] = torch.tensor([20.0, 5.0, 1.0]), torch.tensor([20.0, 25.0, 1.0])
    picture = video_prompts.pose_picture(joints, 32, 48)
    assert picture.shape == (2, 32, 48, 3) and not picture[1].any()
    assert picture[0, 15, 20].tolist() == [255, 0, 0]
    assert 5 <= (picture[0, 15, :, 0] > 0).sum() <= 7


def main():
    world = World("cpu")
    with torch.no_grad():
        for name, test in sorted(globals().items()):
            if name.startswith("test_"):
                test(*[world][:test.__code__.co_argcount])
                print("passed:", name)


if __name__ == "__main__":
    sys.exit(main())
