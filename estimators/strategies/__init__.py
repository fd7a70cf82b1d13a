"""One law a file: the bytes and flops of a technique, and what it needs. estimators/techniques.py lists them all."""
