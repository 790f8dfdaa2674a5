"""What the models that are built on CLIP's towers read of them, and how much quantization moves
it.
"""
