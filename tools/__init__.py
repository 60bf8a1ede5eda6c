"""Commands around the demo; int8, tensorflowjs and dataset are parts of them."""
