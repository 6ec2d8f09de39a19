"""What users pass, checked and turned into batches for a network; labels."""
