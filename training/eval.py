#!/usr/bin/env python3
"""Evaluation of a model folder on test worlds: writes OUT/eval.json, contact sheets and short films.

  eval.py protocol MODEL     writes MODEL/evaluation.json: the fixed prompts, keys and changes
  eval.py run MODEL          measures; parts that do not need a renderer use the prompts and the judges alone
  eval.py merge OUT FILE...  puts together what calls with different --parts found of one model

The judges are read from MODEL/judges with their ceilings. A part that the time does not suffice for is left out of
eval.json and named in the output; nothing is filled in for it.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer

from gamegen import ceilings, checkpoint
from gamegen.evaluation import controls, long, pictures, protocol, quality, video, words
from gamegen.evaluation.maker import Maker
from gamegen.evaluation.report import FIGURES, Report
from gamegen.judges import Judges
from gamegen.trainer import SMALL, device_setup
from gamegen.world import World

# Part -> seconds on one H100 that it is not begun without, and whether it needs the renderer.
PARTS = {"ceilings": (12, True), "keys": (4, False), "words": (5, False), "alignment": (5, False),
         "reconstruction": (3, True), "frechet": (4, True), "video": (5, True), "drift_60s": (5, False),
         "drift_10min": (30, False), "pictures": (4, False), "steps": (12, False)}
CEILING = 0.98  # a judge below this judges nothing
SMALL_LISTS = 2  # entries of each list of the protocol in a small run


class Evaluation:
    """One model, its judges, the protocol, and what was found."""

    def __init__(self, args):
        self.args, self.begin, self.dev = args, time.time(), device_setup()
        self.plan = protocol.load(args.protocol or args.model / "evaluation.json")
        if SMALL:
            self.plan = protocol.small(self.plan, SMALL_LISTS)
        self.model = checkpoint.load_model(args.model).to(self.dev).eval()
        self.model.vae.to(memory_format=torch.channels_last)
        self.tok = Tokenizer.from_file(str(args.model / "tokenizer" / "tokenizer.json"))
        folder = args.judges or args.model / "judges"
        self.judges = Judges(folder, self.dev)
        self.table = json.loads((folder / "ceilings.json").read_text())
        self.world = World(self.dev) if args.renderer else None
        self.steps = args.steps or self.plan["steps"]
        self.maker = self.maker_of(self.steps)
        device = torch.cuda.get_device_name() if self.dev.type == "cuda" else "CPU"
        about = {"model_sha256": checkpoint.model_hash(args.model), "steps": self.steps, "size": self.plan["size"],
                 "device": device, "small": SMALL}
        self.report = Report(args.out / "eval.json", about)

    def maker_of(self, steps: int) -> Maker:
        return Maker(self.model, self.tok, self.plan["size"], self.dev, steps)

    def left(self) -> float:
        """Seconds that are left."""
        return self.args.seconds - (time.time() - self.begin)

    def checked(self):
        """The worst ceilings; judges below CEILING are named in the file, because their figures mean little."""
        rows = {part: list(row) for part, row in ceilings.lowest(self.table).items()}
        weak = {part: row for part, row in rows.items() if row[0] < CEILING}
        self.report.table("ceilings", self.table)
        self.report.table("ceilings_lowest", rows)
        for part, (value, name) in weak.items():
            self.report.say(f"ceiling of {part}: {value} for {name}, below {CEILING}")

    # ---- parts
    def ceilings(self):
        """Measures the ceilings anew, in place of those stored with the judges."""
        self.table = ceilings.measure(self.judges, self.world, 32 if SMALL else 2048)
        self.checked()

    def keys(self):
        found = controls.measure(self.maker, self.judges, self.plan["keys"], self.world)
        self.report.table("keys", found)
        self.report.figure("keys_success", found["value"], found["count"], controls.ceiling(self.table))

    def words(self):
        plan = self.plan["instructions"]
        found = words.changed(self.maker, self.judges, plan, plan["structured"], 201)
        self.report.table("instructions", found)
        for name, figure in words.FIGURE_OF.items():
            if name in found["attributes"]:
                row = found["attributes"][name]
                self.report.figure(figure, row["value"], row["count"], words.mean_ceiling(self.table, [name]))
        found = words.changed(self.maker, self.judges, plan, plan["text"], 202)
        self.report.table("text_instructions", found)
        names = list(found["attributes"])
        self.report.figure("text_success", found["value"], found["count"], words.mean_ceiling(self.table, names))

    def alignment(self):
        found = words.alignment(self.maker, self.judges, self.plan["alignment"])
        self.report.table("alignment", found)
        for name in ("seen", "unseen", "paraphrases"):
            row = found[name]
            ceiling = words.mean_ceiling(self.table, list(row["attributes"]))
            self.report.figure(f"alignment_{name}", row["value"], row["count"], ceiling)
        if found["view"]:
            ceiling = words.mean_ceiling(self.table, ["perspective"])
            self.report.figure("view_success", found["view"]["value"], found["view"]["count"], ceiling)

    def reconstruction(self):
        rows = {}
        for width, height in ((320, 192), (1280, 720)):
            rows[f"{width}x{height}"] = row = quality.reconstruction(self.maker, self.world, width, height)
            self.report.figure(f"psnr_{width}x{height}", row["value"], row["count"], None)
        self.report.table("reconstruction", rows)

    def frechet(self):
        found = quality.distances(self.maker, self.judges, self.world, self.plan["alignment"])
        self.report.table("frechet", found)
        for name in ("image", "video"):
            self.report.figure(f"frechet_{name}", found[name]["value"], found[name]["count"], found[name]["reference"])

    def video(self):
        found = video.measure(self.maker, self.judges, self.world)
        self.report.table("video_prompts", found)
        for kind, row in found.items():
            self.report.figure(f"video_prompt_{kind}", row["value"], row["count"], row["ceiling"])

    def drift(self, name: str):
        """Long sessions."""
        plan = self.plan["drift"]
        found = long.measure(self.maker, self.judges, plan, plan["frames"][name], self.table["ranges"], self.left(),
                             self.report)
        if found is None:
            return
        self.report.table(f"drift_{name}", found)
        self.report.figure(f"drift_{name}", found["value"], found["count"], 1.0)
        if name == "10min":
            self.report.figure("collapsed_runs", found["collapsed"]["runs"], found["collapsed"]["count"],
                               1 - self.table["ranges"]["inside"]["value"])

    def drift_60s(self):
        self.drift("60s")

    def drift_10min(self):
        self.drift("10min")

    def step_counts(self):
        """Keys, changes and alignment with other numbers of steps, on every second prompt."""
        half = protocol.shortened(self.plan, max(SMALL_LISTS, len(self.plan["alignment"]["seen"]) // 2))
        half["keys"]["prompts"] = half["keys"]["prompts"][::2]
        rows = {}
        for steps in (s for s in self.args.all_steps if s != self.steps):
            maker, plan = self.maker_of(steps), half["instructions"]
            keys = controls.measure(maker, self.judges, half["keys"])
            changes = words.changed(maker, self.judges, plan, plan["structured"][::2], 201)
            found = words.alignment(maker, self.judges, half["alignment"])
            rows[str(steps)] = {"keys": keys, "instructions": changes, "alignment": found}
            self.report.table("steps", rows)
            self.report.say(f"{steps} steps: keys {keys['value']:.3f}, instructions {changes['value']:.3f}, "
                            f"alignment {found['seen']['value']:.3f}")

    def pictures(self):
        out = self.args.out
        shown = {"played": pictures.played(self.maker, self.plan["pictures"], out),
                 "instructions": pictures.changing(self.maker, self.plan["instructions"], out),
                 "alignment": pictures.best_and_worst(self.maker, self.judges, self.plan["alignment"], out)}
        self.report.table("pictures", shown)

    def run(self):
        """All asked parts whose time is left."""
        self.checked()
        work = {name: getattr(self, "step_counts" if name == "steps" else name) for name in PARTS}
        for name in (n for n in PARTS if n in self.args.parts):
            seconds, renders = PARTS[name]
            if renders and self.world is None:
                self.report.say(f"{name} did not run: it needs the renderer")
            elif self.left() < seconds:
                self.report.say(f"{name} did not run: {self.left():.0f}s left, it takes {seconds}s or more")
            else:
                begin = time.time()
                work[name]()
                self.report.say(f"{name} took {time.time() - begin:.1f}s")
        self.report.say(f"written: {self.report.path}")


def merge(target: Path, files: list[Path]):
    """One file from several of the same model, steps and size; what a later file measured replaces the earlier."""
    result = {}
    for path in files:
        found = json.loads(path.read_text())
        for name in ("model_sha256", "steps", "size", "small"):
            if result and found[name] != result[name]:
                raise ValueError(f"{path}: {name} is {found[name]!r}; allowed is {result[name]!r}, as in {files[0]}")
        inner = {name: result.get(name, {}) | found[name] for name in ("more", "tables")}
        result |= found | inner
    order = [*FIGURES, *(name for name in result if name not in FIGURES)]
    target.write_text(json.dumps({name: result[name] for name in order if name in result}, indent=1) + "\n")


def part_list(text: str) -> list[str]:
    """Comma separated names of parts."""
    parts = text.split(",")
    for part in parts:
        if part not in PARTS:
            raise argparse.ArgumentTypeError(f"{part!r}: allowed are {', '.join(PARTS)}")
    return parts


def step_list(text: str) -> list[int]:
    """Comma separated numbers of steps."""
    return [int(part) for part in text.split(",")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("protocol", help="write the fixed prompts, keys and changes")
    p.add_argument("model", type=Path)
    p = commands.add_parser("run", help="measure")
    p.add_argument("model", type=Path)
    p.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    p.add_argument("--judges", type=Path, help="folder of the judges (default: MODEL/judges)")
    p.add_argument("--protocol", type=Path, help="default: MODEL/evaluation.json")
    p.add_argument("--parts", type=part_list, default=[n for n in PARTS if n != "ceilings"],
                   help=f"comma separated, of {', '.join(PARTS)} (default: all but ceilings)")
    p.add_argument("--seconds", type=float, default=1e9 if SMALL else 150.0, help="time of this call in all")
    p.add_argument("--steps", type=int, help="passes a frame (default: the protocol's)")
    p.add_argument("--all-steps", type=step_list, default=[1, 2, 4], help="numbers that the part steps compares")
    p.add_argument("--renderer", type=int, default=1, help="0: only the parts without rendered frames")
    p = commands.add_parser("merge", help="put several files of one model together")
    p.add_argument("target", type=Path)
    p.add_argument("files", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "merge":
        merge(args.target, args.files)
        return
    if args.command == "protocol":
        path = args.model / "evaluation.json"
        path.write_text(protocol.text_of(protocol.build()))
        print(f"{path}: {path.stat().st_size} bytes")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    Evaluation(args).run()


if __name__ == "__main__":
    sys.exit(main())
