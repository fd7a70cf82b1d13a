"""A sweep: candidates are run for real, one a free GPU, and the record says which recipe to use, and why."""
