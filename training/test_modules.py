#!/usr/bin/env python3
"""Checks of the Python modules: shapes, causality, streaming against whole sequences, storage."""
import json
import sys
import tempfile
from pathlib import Path

import torch

from export import export
from gamegen import captions, checkpoint, examples, msdit, tokenizer, vae
from gamegen.sampler import Stream

TOLERANCE = 2e-5


def noisy_model() -> checkpoint.Model:
    """A fresh model whose zero-initialised layers are random, so that nothing is hidden by a zero."""
    torch.manual_seed(1)
    model = checkpoint.new_model(len(tokenizer.words()))
    for part in model.parts.values():
        for p in part.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.02)
    return model.eval()


def texts(model, count: int):
    """Features and masks of `count` prompts."""
    ids = tokenizer.encode(tokenizer.build(tokenizer.words()), ["a red robot in the desert", "night, snow"][:count])
    return model.text(ids)


def test_shapes(model):
    x = torch.rand(2, 3, 3, 64, 96) * 2 - 1
    mean, log_variance = model.vae.encode(x)
    assert mean.shape == log_variance.shape == (2, 3, 64, 2, 3)
    assert model.vae.decode(mean).shape == x.shape


def test_two_fold_scale_starts_as_the_small_picture(model):
    state = model.vae.state_dict()
    vae_model = vae.AutoencoderKLCausal3D(model.vae.cfg).eval()
    vae_model.load_state_dict(vae.start_two_fold(state))
    x = torch.rand(1, 2, 3, 64, 96) * 2 - 1
    large = x.repeat_interleave(2, 3).repeat_interleave(2, 4)
    mean = vae_model.encode(x)[0]
    assert (vae_model.encode(large, 2)[0] - mean).abs().max() < 1e-3
    assert vae_model.decode(mean, scale=2).shape == large.shape
    assert vae.scale_of(model.vae.cfg, 1280, 720) == 2 and vae.scale_of(model.vae.cfg, 640, 360) == 1


def test_vae_is_causal_and_streams(model):
    z = torch.randn(1, 4, 64, 2, 2)
    other = z.clone()
    other[:, 2:] += 1
    whole = model.vae.decode(z)
    assert torch.equal(whole[:, :2], model.vae.decode(other)[:, :2])
    assert not torch.allclose(whole[:, 2:], model.vae.decode(other)[:, 2:])
    cache = {}
    streamed = torch.cat([model.vae.decode(z[:, i:i + 1], cache) for i in range(4)], 1)
    assert (streamed - whole).abs().max() < TOLERANCE


def sequence(model, x, before, has, keys, mask=None):
    """One pass over a whole sequence at level 0.5."""
    b, t = x.shape[:2]
    text, text_mask = texts(model, b)
    half = torch.full((b, t), 0.5)
    previous = torch.cat([torch.zeros_like(keys[:, :1]), keys[:, :-1]], 1)
    hook = model.instructnet.bind(keys, previous, text[:, None], text_mask[:, None])
    mask = msdit.causal_mask(b, t, "cpu") if mask is None else mask
    noise = torch.full((b, t), 0.05)
    return model.dit(x, half, half, before, noise, has, text, text_mask, torch.arange(t), mask, hook=hook)


def test_dit_is_causal_and_streams(model):
    x, before, keys = torch.randn(2, 5, 64, 2, 3), torch.randn(2, 5, 64, 2, 3), (torch.rand(2, 5, 6) > 0.5).float()
    has = torch.ones(2, 5)
    has[:, 0] = 0
    whole = sequence(model, x, before, has, keys)
    other = x.clone()
    other[:, 3:] += 1
    changed = sequence(model, other, before, has, keys)
    assert torch.equal(whole[:, :3], changed[:, :3])
    assert not torch.allclose(whole[:, 3], changed[:, 3])
    stream = Stream(model.dit, model.instructnet, 2, 2, 3)
    text, text_mask = texts(model, 2)
    stream.set_text(text, text_mask)
    stream.set_instruction(text, text_mask)
    for i in range(5):
        stream.previous_noisy = before[:, i:i + 1]
        v = stream.velocity(x[:, i:i + 1], 0.5, 0.5, keys[:, i:i + 1])
        assert (v - whole[:, i:i + 1]).abs().max() < TOLERANCE, i
        stream.push(x[:, i:i + 1], keys[:, i:i + 1])


