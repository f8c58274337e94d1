#!/usr/bin/env python3
"""InstructNet phase: the foundation is frozen, the clips change light, weather or effect (GameGen-X, section 4.2)."""
import sys

from gamegen.examples import Mix
from gamegen.trainer import Trainer, arguments


def main():
    parser = arguments(__doc__)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--p-event", type=float, default=0.85)
    parser.add_argument("--reserve", type=float, default=10.0, help="seconds kept for the last save")
    parser.set_defaults(ema=0.998)
    args = parser.parse_args()
    mix = Mix(image=0.0, text_dropped=0.05, instruct_off=0.0)
    Trainer(args, "instructnet", True, args.p_event, args.lr, mix).run(args.reserve)


if __name__ == "__main__":
    sys.exit(main())
