"""A recorded run of experiments/animation.py as scenes with texts, drawn as an animated GIF."""

import io
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

GOLD, LEARNED, SHADE = "#D55E00", "#0072B2", ("#E8F1F8", "#FBE9DF", "#E3F3EC")
WIDTH, HEIGHT, COLOURS = 800, 560, 64  # pixels; of the palette that all frames share
LINE, LINES = 84, 4  # characters of a text line; lines of an answer at most
TITLES = (
    "1. The policy learns",
    "2. The policy finds the reward model's errors",
    "3. Judge its answers, retrain the reward model",
)
WORDS = (
    "It is trained for the reward of a learned model. Its answers get better.",
    "The learned reward still rises, the true rating falls: reward hacking.",
    "The reward model learns which answers are bad. A policy trained anew gets good answers.",
)
FAST, SLOW = 180, 120  # milliseconds of a scene of phases 1 and 2, and of phase 3
START, PEAK, HACKED, JUDGE, AGAIN, END = 1500, 2000, 2200, 3000, 800, 4000  # pauses


@dataclass(frozen=True)
class Scene:
    """One frame: phase 0, 1 or 2; points of the curves to draw; lines of text; milliseconds."""

    phase: int
    points: int
    texts: tuple[tuple[str, str], ...]  # (style, text); styles: "plain", "good", "bad", "small"
    milliseconds: int


@dataclass(frozen=True)
class Curves:
    """All evaluations one after the other; `breaks`: where another reward model begins."""

    steps: list[int]
    gold: list[float]
    learned: list[float]
    breaks: list[int]  # indices into the lists
    peak: int  # index of the best gold before it falls


def curves(result: dict) -> Curves:
    """The curves of a recorded run; steps count on from phase to phase."""
    runs = [result["hack"], *(part["frames"] for part in result["rounds"])]
    steps, gold, learned, breaks, offset = [], [], [], [], 0
    for frames in runs:
        breaks.append(len(steps))
        steps += [offset + frame["step"] for frame in frames]
        gold += [frame["gold"] for frame in frames]
        learned += [frame["reward"] for frame in frames]
        offset = steps[-1]
    best = max(range(len(runs[0])), key=lambda i: runs[0][i]["gold"])
    return Curves(steps, gold, learned, breaks[1:], best)


def scenes(result: dict, question: int) -> list[Scene]:
    """The scenes of a recorded run; question: number of the one whose answers are shown."""
    found, peak, count = [], curves(result).peak, len(result["hack"])
    prompt = result["hack"][0]["prompts"][question]
    for number, frame in enumerate(result["hack"]):
        pauses = {count - 1: HACKED, peak: PEAK, 0: START}
        text = answer_text(prompt, frame, question, f"after {frame['step']} training steps")
        phase = 0 if number <= peak else 1
        found.append(Scene(phase, number + 1, text, pauses.get(number, FAST)))
    for number, part in enumerate(result["rounds"]):
        found.append(Scene(2, found[-1].points, verdict_text(part), AGAIN if number else JUDGE))
        first = found[-1].points
        for i, frame in enumerate(part["frames"]):
            where = f"after judging, {frame['step']} steps"
            text = answer_text(prompt, frame, question, where)
            found.append(Scene(2, first + i + 1, text, SLOW))
    last = found.pop()
    return [*found, Scene(last.phase, last.points, last.texts, END)]


def answer_text(prompt: str, frame: dict, question: int, where: str) -> tuple:
    """Question, answer and its two numbers, for a scene."""
    answer, gold, learned = frame["answers"][question]
    return (
        ("small", f"Question: {prompt}"),
        ("plain", f"Answer {where} (true rating {gold:.1f} of 10, learned reward {learned:+.1f}):"),
        ("good" if gold > 5.5 else "bad", wrapped(answer or "(nothing)")),
    )


def verdict_text(part: dict) -> tuple:
    """An example of a judge's verdict, and how many there were."""
    pair = part["example"]
    return (
        ("small", f"A judge compares two answers to: {pair['prompt']}"),
        ("good", wrapped("Better: " + pair["chosen"], 2)),
        ("bad", wrapped("Worse: " + pair["rejected"], 2)),
        ("small", f"{part['comparisons']:,} such verdicts train the reward model."),
    )


def wrapped(text: str, lines: int = LINES) -> str:
    """The text in lines of at most LINE characters; what does not fit is replaced by an ellipsis.

    Dollar signs are escaped: matplotlib reads formulas between them.
    """
    short = textwrap.wrap(text, LINE, max_lines=lines, placeholder=" …")
    return "\n".join(short).replace("$", r"\$")


