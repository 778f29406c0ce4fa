"""Settings: TOML, environment and flags become one frozen object."""
