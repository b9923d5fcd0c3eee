"""How the demo family is made: scores -> captions -> audio -> codec -> tokens -> teacher.

Each stage is one command, resumes where it stopped and writes into one work folder:

    python -m tinymusician_core.pretrain scores|audio|codec|tokens|teacher|publish --work DIR
"""
