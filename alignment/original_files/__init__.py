"""The files of AGREE (examples/agree of EasyNLP), read and written; its checkpoints are with the other importers."""
