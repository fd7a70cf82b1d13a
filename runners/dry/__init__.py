"""The dry run: a recipe's real code on torch's meta device, and every allocation that it would make on a GPU."""
