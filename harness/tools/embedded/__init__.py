"""The small trained CLIP, its data sets, and the scripts that make both."""
