"""How the demo family is made: scores -> captions -> audio -> codec -> tokens -> teacher.

Each stage is one command, resumes where it stopped and writes into one work folder:

    python -m tinymusician_core.pretrain scores|audio|codec|polish|hear|tokens|teacher|publish --work DIR

`audio` and `tokens` are done in parts by as many processes or machines as share the folder: `--shard 1/4` to
`--shard 4/4`, in any order; a part that was killed is run again. Every part makes the same plan from the scores.
The part of `tokens` that finds no piece missing puts them together.
"""
