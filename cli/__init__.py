"""The command line of demo.py and the tools: a command's life, its flags, the network it needs."""
