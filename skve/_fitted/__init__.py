"""The fitted state: arrays and plain values; prediction, temperature, saving."""
