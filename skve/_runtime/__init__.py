"""The machine and the process: device, memory, randomness, locks, warnings."""
