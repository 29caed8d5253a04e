"""What stands beside the paper's four files: flat scripts, one job each, run from the top as `python -m extras.NAME`.

The cellar, what the four files stand on:
plumbing    what every command shares: errors, files, the cache, progress, the device
runs        a run's folder: checkpoints, what a finished run leaves
cpu         what makes a training step faster on a CPU
parallel    one run shared by the processes of torchrun

The upper floor, what is built on the paper:
toy         the toy data sets; `python train.py` makes and uses one by itself
embeddings  vectors of pretrained networks: visual ones from video, VGGish's from sound
predict     events in recordings of any length
plots       every picture
tour        one clip's way through the paper: script, notebook and page in one
cells       a script in percent cells, such as the tour, as one page
exercises   ten changes for a class to make (EXERCISES.md), each with a check
page        every HTML page: one file, no network
report      what runs did, side by side, as one page
tables      Tables 5 to 8 of the paper: runs, rows
score       scores of a table of events against a reference table
benchmark   times of a training step, and of the metrics beside their peers
tagging     what the two older systems share: clips and the classes they hold, scores, reports of runs
learned_weights  interpolation weights that depend on the clip: an example of how the project is extended
boes2019    the audiovisual transformer of Boes & Van hamme 2019: network, training, Table 1, attention
fayek2020   the late fusion of Fayek & Kumar 2020: networks, training, Tables 2 and 4, analysis

README.md tells how to use each, RESULTS.md has every measured table.
"""
