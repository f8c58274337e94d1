"""Video prompts taken from frames: edges, motion of blocks, and poses of the player's figure.

All arithmetic on pixels is of whole numbers, so that another implementation reproduces every byte; float32 only
carries them (all sums stay below 2 ** 24). Pictures outside their border repeat the pixel at the border.
"""
import torch
import torch.nn.functional as F

CHUNK_PIXELS = 1 << 23  # pixels worked on at once: 136 frames of 320x192
EDGE_LOW, EDGE_HIGH = 50, 120  # thresholds on |dx| + |dy| of the Sobel filters, weights 1 2 1
EDGE_DILATIONS = 4  # how many pixels a strong edge spreads along weak ones
EDGE_WIDTH = 3  # pixels: of the autoencoder's latents of thinner lines a third is left, of these two thirds
BLOCK, REACH = 16, 8  # side of a block and longest step, in pixels of the half-size picture
STEP_COST = 32  # added to a block's sum of differences for each half-size pixel of |dx| + |dy|
# Color of a block: zero + shade of its step, which grows fast where most steps are (38 log2(1 + step)).
MOTION_ZERO, MOTION_SHADES = 128, (0, 38, 60, 76, 88, 98, 107, 114, 120)
LIMB_WIDTH = 6.0  # pixels
# Limbs between joints (order of world.JOINTS) and their colors; later ones lie on top.
LIMBS = [
    (1, 12, (128, 128, 128)), (1, 6, (0, 160, 80)), (1, 7, (0, 80, 160)), (6, 8, (0, 255, 0)), (8, 10, (128, 255, 0)),
    (7, 9, (0, 0, 255)), (9, 11, (128, 0, 255)), (1, 2, (255, 160, 0)), (1, 3, (255, 0, 160)), (2, 4, (255, 255, 0)),
    (3, 5, (255, 0, 255)), (0, 1, (255, 0, 0)),
]


def grey(frames: torch.Tensor) -> torch.Tensor:
    """u8 [N,H,W,3] -> whole numbers 0..255 as f32 [N,H,W]: (77 R + 150 G + 29 B + 128) >> 8."""
    weights = torch.tensor([77.0, 150.0, 29.0], device=frames.device)
    return torch.floor(((frames.float() * weights).sum(-1) + 128) / 256)


