"""Files written whole or not at all, sealed JSON, and YAML from strangers."""
