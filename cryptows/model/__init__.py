"""The floor below all: what the daemon talks about."""
