"""What every test relies on: no network, and shapes checked at run time."""

import os
import sys
import types

os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", HF_DATASETS_OFFLINE="1", MPLBACKEND="agg")

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# the hook wants the name of a module; int passes for float, as everywhere in Python
checker = types.ModuleType("shape_checker")
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules["shape_checker"] = checker

# where tensors are; the configuration is checked by pydantic
PACKAGES = ("data", "losses", "models", "pipelines", "schedulers", "training")
install_import_hook([f"ddpm_hf.{package}" for package in PACKAGES], "shape_checker.check")
