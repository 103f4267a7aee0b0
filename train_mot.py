"""Train a mixture of thoughts.

python train_mot.py --train_file data/shakespeare.txt --vocab_size 100 --hidden_size 128 --num_layers 2
python train_mot.py --help
"""

from mot import cli

if __name__ == "__main__":
    cli.run(cli.train, prog="train_mot.py")
