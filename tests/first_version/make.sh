#!/usr/bin/env bash
# How the runs beside this file were made, once, by the first version (commit 7144797):
#   git worktree add --detach ../first 7144797 && tests/first_version/make.sh ../first
set -euo pipefail
PYTHONPATH=$(cd "$1" && pwd)
export PYTHONPATH OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
cd "$(dirname "$0")"
rm -rf plain full pushed
for run in plain full; do
    python "$PYTHONPATH/training/train.py" --config $run.yaml
done
python "$PYTHONPATH/training/train.py" --config plain.yaml --eval_only --benchmark
python "$PYTHONPATH/pipelines/generate.py" --model plain --num_samples 8
# pictures that no test looks at, and what names the machine
rm -rf ./*/.lock ./*/{loss,denoising}.png plain/generated/*/grid.png plain/evaluation/*/{pictures,samples,report.html}
sed -i 's/"processor": ".*"/"processor": "a processor"/' ./*/environment.json
# what a push of the run `full` changes or adds; its other files are pushed as they are
python - << 'PUSH'
from pathlib import Path
from ddpm_hf.config.hub import HubConfig
from ddpm_hf.hub.export import checkpoint_package, pipeline_package

packages = {
    "main": pipeline_package(Path("full"), HubConfig(repo_id="ada/full", include=("config", "samples")), "ada/full"),
    "checkpoints": checkpoint_package(Path("full/checkpoints/step-3")),
}
for branch, package in packages.items():
    files = {path: content for path, content in package.files.items() if isinstance(content, bytes)}
    if package.make_card:
        files["README.md"] = package.make_card(None).encode()
    for path, content in files.items():
        file = Path("pushed", branch, path)
        if not path.startswith(("unet/", "scheduler/", "model_index")):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
PUSH
find . -type f -exec chmod 644 {} + && chmod 755 make.sh
