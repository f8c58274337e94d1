#!/usr/bin/env python3
"""Foundation phase: MSDiT and text encoder, with InstructNet's keys in most clips (GameGen-X, section 4.1).

Contexts are real latents or the model's own predictions; every step also trains steps of size 1 to 1/8. The text
encoder is frozen (train_text.py). With --freeze-from the run ends with InstructNet alone (section 4.2).
"""
import sys

from gamegen.examples import Mix
from gamegen.trainer import Trainer, arguments


def main():
    parser = arguments(__doc__)
    parser.add_argument("--lr", type=float, default=7e-4)
    parser.add_argument("--p-event", type=float, default=0.4)
    args = parser.parse_args()
    Trainer(args, "foundation", False, args.p_event, args.lr, Mix()).run()


if __name__ == "__main__":
    sys.exit(main())
