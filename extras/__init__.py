"""What is built around the paper: flat scripts, one job each, run from the top folder as `python -m extras.NAME`.

toy         the toy data sets; `python train.py` makes and uses one by itself
cpu         what halves a training step on a CPU (used by train.py)
embeddings  vectors of pretrained networks: visual ones from video, VGGish's from sound
predict     events in recordings of any length
plots       every picture
tables      Tables 5 to 8 of the paper: runs, rows
score       scores of a table of events against a reference table
boes2019    the audiovisual transformer of Boes & Van hamme 2019: network, training, Table 1, attention
fayek2020   the late fusion of Fayek & Kumar 2020: networks, training, Tables 2 and 4, analysis
tagging     clips and their classes, as the two older systems read them
benchmark   times of a training step, and of the metrics beside their peers

README.md tells how to use each, RESULTS.md has every measured table.
"""
