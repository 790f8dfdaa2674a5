"""Recipes: from YAML or a Python ``quant_cfg`` to one checked form."""
