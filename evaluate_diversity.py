"""Are K thoughts different, and good? Every sampler a user could take instead, tuned alike, at matched quality.

python evaluate_diversity.py --model outputs/run --task forks
python evaluate_diversity.py --model outputs/e2e --task e2e --prompts valid.jsonl --output_dir outputs/judged
python evaluate_diversity.py --model outputs/run --prompts prompts.txt --judge some/other/model
"""

from mot import cli

if __name__ == "__main__":
    cli.run(cli.evaluate, prog="evaluate_diversity.py")
