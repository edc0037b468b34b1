"""Training: the loop, and all that keeps a run safe. `ddpm_hf.Trainer` is its door."""
