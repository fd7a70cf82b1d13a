"""Microbenchmarks of `plan calibrate`: what this machine's GPU, its host and the links between them reach."""
