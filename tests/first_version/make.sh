#!/usr/bin/env bash
# How the runs beside this file were made, once, by the first version (commit 7144797):
#   git worktree add --detach ../first 7144797 && tests/first_version/make.sh ../first
set -euo pipefail
PYTHONPATH=$(cd "$1" && pwd)
export PYTHONPATH OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
cd "$(dirname "$0")"
rm -rf plain full pushed images
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
# the decoded images of a dataset on the Hub, all of them and in two parts; the dataset itself is made up
python - << 'IMAGES'
from PIL import Image
import ddpm_hf.data.loading as loading
from ddpm_hf.config import DatasetConfig, ModelConfig
from ddpm_hf.data.sources import Example, Source

examples = [Example(Image.new("RGB", (4, 4), (i, 2 * i, 3 * i)), f"row {i}", "ba"[i % 2]) for i in range(5)]
examples.append(Example(b"broken", "row 5", "a"))
loading.open_source = lambda dataset: Source(examples, 6, True, None)
dataset = DatasetConfig(name="ada/images", revision="0" * 40, cache_dir="images", validation_fraction=0.4)
loading.load_image_sets(dataset, ModelConfig(image_size=4, channel_multipliers=(1,), attention_levels=()), seed=3)
IMAGES
rm -f images/.*.lock
find . -type f -exec chmod 644 {} + && chmod 755 make.sh