def _in_chunks(function, frames: torch.Tensor) -> torch.Tensor:
    """Applies function to some frames [N,H,W,...] at a time."""
    size = max(1, CHUNK_PIXELS // (frames.shape[1] * frames.shape[2]))
    return torch.cat([function(part) for part in frames.split(size)])


def _shifted(image: torch.Tensor, dy: int, dx: int) -> torch.Tensor:
    """image [N,H,W] read at (y + dy, x + dx), with the border repeated."""
    h, w = image.shape[1:]
    reach = max(abs(dy), abs(dx))
    padded = F.pad(image[:, None], [reach] * 4, mode="replicate")[:, 0]
    return padded[:, reach + dy:reach + dy + h, reach + dx:reach + dx + w]


def _blur(image: torch.Tensor) -> torch.Tensor:
    """5x5 Gaussian of weights 1 4 6 4 1 both ways: (sum + 128) >> 8."""
    for dy, dx in ((0, 1), (1, 0)):  # no convolution: on a GPU that may round to 10 bits
        near = _shifted(image, dy, dx) + _shifted(image, -dy, -dx)
        far = _shifted(image, 2 * dy, 2 * dx) + _shifted(image, -2 * dy, -2 * dx)
        image = 6 * image + 4 * near + far
    return torch.floor((image + 128) / 256)


def _thin(size: torch.Tensor, gx: torch.Tensor, gy: torch.Tensor) -> torch.Tensor:
    """Keeps gradients larger than the one before and not smaller than the one behind, along their direction.

    The direction is one of four; 2/5 stands for tan(22.5 degrees).
    """
    ax, ay = gx.abs(), gy.abs()
    flat, steep, down = 5 * ay <= 2 * ax, 5 * ax <= 2 * ay, gx * gy >= 0
    keep = torch.zeros_like(flat)
    rest = ~flat & ~steep
    for where, (dy, dx) in ((flat, (0, 1)), (steep & ~flat, (1, 0)), (rest & down, (1, 1)), (rest & ~down, (1, -1))):
        keep |= where & (size > _shifted(size, -dy, -dx)) & (size >= _shifted(size, dy, dx))
    return keep


def _edges(frames: torch.Tensor) -> torch.Tensor:
    image = _blur(grey(frames))
    across = _shifted(image, 0, 1) - _shifted(image, 0, -1)
    along = _shifted(image, 1, 0) - _shifted(image, -1, 0)
    gx = 2 * across + _shifted(across, 1, 0) + _shifted(across, -1, 0)
    gy = 2 * along + _shifted(along, 0, 1) + _shifted(along, 0, -1)
    size = gx.abs() + gy.abs()
    thin = _thin(size, gx, gy)
    weak, edge = thin & (size >= EDGE_LOW), (thin & (size >= EDGE_HIGH)).float()
    for _ in range(EDGE_DILATIONS):
        edge = F.max_pool2d(edge[:, None], 3, 1, 1)[:, 0] * weak
    return edge


def edges(frames: torch.Tensor) -> torch.Tensor:
    """Edges of frames u8 [N,H,W,3], one pixel wide: f32 [N,H,W], 1 or 0."""
    return _in_chunks(_edges, frames)


def canny(frames: torch.Tensor) -> torch.Tensor:
    """Edges of frames u8 [N,H,W,3] drawn EDGE_WIDTH wide: u8 [N,H,W,3], white on black."""
    wide = F.max_pool2d(edges(frames)[:, None], EDGE_WIDTH, 1, EDGE_WIDTH // 2)[:, 0]
    return (wide * 255).to(torch.uint8)[..., None].expand(*wide.shape, 3)


def _steps() -> list[tuple[int, int]]:
    """Every (dx, dy), the shortest first, so that of equal ones the shortest wins."""
    span = range(-REACH, REACH + 1)
    return sorted(((dx, dy) for dy in span for dx in span), key=lambda s: (abs(s[0]) + abs(s[1]), s[1], s[0]))


def _half(frames: torch.Tensor) -> torch.Tensor:
    """Grey of half the size [N,h,w]: (sum of 2x2 + 2) >> 2, grown to whole blocks."""
    image = grey(frames)
    image = F.pad(image[:, None], [0, image.shape[2] % 2, 0, image.shape[1] % 2], mode="replicate")
    image = torch.floor((F.avg_pool2d(image, 2) * 4 + 2) / 4)
    return F.pad(image, [0, -image.shape[3] % BLOCK, 0, -image.shape[2] % BLOCK], mode="replicate")[:, 0]


def _match(pair: torch.Tensor) -> torch.Tensor:
    """Steps int64 [N,h,w,2] of blocks from the half-size pictures before and now [N,H,W,2]."""
    before, now = pair[..., 0], pair[..., 1]
    h, w = now.shape[1:]
    padded = F.pad(before[:, None], [REACH] * 4, mode="replicate")[:, 0]
    best = found = None
    for number, (dx, dy) in enumerate(_steps()):
        part = padded[:, REACH - dy:REACH - dy + h, REACH - dx:REACH - dx + w]
        blocks = (now - part).abs().reshape(-1, h // BLOCK, BLOCK, w // BLOCK, BLOCK)
        cost = blocks.sum((2, 4)) + STEP_COST * (abs(dx) + abs(dy))
        if best is None:
            best, found = cost, torch.zeros_like(cost, dtype=torch.long)
            continue
        better = cost < best
        best, found = torch.where(better, cost, best), torch.where(better, number, found)
    return torch.tensor(_steps(), device=now.device)[found]


def motion_field(frames: torch.Tensor) -> torch.Tensor:
    """How far each block moved since the frame before: (dx, dy) int64 [B,T,h,w,2], in half-size pixels.

    frames u8 [B,T,H,W,3]; right and down are positive; blocks are BLOCK half-size pixels wide and high, and
    h = ceil(ceil(H / 2) / BLOCK). Everything is 0 in the first frame.
    """
    b, t = frames.shape[:2]
    half = _in_chunks(_half, frames.flatten(0, 1)).unflatten(0, (b, t))
    h, w = half.shape[2] // BLOCK, half.shape[3] // BLOCK
    field = torch.zeros(b, t, h, w, 2, dtype=torch.long, device=frames.device)
    if t > 1:
        pairs = torch.stack([half[:, :-1], half[:, 1:]], -1).flatten(0, 1)
        field[:, 1:] = _in_chunks(_match, pairs).unflatten(0, (b, t - 1))
    return field


def motion_picture(field: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Draws a motion field [...,h,w,2] in flat colors: u8 [...,H,W,3], R for dx, G for dy, B 128."""
    shade = torch.tensor(MOTION_SHADES, device=field.device)[field.abs()] * field.sign()
    color = torch.cat([shade, torch.zeros_like(shade[..., :1])], -1) + MOTION_ZERO
    side = 2 * BLOCK
    rows = torch.arange(height, device=field.device) // side
    columns = torch.arange(width, device=field.device) // side
    return color.to(torch.uint8)[..., rows, :, :][..., columns, :]


def motion_vectors(frames: torch.Tensor) -> torch.Tensor:
    """Motion of frames u8 [B,T,H,W,3] as pictures u8 [B,T,H,W,3]; see motion_field and motion_picture."""
    return motion_picture(motion_field(frames), *frames.shape[2:4])


def _limbs(joints: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Pictures u8 [N,H,W,3] of joints [N,J,3]."""
    dev = joints.device
    y = (torch.arange(height, device=dev) + 0.5)[None, :, None]
    x = (torch.arange(width, device=dev) + 0.5)[None, None, :]
    out = torch.zeros(len(joints), height, width, 3, dtype=torch.uint8, device=dev)
    for first, second, color in LIMBS:
        a, b = joints[:, first, :, None, None], joints[:, second, :, None, None]  # [N,3,1,1]
        ux, uy = b[:, 0] - a[:, 0], b[:, 1] - a[:, 1]
        along = ((x - a[:, 0]) * ux + (y - a[:, 1]) * uy) / (ux * ux + uy * uy).clamp_min(1e-6)
        along = along.clamp(0, 1)
        distance2 = (x - a[:, 0] - along * ux) ** 2 + (y - a[:, 1] - along * uy) ** 2
        inside = (distance2 <= (LIMB_WIDTH / 2) ** 2) & (a[:, 2] > 0.5) & (b[:, 2] > 0.5)
        out = torch.where(inside[..., None], torch.tensor(color, dtype=torch.uint8, device=dev), out)
    return out


def pose_picture(joints: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Limbs between joints [...,J,3] (World.pose) as colored lines on black: u8 [...,H,W,3]."""
    shape = joints.shape[:-2]
    flat = joints.reshape(-1, *joints.shape[-2:])
    size = max(1, CHUNK_PIXELS // (4 * height * width))
    return torch.cat([_limbs(part, height, width) for part in flat.split(size)]).reshape(*shape, height, width, 3)
