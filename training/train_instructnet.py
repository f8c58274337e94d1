#!/usr/bin/env python3
"""InstructNet phase: the foundation is frozen, the clips change light, weather or effect, and half
of them have a video prompt (GameGen-X, section 4.2)."""
import sys

from gamegen.examples import INSTRUCTNET_MIX
from gamegen.trainer import Trainer, arguments


def main():
    parser = arguments(__doc__)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--p-event", type=float, default=0.85)
    parser.set_defaults(ema=0.998, guidance=1.75, p_video=0.5, large_from=0.3, large_every=4)
    args = parser.parse_args()
    Trainer(args, "instructnet", True, args.p_event, args.lr, INSTRUCTNET_MIX).run()


if __name__ == "__main__":
    sys.exit(main())
