"""Frames in, results out: sources, pipeline, drawing, sinks. No neural network, no flag."""
