"""Tools of a deployment: the schema, passwords, certificates, keys, tokens, and the users of Kafka."""
