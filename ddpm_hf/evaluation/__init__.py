"""How good a model is: features, distances, likelihood, and the report."""
