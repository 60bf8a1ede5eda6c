"""Frames in, results out: sources, pipeline, drawing, outputs, window; no network, no flag."""
