"""Diffusers' own class names on disk, richer classes in memory.

A pipeline that ddpm_hf saves names only classes of diffusers, so anyone loads it without our code. What our classes
know beyond diffusers' lies under one key, `_ddpm_hf`, which stock classes keep and ignore.
"""

import json
from typing import Any, ClassVar

from diffusers.configuration_utils import ConfigMixin

EXTRAS_KEY = "_ddpm_hf"


class StockOnDisk(ConfigMixin):
    """Mixin for a diffusers component (put it before the diffusers bases).

    Attributes:
        stock_class: name of the diffusers class that can load what this class saves.
        extra_fields: constructor arguments that the stock class lacks; saved under `_ddpm_hf`.
    """

    stock_class: ClassVar[str]
    extra_fields: ClassVar[tuple[str, ...]] = ()

    def to_stock(self) -> Any:
        """An object of the stock class with the same configuration."""
        # takes seconds to import whole, which the class names on disk do not need
        import diffusers

        stock_class = getattr(diffusers, self.stock_class)
        config = {name: value for name, value in self.config.items() if name not in self.extra_fields}
        return stock_class.from_config(config)

    def to_json_string(self) -> str:
        config = json.loads(super().to_json_string())
        config["_class_name"] = self.stock_class
        config.pop("_name_or_path", None)  # a path on the saver's own disk
        extras = {name: config.pop(name) for name in self.extra_fields if name in config}
        config.pop(EXTRAS_KEY, None)
        if extras:
            config[EXTRAS_KEY] = extras
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict, dict, dict]:
        extras = config_dict.get(EXTRAS_KEY) or {}
        known = {name: extras[name] for name in cls.extra_fields if name in extras}
        return super().extract_init_dict({**config_dict, **known}, **kwargs)
