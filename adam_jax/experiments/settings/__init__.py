"""What commands are told: options, configs, and how these are checked."""
