"""How far explanations can be trusted, measured: a file for each kind of measure, on arrays where that is possible.

`tnn_train.audit.measures` lists all of them with their definitions and sources; ``docs/auditing.md`` tells how to read
them.
"""