def draw(figure, scene: Scene, data: Curves) -> Image.Image:
    """One scene as an image of WIDTH × HEIGHT pixels."""
    figure.clear()
    figure.text(0.02, 0.975, TITLES[scene.phase], fontsize=17, weight="bold", va="top")
    figure.text(0.02, 0.915, WORDS[scene.phase], fontsize=11.5, va="top")
    left = figure.add_axes((0.055, 0.43, 0.885, 0.38))
    right = left.twinx()
    n, ends = scene.points, [data.steps[0], data.steps[data.peak], data.steps[data.breaks[0]]]
    for low, high, colour, label in zip(
        ends, [*ends[1:], data.steps[-1]], SHADE, "123", strict=True
    ):
        if data.steps[n - 1] > low and (label != "3" or scene.phase == 2):
            left.axvspan(low, min(high, data.steps[n - 1]), color=colour, lw=0)
            left.text(low + 1, 0.8, label, fontsize=13, weight="bold", color="0.45")
    for index in data.breaks:
        if index < n:
            left.axvline(data.steps[index], color="0.4", lw=1, ls="--")
    pieces = [0, *(index for index in data.breaks if index < n), n]
    for low, high in pairwise(pieces):
        right.plot(data.steps[low:high], data.learned[low:high], color=LEARNED, lw=2.5, ls="--")
        left.plot(data.steps[low:high], data.gold[low:high], color=GOLD, lw=3)
    left.plot(data.steps[n - 1], data.gold[n - 1], "o", color=GOLD, ms=9)
    right.plot(data.steps[n - 1], data.learned[n - 1], "s", color=LEARNED, ms=8)
    style_axes(left, right, data)
    for y, (kind, text) in zip(heights(scene.texts), scene.texts, strict=True):
        colour = {"good": "#00684A", "bad": "#A33F00"}.get(kind, "black")
        size = 10.5 if kind == "small" else 12
        figure.text(0.02, y, text, fontsize=size, color=colour, va="top", linespacing=1.25)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    return Image.open(buffer).convert("RGB")


def heights(texts: tuple) -> list[float]:
    """The y of each text's upper edge, a share of the figure's height."""
    y, found = 0.325, []
    for _, text in texts:
        found.append(y)
        y -= 0.048 * (text.count("\n") + 1) + 0.012
    return found


def style_axes(left, right, data: Curves) -> None:
    """Fixed limits, so that the axes stand still; their names in the colours of the lines."""
    margin = 0.1 * (max(data.learned) - min(data.learned) or 1)
    left.set(xlim=(0, data.steps[-1] * 1.02), ylim=(0.5, 10.3), yticks=[1, 4, 7, 10])
    right.set(ylim=(min(data.learned) - margin, max(data.learned) + margin))
    left.set_xlabel("training step", fontsize=10.5, labelpad=1)
    texts = "● solid: true rating, 1 to 10", "■ dashed: learned reward, for which it is trained"
    for x, text, colour in zip((0.0, 0.42), texts, (GOLD, LEARNED), strict=True):
        left.text(
            x, 1.03, text, color=colour, fontsize=11.5, weight="bold", transform=left.transAxes
        )
    left.tick_params(labelsize=10.5, colors=GOLD, axis="y")
    right.tick_params(labelsize=10.5, colors=LEARNED)
    for axes in (left, right):
        axes.spines["top"].set_visible(False)


def save(result: dict, question: int, path: Path) -> None:
    """Draw all scenes of a recorded run as an animated GIF that loops without end."""
    figure = plt.figure(figsize=(WIDTH / 100, HEIGHT / 100))
    data, shown = curves(result), scenes(result, question)
    images = [draw(figure, scene, data) for scene in shown]
    plt.close(figure)
    # One palette for all: unchanged pixels stay equal, so a frame stores only what has changed.
    kinds = [images[i] for i in (0, len(images) // 2, len(result["hack"]), len(images) - 1)]
    sheet = Image.new("RGB", (WIDTH, HEIGHT * len(kinds)))
    for number, image in enumerate(kinds):
        sheet.paste(image, (0, HEIGHT * number))
    palette = sheet.quantize(COLOURS, dither=Image.Dither.NONE)
    first, *others = (i.quantize(palette=palette, dither=Image.Dither.NONE) for i in images)
    times = [scene.milliseconds for scene in shown]
    first.save(
        path, save_all=True, append_images=others, duration=times, loop=0, disposal=1, optimize=True
    )
