"""The requirements of pyproject.toml (base and every extra) without upper bounds, one per line. For `make next`."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
for needs in (project["dependencies"], *project["optional-dependencies"].values()):
    for need in needs:
        if not need.startswith(project["name"]):  # an extra that includes others
            print(re.sub(r",?\s*<=?[^,;]+", "", need))
