"""Draw docs/idea.svg: eight samples of one prompt of `forks` beside its eight thoughts.

python bench/idea.py                                           # independent uniform draws, the best a sampler can do
python bench/idea.py --model outputs/demo --output idea.svg    # texts of a trained mixture: its trunk, its thoughts
"""

import argparse
import random
from html import escape
from pathlib import Path

STYLE = (
    ".bg{fill:#ffffff}.ink{fill:#1f2328}.soft{fill:#59636e}.line{stroke:#8c959f;fill:none;stroke-width:1.6}"
    ".rep{fill:#cf222e}.box{fill:#f6f8fa;stroke:#d1d9e0}"
    "@media (prefers-color-scheme:dark){.bg{fill:#0d1117}.ink{fill:#f0f6fc}.soft{fill:#9198a1}.line{stroke:#656c76}"
    ".rep{fill:#ff7b72}.box{fill:#151b23;stroke:#3d444d}}"
)
LABEL = "Left: eight samples of a language model repeat each other. Right: eight thoughts of one prompt, eight answers."
FIRST, APART, MIDDLE = 84, 31, 183  # y of the first answer, between answers, of the prompt; all in pixels


def illustrated(seed: int = 7) -> tuple[str, list[str | None], list[str | None]]:
    """(prompt, eight uniform draws of its answers, all eight): the cost of independence, and the possible."""
    prompt, draw = "kQ3x+Zb7>", random.Random(seed)
    items = list(prompt[:-1])
    return prompt, [draw.choice(items) for _ in items], draw.sample(items, len(items))


def measured_by(path: str) -> tuple[str, list[str | None], list[str | None]]:
    """The same for a model: its trunk at temperature 1 and every thought greedily, on the first held-out prompt."""
    from mot import MixtureOfThoughts, tasks
    from mot.inference.sampler import SampleRequest, sample
    from mot.inference.samplers import SAMPLERS

    mixture, task = MixtureOfThoughts.from_pretrained(path), tasks.load("forks")
    prompt = tasks.held_out("forks")[0][0]
    (at_one,) = [s for s in SAMPLERS["temperature"].settings if s.get("temperature", 0) == 1]
    (texts,) = sample(SampleRequest(mixture, at_one, [prompt], k=8, max_new_tokens=7, seed=0))
    thoughts = sorted(mixture.think(prompt, max_new_tokens=7, temperature=0), key=lambda t: t.index)
    return prompt, [task.verify(prompt, t) for t in texts], [task.verify(prompt, t.text) for t in thoughts]


def half(x: int, title: str, below: str, prompt: str, answers: list[str | None], numbered: bool) -> list[str]:
    """A prompt and its answers as a fan; a repeated answer is red."""
    end = x + 190
    lines = [
        f'<text class="ink" x="{x}" y="30" font-size="16" font-weight="600">{title}</text>',
        f'<text class="soft" x="{x}" y="50" font-size="12.5">{below}</text>',
        f'<rect class="box" x="{x}" y="166" width="104" height="34" rx="6"/>'
        f'<text class="ink" x="{x + 52}" y="188" text-anchor="middle">{escape(prompt)}</text>',
    ]
    for i, answer in enumerate(answers):
        y, again = FIRST + APART * i, answer is not None and answer in answers[:i]
        text = "no answer" if answer is None else f"answer {escape(answer)}"
        if again:
            text += "  again"
        lines.append(f'<path class="line" d="M{x + 104} {MIDDLE} C {x + 160} {MIDDLE} {x + 140} {y} {end} {y}"/>')
        if numbered:
            lines.append(
                f'<rect class="box" x="{end + 2}" y="{y - 11}" width="46" height="22" rx="11"/>'
                f'<text class="soft" x="{end + 25}" y="{y + 4}" text-anchor="middle" font-size="11.5">k = {i}</text>'
            )
        kind = "rep" if again or answer is None else "ink"
        lines.append(f'<text class="{kind}" x="{end + (60 if numbered else 10)}" y="{y + 5}">{text}</text>')
    return lines


def draw(prompt: str, samples: list[str | None], thoughts: list[str | None], measured: bool) -> str:
    found = len(set(samples) - {None})
    left = f"{found} different answers" + ("" if measured else "; 5.25 expected on average")
    right = f"one prefill, one thought token each: {len(set(thoughts) - {None})} different"
    height = FIRST + APART * max(len(samples), len(thoughts)) - 2
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 860 {height}" '
        'font-family="ui-monospace, Menlo, Consolas, monospace" '
        f'font-size="14" role="img" aria-label="{LABEL}">',
        f"<style>{STYLE}</style>",
        f'<rect class="bg" width="860" height="{height}" rx="8"/>',
        *half(24, f"sample a language model {len(samples)} times", left, prompt, samples, False),
        *half(450, f"follow {len(thoughts)} thoughts", right, prompt, thoughts, True),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a directory trained on forks; without one, an illustration")
    parser.add_argument("--output", type=Path, default=Path("docs/idea.svg"))
    args = parser.parse_args()
    args.output.write_text(draw(*(measured_by(args.model) if args.model else illustrated()), measured=bool(args.model)))
    print(args.output)


if __name__ == "__main__":
    main()
