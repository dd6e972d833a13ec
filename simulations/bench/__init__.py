"""How fast Hermes is, beside bare floors and peers measured in the same run."""
