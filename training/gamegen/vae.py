"""Causal video autoencoder: 4x4 patches, then 3 space-to-channel stages (32x in all), causal in time.

The paper's 3D-VAE (arXiv 2411.00769, section 3.1) compresses video for the transformer. This one has a temporal
factor of 1, so that a key press reaches the next frame, and mixes a frame with the one before it by kernel-2 causal
convolutions in the decoder. Up- and downsampling use pixel shuffles with shortcuts (DC-AE, arXiv 2410.10733).
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

LOG_VARIANCE_RANGE = (-12.0, 4.0)
TWO_FOLD_FROM = 600_000  # pixels of a picture from which on a latent stands for 64x64 pixels


class ChannelNorm(nn.Module):
    """RMS over the channels of each position: no statistics over space or time, so streaming is exact."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.permute(0, 2, 3, 1).float()  # [N,h,w,C]
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()
        return y.to(x.dtype).permute(0, 3, 1, 2)  # [N,C,h,w]


class ResidualBlock(nn.Module):
    """x + conv1x1(silu(conv3x3(norm(x))))."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.norm = ChannelNorm(channels, eps)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.conv2.weight, std=0.02 / math.sqrt(channels))
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.silu(self.conv1(self.norm(x))))  # [N,C,h,w]


class Downsample(nn.Module):
    """Space to channel by 2, a 1x1 convolution, and the mean of channel groups as a shortcut where it divides."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(4 * c_in, c_out, 1)
        self.c_out = c_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.pixel_unshuffle(x, 2)  # [N,4*Cin,h/2,w/2]
        out = self.conv(y)  # [N,Cout,h/2,w/2]
        if y.shape[1] % self.c_out == 0:
            out = out + y.reshape(y.shape[0], self.c_out, -1, *y.shape[2:]).mean(2)
        return out


class Upsample(nn.Module):
    """A 1x1 convolution to 4 * Cout channels, repeated channels as a shortcut, then channel to space by 2."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = nn.Conv2d(c_in, 4 * c_out, 1)
        self.wide = 4 * c_out
        self.repeat = -(-4 * c_out // c_in)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x.repeat_interleave(self.repeat, 1)[:, :self.wide]  # [N,4*Cout,h,w]; cut where it does not divide
        return F.pixel_shuffle(self.conv(x) + shortcut, 2)  # [N,Cout,2h,2w]


class TemporalMix(nn.Module):
    """x_t + conv1x1(norm(x_t), norm(x_(t-1))); the first frame has itself before it."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.norm = ChannelNorm(channels, eps)
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        nn.init.normal_(self.conv.weight, std=0.02 / math.sqrt(channels))
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor, frames: int, cache: dict | None) -> torch.Tensor:
        """x [B*T,C,h,w]. `cache` keeps the normed last frame between calls: decoding goes on where it stopped."""
        y = self.norm(x)  # [B*T,C,h,w]
        clip = y.reshape(-1, frames, *y.shape[1:])  # [B,T,C,h,w]
        before = clip[:, :1] if cache is None or id(self) not in cache else cache[id(self)]  # [B,1,C,h,w]
        if cache is not None:
            cache[id(self)] = clip[:, -1:].detach()
        previous = torch.cat([before, clip[:, :-1]], 1).reshape(y.shape)  # [B*T,C,h,w]
        return x + self.conv(torch.cat([y, previous], 1))  # [B*T,C,h,w]


class Stage(nn.Module):
    """Residual blocks at one resolution; a resampling named by the side it belongs to comes before them."""

    def __init__(self, channels: int, blocks: int, eps: float, **resample: nn.Module):
        super().__init__()
        for name, module in resample.items():
            setattr(self, name, module)
        self.block = nn.ModuleList([ResidualBlock(channels, eps) for _ in range(blocks)])


