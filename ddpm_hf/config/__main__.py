"""Print the JSON schema of the configuration: `python -m ddpm_hf.config > configs/schema.json`."""

from ddpm_hf.config.root import schema_text

print(schema_text(), end="")
