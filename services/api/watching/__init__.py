"""Watching: the tasks that read the database independently of requests.

`outcomes` wakes the requests that wait for a command, `writers` reads the states of the shards' writers for `/readyz`,
`growth` measures the tables that grow, and `read_probe` checks whether the tables can be read at all. `looking` is the
loop of `writers` and `growth`.
"""
