"""Settings from defaults, YAML files and the command line."""
