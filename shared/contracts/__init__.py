"""The messages that cross a process boundary. The contracts page defines their names."""
