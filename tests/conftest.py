"""What every test relies on: no network, shape checks at run time, few threads."""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="agg")

from jaxtyping import install_import_hook

# where tensors are; the configuration is checked by pydantic
PACKAGES = ("data", "losses", "models", "pipelines", "schedulers", "training")
install_import_hook([f"ddpm_hf.{package}" for package in PACKAGES], "beartype.beartype")