def test_ring_forgets(model):
    stream = Stream(model.dit, None, 1, 1, 2)
    stream.set_text(*texts(model, 1))
    for i in range(stream.window + 2):
        stream.step(None, 1, first_steps=1)
    assert stream.position == stream.window + 2
    assert all(k.abs().sum((0, 1, 3)).min() > 0 for k, _ in stream.rings)


def test_two_streams_see_the_context_only(model):
    frames = 3
    mask = examples.stream_mask(frames, "cpu")
    assert mask.sum(1).tolist() == [1, 2, 3, 1, 2, 3]
    assert not mask[:frames, frames:].any() and mask[frames:, frames:].equal(torch.eye(frames, dtype=torch.bool))


def test_untrained_instructnet_changes_nothing():
    torch.manual_seed(2)
    model = checkpoint.new_model(len(tokenizer.words())).eval()
    torch.nn.init.normal_(model.dit.proj_out.weight, std=0.02)
    x, has = torch.randn(1, 2, 64, 2, 2), torch.ones(1, 2)
    a = sequence(model, x, x, has, torch.zeros(1, 2, 6))
    b = sequence(model, x, x, has, torch.ones(1, 2, 6))
    assert torch.equal(a, b) and a.abs().max() > 0


def test_a_video_prompt_acts_on_its_clips_only(model):
    latents, kinds = torch.randn(3, 2, 64, 2, 2), torch.tensor([-1, 0, 2])
    features = model.instructnet.video_features(latents, kinds)
    assert features.shape == (3, 2, 4, 384) and not features[0].any() and features[1:].abs().amax((1, 2, 3)).min() > 0
    alone = model.instructnet.video_features(latents[1:2], kinds[1:2])
    assert torch.allclose(features[1:2], alone, atol=1e-6)


def test_rows_of_a_batch_have_their_roles():
    for batch in (5, 8, 12, 24, 40, 48):
        for images in (True, False):
            layout = examples.Layout.of(batch, images)
            assert 0 <= layout.base_from < layout.base_to < layout.student_to < batch, (batch, layout)
            assert (layout.image > 0) == images
            twice = examples.Layout.of(batch, images, 2)
            assert twice.student_to - twice.base_to == 2 * (layout.student_to - layout.base_to), (batch, twice)
        stills = examples.Layout.of_stills(batch)
        assert stills.image == stills.base_to == stills.student_to == batch
        assert stills.base_to - stills.base_from == batch // 2


def clips_of(count: int, frames: int) -> dict:
    """Clips of zeros with siblings of ones; the caption of every second one tells them apart."""
    z = torch.zeros(count, frames + 1, 4, 2, 2)
    flags = lambda value: torch.full((count,), value)
    return {"latents": z, "own": z, "sibling": z + 1, "has_sibling": flags(True), "lagged": flags(False),
            "captioned": torch.arange(count) % 2 == 0, "steps": flags(1.0), "depth": flags(0), "at": flags(-10**7),
            "ground": torch.ones(count, frames + 1, dtype=torch.bool),
            "keys": torch.zeros(count, frames + 1, 6), "select": torch.zeros(count, frames + 1, dtype=torch.long),
            "caption": torch.ones(count, 3), "instruction": torch.ones(count, 2, 3), "video_kind": flags(-1)}


