"""How good a variant is: figures with intervals, from clips that it plays and from music that nobody trained on."""
