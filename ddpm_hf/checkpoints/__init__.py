"""The format of a checkpoint on disk: written atomically, verified, found, and fetched from a repository."""