def test_a_lagging_context_has_the_words_that_mend_it():
    torch.manual_seed(3)
    count, frames = 64, 4
    mix = examples.Mix(images=False, damaged=0.0, lagged=0.5, text_dropped=1.0, instruction_dropped=1.0, noise_max=0.0)
    clips = clips_of(count, frames)
    e = examples.make(clips, mix, examples.Layout(0, 0, 0, 0), False)
    lagged = e["lagged"]
    assert 0.2 < lagged.float().mean() < 0.8
    context = e["clean"][:, :frames].flatten(1)
    assert (context[lagged].mean(1) > 0).all() and (context[~lagged] == 0).all()
    assert not e["clean"][:, frames:].any()  # the targets are the clip's own
    assert not e["weight"][lagged, :frames].any() and e["weight"][:, frames:].all()
    assert not (e["no_text"] & lagged).any() and e["no_text"][~lagged].all()
    alone = e["no_instruction"] & lagged
    assert alone.any() and not (alone & ~clips["captioned"]).any() and (lagged & ~e["no_instruction"]).any()
    never = examples.make(clips | {"has_sibling": torch.zeros(count, dtype=torch.bool)}, mix,
                          examples.Layout(0, 0, 0, 0), False)
    assert not never["lagged"].any() and not never["clean"].any()


def test_a_world_does_not_begin_in_a_jump():
    torch.manual_seed(4)
    count, frames = 32, 3
    clips = clips_of(count, frames)
    clips["ground"][::2] = False
    mix = examples.Mix(images=False, text_start=0.5, seeded=0.0, damaged=0.0, lagged=0.0, settled=0.0)
    e = examples.make(clips, mix, examples.Layout(0, 0, 0, 0), False)
    start = e["has"][:, 0] == 0
    assert start.any() and not start.all()
    for stream in (0, frames):
        assert (e["weight"][:, stream] == (~start | clips["ground"][:, 1]).float()).all()
    assert e["weight"][:, 1:frames].all() and e["weight"][:, frames + 1:].all()


def test_keys_are_released_under_a_video_prompt():
    torch.manual_seed(5)
    clips = clips_of(64, 2)
    clips["keys"] += 1
    clips["video_kind"] = torch.arange(64) % 4 - 1
    mix = examples.Mix(images=False, text_start=0.0, keys_dropped=(1.0, 0.0, 1.0))
    released = ~examples.make(clips, mix, examples.Layout(0, 0, 0, 0), False)["keys"].flatten(1).any(1)
    assert (released == torch.isin(clips["video_kind"], torch.tensor([0, 2]))).all()


def test_storage(model):
    with tempfile.TemporaryDirectory() as folder:
        export(model, folder)
        again = checkpoint.load_model(folder)
        for name, part in model.parts.items():
            for key, value in part.state_dict().items():
                error = (again.parts[name].state_dict()[key] - value).abs().max()
                assert error <= value.abs().max() / 127 + 1e-6, (name, key)
        sizes = [p.stat().st_size for p in Path(folder).rglob("*.safetensors")]
        assert max(sizes) <= 16 << 20 and sum(sizes) <= 40 << 20
        index = json.loads((Path(folder) / "model_index.json").read_text())
        assert index["vocabulary"]["weather"] == captions.WEATHER
        first = checkpoint.model_hash(folder)
        export(again, folder)
        assert checkpoint.model_hash(folder) == first  # storing stored weights changes nothing


def test_tokenizer():
    tok = tokenizer.build(tokenizer.words())
    ids = tokenizer.encode(tok, ["Rain, snow!", "\u0416"])
    assert ids.shape == (2, tokenizer.MAX_LENGTH) and ids[1, :3].tolist() == [2, 1, 0]


def main():
    model = noisy_model()
    with torch.no_grad():
        for name, test in sorted(globals().items()):
            if name.startswith("test_"):
                test(*[model][:test.__code__.co_argcount])
                print("passed:", name)


if __name__ == "__main__":
    sys.exit(main())
