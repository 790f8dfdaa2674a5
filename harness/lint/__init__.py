"""The half of the gate that imports neither torch nor ModelOpt: what a recipe's text alone shows to
be wrong.
"""
