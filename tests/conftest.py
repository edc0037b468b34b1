"""What every test relies on: no network, shape checks at run time, few threads."""

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="agg")

from jaxtyping import install_import_hook

install_import_hook("ddpm_hf", "beartype.beartype")
