"""Give a pretrained language model N thoughts, by adapters: its own weights stay as they are.

python train_lora_mot.py --base_model Qwen/Qwen3-0.6B --train_file data/train.jsonl --num_thoughts 8
python train_lora_mot.py --help
"""

from mot import cli

if __name__ == "__main__":
    cli.run(cli.adapt, prog="train_lora_mot.py")
