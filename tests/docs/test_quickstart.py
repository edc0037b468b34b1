"""docs/quickstart.ipynb runs from its first cell to its last, and again."""

import json
import os
import sys
from pathlib import Path

import pytest
from processes import run

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = json.loads((DOCS / "quickstart.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_notebook_is_clean():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    code = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for source in CODE:
        compile(source, "quickstart.ipynb", "exec")


@pytest.mark.slow
def test_notebook_runs_and_goes_on_when_it_is_run_again(tmp_path):
    script = tmp_path / "quickstart.py"
    script.write_text("\n".join(CODE))
    environment = {**os.environ, "NUM_STEPS": "3", "OUTPUT_DIR": str(tmp_path / "run"), "PYTHONWARNINGS": "ignore"}
    for _ in range(2):
        done = run(sys.executable, script, cwd=DOCS, env=environment, check=True)
        assert "diffusers.models.unets.unet_2d.UNet2DModel" in done.stdout
    assert (tmp_path / "run" / "samples.png").exists()
