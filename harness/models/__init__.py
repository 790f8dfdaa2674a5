"""Reference models: families, published architectures, checkpoints, planted outliers."""
