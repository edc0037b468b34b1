"""What every program needs that has nothing to do with diffusion: processes, signals, files, memory, errors."""
