"""eval.json: the figures that the project is judged by, each with its count and its judge's ceiling, and the tables."""
import json
import time
from pathlib import Path

FIGURES = ["keys_success", "weather_success", "lighting_success", "effect_success", "text_success", "alignment_seen",
           "alignment_unseen", "view_success", "psnr_320x192", "psnr_1280x720", "drift_10min", "collapsed_runs"]
# More figures of the same form, in an object of their own.
MORE = ["alignment_paraphrases", "drift_60s", "frechet_image", "frechet_video", "video_prompt_canny",
        "video_prompt_motion_vectors", "video_prompt_pose"]


def rounded(value, digits: int = 4):
    """Floats of a nested value, rounded."""
    if isinstance(value, dict):
        return {k: rounded(v, digits) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v, digits) for v in value]
    return round(value, digits) if isinstance(value, float) else value


class Report:
    """Collects figures and tables; every change is written at once. A part that did not run leaves nothing."""

    def __init__(self, path: Path, about: dict):
        self.path, self.begin = path, time.time()
        self.figures, self.tables, self.about = {}, {}, about

    def figure(self, name: str, value: float, count: int, ceiling: float | None):
        """One of FIGURES or MORE. ceiling: what rendered truth gets from the same judge, None where no judge is."""
        if name not in FIGURES + MORE:
            raise ValueError(f"figure {name!r}; allowed are {', '.join(FIGURES + MORE)}")
        self.figures[name] = {"value": value, "count": count, "ceiling": ceiling}
        self.write()
        self.say(f"{name} {value:.4f} of {count}, ceiling {ceiling}")

    def table(self, name: str, value: dict):
        """Details, by any name."""
        self.tables[name] = value
        self.write()

    def write(self):
        """Writes the file."""
        main, more = ({n: self.figures[n] for n in names if n in self.figures} for names in (FIGURES, MORE))
        value = {**main, **self.about, "more": more, "tables": self.tables}
        self.path.write_text(json.dumps(rounded(value), indent=1) + "\n")

    def say(self, text: str):
        """A line of progress."""
        print(f"[{time.time() - self.begin:6.1f}s] {text}", flush=True)
