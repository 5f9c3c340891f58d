"""Tools for a deployment: the schema, passwords, certificates, keys, tokens, and Kafka's users."""
