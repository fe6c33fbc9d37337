"""gpt-oss: sharded modules, their Cases, and how weights and inputs are drawn."""
