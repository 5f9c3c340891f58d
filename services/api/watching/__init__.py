"""Watching: the tasks that read the database beside the requests.

`outcomes` wakes the requests that wait for a command, `writers` looks at the writers of the shards for `/readyz`,
`growth` measures the tables that grow, and `read_probe` tries whether the tables can be read at all. `looking` is the
loop of `writers` and `growth`.
"""
