"""Training: build the ensemble, draw batches, take steps, loop over them."""
