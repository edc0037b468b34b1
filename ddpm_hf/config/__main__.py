"""Print the JSON schema of the configuration: `python -m ddpm_hf.config > configs/schema.json`."""

from ddpm_hf.config.root import json_schema

print(json_schema(), end="")
