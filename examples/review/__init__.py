"""Review a source tree with a flock of agents: the demo behind `make demo`.

`python -m examples.review --input PATH` reads a tree, lets four analysers work on every
file in parallel, joins their findings per file and writes one report as text and HTML.
Nothing in it needs a key or a service, and every number in the report is computed from
the files.
"""
