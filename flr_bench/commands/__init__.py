"""The parts of the command line: options that commands share, and large groups of commands."""
