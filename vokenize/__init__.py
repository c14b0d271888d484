"""From corpus to vokens: tokens, windows, assignment, and the files of the originals."""
