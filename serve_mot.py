"""Serve K thoughts over an OpenAI-compatible API, and a playground in the browser.

python serve_mot.py --model outputs/run
python serve_mot.py --model outputs/run --host 0.0.0.0 --port 8000 --api_key_file keys.txt
"""

from mot import cli

if __name__ == "__main__":
    cli.run(cli.serve, prog="serve_mot.py")
