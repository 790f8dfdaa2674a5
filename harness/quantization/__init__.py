"""Quantize and calibrate a model, and take its quantizer map."""
