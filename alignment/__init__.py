"""Fine-grained alignment of entities and images; imports `xmatch` alone.

`entities/` finds the entities of captions and images, `agree/` fine-tunes a dual encoder on them, `selfalign/` aligns
regions with words while one learns, `rerank/` orders what it retrieved anew, and `original_files/` reads and writes the
files of AGREE.
"""