class Encoder(nn.Module):
    """Frames on their own (the temporal factor is 1): [N,3,H,W] -> moments [N,2*Z,H/(32 s),W/(32 s)].

    The scale s is 1 or 2. At 2 the first patches are twice as long and everything behind them is the same network.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        channels, eps = cfg["encoder_channels"], cfg["norm_eps"]
        self.patch = cfg["patch_size"]
        self.conv_in = nn.Conv2d(3 * self.patch**2, channels[0], 3, padding=1)
        self.conv_in_2x = nn.Conv2d(3 * (2 * self.patch)**2, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for s, c in enumerate(channels):
            resample = {"downsample": Downsample(channels[s - 1], c)} if s else {}
            self.down.append(Stage(c, cfg["encoder_blocks"][s], eps, **resample))
        self.conv_out = nn.Conv2d(channels[-1], 2 * cfg["latent_channels"], 3, padding=1)

    def forward(self, x: torch.Tensor, scale: int = 1, trace: dict | None = None) -> torch.Tensor:
        h = F.pixel_unshuffle(x, scale * self.patch).contiguous(memory_format=torch.channels_last)  # [N,48 s^2,H/4s,..]
        h = (self.conv_in if scale == 1 else self.conv_in_2x)(h)  # [N,C0,H/(4s),W/(4s)]
        if trace is not None:
            trace["conv_in"] = h
        for s, stage in enumerate(self.down):
            if s:
                h = stage.downsample(h)  # [N,C_s,H/(4*2^s),W/(4*2^s)]
            for block in stage.block:
                h = block(h)
            if trace is not None:
                trace[f"down.{s}"] = h
        return self.conv_out(h)  # [N,2*Z,H/32,W/32]


class Decoder(nn.Module):
    """Latents [B*T,Z,h,w] -> pixels [B*T,3,32sh,32sw]; two temporal mixes look one frame back.

    At scale 2 one more block and patches of twice the length end the same network: a 1280x720 picture costs the
    transformer what a 640x360 picture costs.
    """

    def __init__(self, cfg: dict):
        super().__init__()
        channels, eps = cfg["decoder_channels"], cfg["norm_eps"]
        self.patch = cfg["patch_size"]
        self.conv_in = nn.Conv2d(cfg["latent_channels"], channels[0], 3, padding=1)
        self.temporal = nn.ModuleList([TemporalMix(channels[0], eps), TemporalMix(channels[1], eps)])
        self.up = nn.ModuleList()
        for s, c in enumerate(channels):
            resample = {"upsample": Upsample(channels[s - 1], c)} if s else {}
            self.up.append(Stage(c, cfg["decoder_blocks"][s], eps, **resample))
        self.norm_out = ChannelNorm(channels[-1], eps)
        self.conv_out = nn.Conv2d(channels[-1], 3 * self.patch**2, 3, padding=1)
        self.block_2x = ResidualBlock(channels[-1], eps)
        self.norm_out_2x = ChannelNorm(channels[-1], eps)
        self.conv_out_2x = nn.Conv2d(channels[-1], 3 * (2 * self.patch)**2, 3, padding=1)

    def forward(self, z: torch.Tensor, frames: int, cache: dict | None, scale: int = 1,
                trace: dict | None = None) -> torch.Tensor:
        h = self.conv_in(z.contiguous(memory_format=torch.channels_last))  # [B*T,C0,h,w]
        if trace is not None:
            trace["conv_in"] = h
        h = self.temporal[0](h, frames, cache)  # [B*T,C0,h,w]
        if trace is not None:
            trace["temporal.0"] = h
        for s, stage in enumerate(self.up):
            if s:
                h = stage.upsample(h)  # [B*T,C_s,h*2^s,w*2^s]
            if s == 1:
                h = self.temporal[1](h, frames, cache)
                if trace is not None:
                    trace["temporal.1"] = h
            for block in stage.block:
                h = block(h)
            if trace is not None:
                trace[f"up.{s}"] = h
        if scale == 1:
            h = self.conv_out(F.silu(self.norm_out(h)))  # [B*T,48,8h,8w]
        else:
            h = self.conv_out_2x(F.silu(self.norm_out_2x(self.block_2x(h))))  # [B*T,192,8h,8w]
        return F.pixel_shuffle(h, scale * self.patch)  # [B*T,3,32sh,32sw]


def default_config() -> dict:
    """vae/config.json of gamegen-x-mini."""
    return {
        "_class_name": "AutoencoderKLCausal3D", "latent_channels": 64, "temporal_factor": 1, "patch_size": 4,
        "spatial_factor": 32, "encoder_channels": [64, 128, 256, 384], "encoder_blocks": [1, 1, 2, 2],
        "decoder_channels": [384, 256, 128, 64], "decoder_blocks": [2, 1, 1, 1], "norm_eps": 1e-6,
        "two_fold_from": TWO_FOLD_FROM,
    }


def start_two_fold(state: dict, patch: int = 4) -> dict:
    """Adds the layers of scale 2 to the weights of an autoencoder without them: both ends repeat those of scale 1.

    A pixel of the small picture stands for the mean of 2x2 pixels on the way in and for 2x2 equal pixels on the way out.
    """
    state = dict(state)
    small, large = patch * patch, 4 * patch * patch
    y, x = torch.meshgrid(torch.arange(2 * patch), torch.arange(2 * patch), indexing="ij")
    place = (y // 2 * patch + x // 2).flatten()  # [64]: the place in the small patch
    rows = torch.cat([c * small + place for c in range(3)])  # [192]
    assert rows.numel() == 3 * large
    state["encoder.conv_in_2x.weight"] = state["encoder.conv_in.weight"][:, rows] / 4
    state["encoder.conv_in_2x.bias"] = state["encoder.conv_in.bias"].clone()
    state["decoder.conv_out_2x.weight"] = state["decoder.conv_out.weight"][rows].clone()
    state["decoder.conv_out_2x.bias"] = state["decoder.conv_out.bias"][rows].clone()
    state["decoder.norm_out_2x.weight"] = state["decoder.norm_out.weight"].clone()
    fresh = ResidualBlock(state["decoder.norm_out.weight"].numel(), 1e-6)
    state |= {f"decoder.block_2x.{k}": v.detach().clone() for k, v in fresh.state_dict().items()}
    return state


def scale_of(cfg: dict, width: int, height: int) -> int:
    """1, or 2 for pictures of at least `two_fold_from` pixels."""
    return 2 if width * height >= cfg.get("two_fold_from", 1 << 62) else 1


class AutoencoderKLCausal3D(nn.Module):
    """Pixels in -1..1 to latents and back; the transformer works on latents of zero mean and unit deviation."""

    def __init__(self, cfg: dict):
        super().__init__()
        self.cfg = dict(cfg)
        self.encoder, self.decoder = Encoder(cfg), Decoder(cfg)
        self.register_buffer("latents_mean", torch.zeros(cfg["latent_channels"]))
        self.register_buffer("latents_std", torch.ones(cfg["latent_channels"]))

    def encode(self, x: torch.Tensor, scale: int = 1, trace: dict | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """x [B,T,3,H,W] -> mean and log variance, each [B,T,Z,H/(32 scale),W/(32 scale)] in f32."""
        b, t = x.shape[:2]
        moments = self.encoder(x.flatten(0, 1), scale, trace)  # [B*T,2*Z,h,w]
        mean, log_variance = moments.reshape(b, t, *moments.shape[1:]).float().chunk(2, 2)
        return mean, log_variance.clamp(*LOG_VARIANCE_RANGE)

    def decode(self, z: torch.Tensor, cache: dict | None = None, scale: int = 1,
               trace: dict | None = None) -> torch.Tensor:
        """z [B,T,Z,h,w] -> [B,T,3,32sh,32sw]. With one `cache` dict across calls the frames go on as one stream."""
        b, t = z.shape[:2]
        pixels = self.decoder(z.flatten(0, 1), t, cache, scale, trace)  # [B*T,3,H,W]
        return pixels.reshape(b, t, *pixels.shape[1:])

    def normalize(self, mean: torch.Tensor) -> torch.Tensor:
        """[B,T,Z,h,w] as the encoder gives it -> as the transformer wants it."""
        return (mean - self.latents_mean.view(1, 1, -1, 1, 1)) / self.latents_std.view(1, 1, -1, 1, 1)

    def denormalize(self, z: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        return z * self.latents_std.view(1, 1, -1, 1, 1) + self.latents_mean.view(1, 1, -1, 1, 1)
