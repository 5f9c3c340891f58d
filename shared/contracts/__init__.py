"""Messages that cross a process boundary. The contracts page fixes their names."""
