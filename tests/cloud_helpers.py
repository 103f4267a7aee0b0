"""What the tests of the clouds share."""

import json
from pathlib import Path

ZONE = ["--zone", "us-central1-a"]
TRAIN = ["--", "--train_file", "gs://bucket/train.txt", "--vocab_size", "100"]
NO_ROOM = "code: ZONE_RESOURCE_POOL_EXHAUSTED"
DESCRIBED = json.dumps(
    {
        "status": "RUNNING",
        "machineType": "https://compute/zones/us-central1-a/machineTypes/g2-standard-4",
        "lastStartTimestamp": "2026-11-23T02:00:00.000-08:00",
        "scheduling": {"provisioningModel": "SPOT"},
    }
)


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


SUBMIT = ["vertex", "submit", "--base_output_dir", "gs://bucket/runs/one/", "--project", "p"]
