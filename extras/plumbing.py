"""What every command shares and no paper mentions: one-line errors, whole files, the cache, progress, the device.

    InputError, one_line_errors     what is wrong with a command's input, said in one line
    damage_as_value_error, foreign  a file is damaged, or there is too little memory, or the disk fails: told apart
    replacing, writing              files and folders that appear only when complete
    read_text .. load_tensors       text, arrays and tensors on disk; nothing in a file is ever executed
    cached_table, cached_arrays     work on many files, done once and kept
    read_table                      TSV files
    open_sound, read_sound          what soundfile does not say by itself
    folder_name, seed ..            types of flags
    show_progress, choose_device

Every file that imports torch imports this one before it: how threads wait must be said before torch is loaded.
"""

import argparse
import csv
import errno
import filecmp
import functools
import hashlib
import io
import json
import math
import os
import platform
import re
import shutil
import signal
import statistics
import sys
import threading
import time
import unicodedata
import uuid
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from math import gcd
from pathlib import Path

import numpy as np
import soundfile

# speed: torch's threads that wait for work keep their core busy, so two programs on two cores mostly wait for each
# other. Measured on two machines with two cores: together they took 73 s and 205 s for what one alone does in 9 s and
# 10 s. With this number of turns it is 17 s on both; alone 9 s and 14 s, as it takes time to wake a thread up. For a
# program that has its cores for itself, 30000 costs nothing. A value that the user has set stays. (GNU OpenMP, which
# torch for Linux uses, reads it when torch is loaded.)
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch  # noqa: E402

MACHINE = platform.node()  # the number of a process means nothing on another machine
PRINTS = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun starts, the first one
SOUND_SUFFIXES = ".wav .flac .ogg .oga .opus .mp3 .aif .aiff .au .caf .w64 .rf64".split()
RATES = 1000, 400_000  # Hz: from the lowest to the highest of sound files; others are damaged
LARGEST = 1e10  # of vectors, and of samples that are not scaled: of much larger ones, a network makes infinite numbers


# --- errors ----------------------------------------------------------------------------------------------------------

# what may be raised where the contents of a foreign file are taken apart
FOREIGN = (LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError, OverflowError)
# what torch, libsndfile and Python's threads say instead of MemoryError
NO_MEMORY = r"(out of|not enough|allocate) memory|ALLOC_FAILED|bad_alloc|malloc \(\) failed|can't start new thread"


class InputError(Exception):
    """Bad input: one line that names the file, the line in it and what to do about it."""


# what the system says of a file, and what to do about it
REMEDIES = {
    errno.ENOENT: "no such file or folder; mend the name",
    errno.EEXIST: "is a file where a folder is wanted; name another",
    errno.ENOTDIR: "a part of this path is a file, not a folder; name another",
    errno.EISDIR: "is a folder where a file is wanted; name a file",
    errno.EACCES: "you have no right to read or write here; change its permissions, or name another",
    errno.EROFS: "is on a disk that can only be read; name another",
    errno.ENOSPC: "no room is left on the disk; make some, and begin again",
    errno.ENAMETOOLONG: "the name is too long for this disk; shorten it",
}


def first_line(error):
    """The reason in a few words, without the path of a file, which is named beside it"""
    if reason := getattr(error, "strerror", None) or getattr(error, "error_string", None):  # the latter: soundfile's
        return reason.rstrip(".")
    line = str(error).strip().split("\n")[0]
    return line if isinstance(error, MemoryError) else re.sub(r"(?<!\w)'[^']*[/\\]([^']*)'", r"'\1'", line)[:80]


def in_words(error):
    """An error as one line; what the system says of a file gets a remedy"""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        text = place + REMEDIES.get(error.errno, error.strerror)
    return text.replace("\n", " ")


def out_of_memory(error):
    """Was there too little memory? Also where another error covers that up, as torch.save's does"""
    while error:
        if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, RuntimeError) and re.search(NO_MEMORY, str(error)):
            return True
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


@contextmanager
def damage_as_value_error(path):
    """Around readers of a file's content, which raise a dozen kinds of exceptions where it is damaged.

    Where the machine has too little memory, or cannot read the file, that is no reason to call it damaged: it stays a
    MemoryError or an OSError, and names the file.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise MemoryError(path) from None
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a seek beyond the file
            error.filename = error.filename or str(path)
            raise
        reason = first_line(error) or type(error).__name__
        with open(path, "rb") as file:  # a library that reads by itself does not say why it cannot: this does
            while file.read(2**20):
                pass
        raise ValueError(reason) from None


@contextmanager
def foreign(path, complaint):
    """Around code that takes the content of a file apart: what does not fit becomes an InputError, "path: complaint".

    complaint: where it holds {}, there the reason stands
    """
    try:
        yield
    except FOREIGN as error:
        if out_of_memory(error):
            raise
        raise InputError(f"{path}: {complaint.format(first_line(error))}") from None


@contextmanager
def one_line_errors(hint):
    """Around a command: what is wrong becomes one line and exit code 2; an interruption, one line with the hint"""
    print_whatever_happens()
    end_politely()
    try:
        yield
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {hint}")
    except BrokenPipeError:  # who read what is printed, be it `head`, has enough
        forget_stdout()
        sys.exit(141)  # as the shell says of every program that ends so
    except (MemoryError, OSError, RuntimeError, InputError, FloatingPointError, UnicodeError) as error:
        if out_of_memory(error):
            wanted = re.search(r"allocate [\d.]+ \w+", str(error))  # torch's line begins with a riddle
            what = f"cannot {wanted[0]}" if wanted else first_line(error)
            complain(f"out of memory{': ' if what else ''}{what}; end other programs, or give it less to do at a time")
        if isinstance(error, RuntimeError):
            raise  # a fault of the program
        complain(error)


def complain(error):
    print("error:", shown(error if isinstance(error, str) else in_words(error)), file=sys.stderr)
    sys.exit(2)


def shown(text):
    """Text with names from files, for a terminal: what moves its cursor is escaped, all but tabs and line breaks"""
    moves = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"  # control characters, directions of writing
    return re.sub(moves, lambda match: f"\\u{ord(match[0]):04x}", text)  # as in JSON


def say(line):
    print(shown(line), flush=True)


def print_whatever_happens():
    """Neither a closed stdout nor a character that a terminal cannot show stops a command; warnings are notes"""
    warnings.formatwarning = lambda message, *_: f"note   {shown(str(message))}\n"
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def end_politely():
    """`kill` ends a command as Ctrl-C does"""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def forget_stdout():
    """After a closed pipe, else Python complains of it once more at its end"""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- files that appear only when complete ----------------------------------------------------------------------------


@contextmanager
def replacing(path):
    """A name to write to; the file or folder written there becomes `path`, so it appears only when complete"""
    path = Path(path)
    remove_leftovers(path.parent)
    partial = path.with_name(f"{MACHINE}-{os.getpid()}-{uuid.uuid4().hex}.partial")  # nobody else uses this name
    try:
        with writing(path, partial):
            yield partial
            if not (partial.is_dir() and path.exists()):  # a folder: another process was faster
                os.replace(partial, path)
    finally:
        remove(partial)


@contextmanager
def writing(path, partial=None):
    """Around the writing of a file: an error names it. partial: the name that it has until it is complete"""
    try:
        yield
    except (OSError, MemoryError, RuntimeError, soundfile.SoundFileError) as error:
        if out_of_memory(error):
            raise MemoryError(path) from None
        if not isinstance(error, (OSError, soundfile.SoundFileError)):
            raise
        name = str(getattr(error, "filename", None) or path)
        if not name.startswith((str(path), str(partial))) and not str(path).startswith(name):
            raise  # of another file, which was read meanwhile
        raise InputError(f"{path}: cannot be written ({first_line(error)}); is there room, and the right to?") from None


def check_out(folder):
    """InputError unless there is a folder to write into, or one can be made: asked before the work, not after it"""
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not os.path.isdir(there):
        raise InputError(f"{there}: is a file where a folder is wanted; name another")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{there}: cannot be written to; name another folder, or change its permissions")


def check_out_file(path):
    """The same of a file"""
    if os.path.isdir(path):
        raise InputError(f"{path}: is a folder where a file is wanted; name a file in it")
    check_out(Path(path).parent)


@functools.cache
def remove_leftovers(folder):
    """Of processes of this machine that were killed while they wrote into a folder; each folder is looked at once"""
    for partial in folder.glob(f"{MACHINE}-*-{'[0-9a-f]' * 32}.partial") if os.name == "posix" else ():
        with suppress(PermissionError):  # the process runs, and is another user's
            try:
                os.kill(int(partial.name.split("-")[-2]), 0)  # signal 0 only looks whether the process runs
            except ProcessLookupError:
                remove(partial)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def json_text(content, indent=None):
    """JSON. It knows neither nan nor infinity: null"""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(x) for key, x in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(x) for x in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=indent)


def write_text(path, text):
    with replacing(path) as partial:
        partial.write_text(f"{text}\n", encoding="utf-8")


def save_array(path, array):
    """np.save"""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "wb") as file:
        np.save(file, array)


NPY_HEADERS = threading.Lock()  # CPython before 3.11.8 at times fails to parse two of them at once (its issue 106905)


def load_array(path):
    """np.load of one array or archive; nothing in the file is executed. Raises ValueError for damaged files"""
    with damage_as_value_error(path), NPY_HEADERS:
        try:
            return np.load(path, allow_pickle=False)
        except MemoryError as error:
            short = error
        with suppress(OSError):
            np.load(path, mmap_mode="r", allow_pickle=False)  # ValueError where a header promises more than there is
        raise short


def map_array(path):
    """An array on disk, memory-mapped. Raises ValueError for damaged files"""
    with damage_as_value_error(path):
        # mode "c": a tensor over it may be written to as far as torch knows, yet nothing reaches the file
        return np.load(path, mmap_mode="c", allow_pickle=False)


def save_tensors(path, content):
    """torch.save"""
    with replacing(path) as partial:
        buffer = io.BytesIO()  # into a file itself, torch tells in riddles that the disk is full
        torch.save(content, buffer)
        partial.write_bytes(buffer.getbuffer())


def load_tensors(path):
    """torch.load on the CPU. Nothing in the file is executed, and it takes no more memory than it has on disk.

    Raises ValueError for damaged files.
    """
    with damage_as_value_error(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch compresses nothing
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError("compressed")
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except RuntimeError as error:
            wanted = re.search(r"tried to allocate (\d+) bytes", str(error))
            if wanted and int(wanted[1]) > os.path.getsize(path):
                raise ValueError("promises more than it holds") from None
            raise


def tensors_in(content):
    """All tensors of nested dicts, lists and tuples"""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, (dict, list, tuple)):
        for part in content.values() if isinstance(content, dict) else content:
            yield from tensors_in(part)


def read_text(path):
    """Text in UTF-8. Raises ValueError for what is none"""
    with damage_as_value_error(path):
        return Path(path).read_text(encoding="utf-8-sig")  # a byte order mark is no text


def load_json(path):
    """What a JSON file holds. Raises ValueError for damaged files, and for infinite numbers (nan: "not defined")"""

    def number(text):
        if math.isinf(float(text)):
            raise ValueError(f"{text} is no number")
        return float(text)

    with damage_as_value_error(path):
        return json.loads(read_text(path), parse_float=number, parse_constant=number)


def most_alike(arrays):
    """The first one of those arrays whose shape and type most of them have"""
    forms = [(array.shape, array.dtype) for array in arrays]
    return arrays[forms.index(statistics.mode(forms))]


def usable(vectors):
    """Are all values of an array finite, and not too large to be computed with?"""
    return float(np.abs(vectors).max(initial=0)) <= LARGEST  # a float in Python: float16 knows no 1e10


def same_form(found, wanted):
    """Do two contents of files agree in all but their numbers? These must be finite"""
    if isinstance(wanted, dict):
        alike = isinstance(found, dict) and found.keys() == wanted.keys()
        return alike and all(same_form(found[key], wanted[key]) for key in wanted)
    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, (list, tuple)):
        return len(found) == len(wanted) and all(map(same_form, found, wanted))
    if isinstance(wanted, torch.Tensor):
        return (found.shape, found.dtype) == (wanted.shape, wanted.dtype) and bool(found.isfinite().all())
    return not isinstance(wanted, float) or math.isfinite(found)


def name_unusable(part, stream, paths, present, log):
    """A line for the clips of a part whose vectors count as missing; paths: None where there are no vectors"""
    bad = [path.name for path, usable in zip(paths, present) if path and not usable]
    if bad:
        what = f"{stream} files are not finite, or beyond {LARGEST:g}: counted as missing"
        log(f"       {part:10} {len(bad):5d} {what}: {', '.join(bad[:3])}{' ..' if len(bad) > 3 else ''}")


# --- the cache -------------------------------------------------------------------------------------------------------


def fingerprint(paths, *more):
    """Short hash of files by name, size and time of change: another one means that the cache is out of date"""
    digest = hashlib.sha256(repr(more).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cache_folder(root, beside):
    """root/cache, or in the folder `beside` where the data set is read-only, be it only by its permission bits"""
    writable = root.is_dir() and os.access(root, os.W_OK) and root.stat().st_mode & 0o222
    real = os.path.realpath(root)  # two data sets may have one name
    return root / "cache" if writable else beside / f"cache-{Path(real).name}-{fingerprint((), real)[:8]}"


def cached_table(cache, name, key, read, items, columns, log, label):
    """read(item) of N items, by all cores, once -> dict of column -> (N, ...) array, memory-mapped from the cache.

    columns: name -> shape and type of what read returns for one item, in this order; label: for the progress line
    """

    def make(folder):
        with ExitStack() as files:
            writers = []
            for column, (shape, dtype) in columns.items():
                file = array_file(folder / f"{column}.npy", (len(items), *shape), dtype)
                writers.append(files.enter_context(file))
            for chunk in in_chunks(read, items, label, log):
                for write, values, (_, dtype) in zip(writers, zip(*chunk), columns.values()):
                    write(np.stack([np.asarray(value, dtype) for value in values]))

    wanted = {column: ((len(items), *shape), dtype) for column, (shape, dtype) in columns.items()}
    return cached(cache / f"{name}-{key}", make, wanted)


def cached_arrays(cache, name, key, compute, wanted):
    """compute() -> dict of name -> array, done once: memory-mapped from the cache. wanted: their shapes and types"""

    def make(folder):
        for column, array in compute().items():
            np.save(folder / f"{column}.npy", array)

    return cached(cache / f"{name}-{key}", make, wanted)


def cached(folder, make, wanted):
    """The arrays in a folder of the cache, memory-mapped: dict of name -> array. Where it is missing, make writes them.

    wanted: their shapes and types. The folder's name ends in the key of what it was made from. It appears only when
    complete; those of the same thing with another key, now out of date, go.
    """
    if not folder.exists():
        with replacing(folder) as partial:
            partial.mkdir(parents=True)
            make(partial)
        name, _, key = folder.name.rpartition("-")
        for old in folder.parent.glob(f"{name}-{'[0-9a-f]' * len(key)}"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)
    try:
        arrays = {name: map_array(folder / f"{name}.npy") for name in wanted}
        if {name: (array.shape, array.dtype) for name, array in arrays.items()} != wanted:
            raise ValueError("other shapes or types")
        return arrays
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise InputError(f"{folder}: the cache is damaged ({first_line(error)}); delete this folder") from None


@contextmanager
def array_file(path, shape, dtype):
    """np.save of an array that comes in parts: yields a function that writes its next rows"""
    with open(path, "wb") as file:
        header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda rows: file.write(np.ascontiguousarray(rows).data)


def in_chunks(function, items, label, log, size=50):
    """Yield [function(item) ...] over chunks of items, worked on by all cores, with progress and time left"""
    started = time.monotonic()
    with ThreadPoolExecutor(cores()) as pool:
        for first in range(0, len(items), size):
            yield list(pool.map(function, items[first : first + size]))
            show_progress(label, min(first + size, len(items)), len(items), started)
    log(f"       {label}: {len(items)} clips in {time.monotonic() - started:.1f} s")


# --- folders ---------------------------------------------------------------------------------------------------------


def visible(folder, pattern):
    """Sorted paths in a folder, without the hidden ones that systems leave there: .DS_Store, ._clip.wav"""
    return sorted(path for path in Path(folder).glob(pattern) if not path.name.startswith("."))


# --- tables ----------------------------------------------------------------------------------------------------------


def read_table(path, columns):
    """Rows of a TSV file: a list of (place, [cells of the wanted columns]); place is "file, line 7" for messages.

    Text is in Unicode's form NFC, as in `files_in`: an "ü" is one whether it was typed as one character or as two.
    """
    try:
        lines = unicodedata.normalize("NFC", read_text(path)).split("\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; mend the name") from None
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as text ({error}); save it as a table in UTF-8") from None
    header = lines[0].split("\t")
    if missing := [name for name in columns if name not in header]:
        wanted = f"the first line must name the columns {', '.join(columns)}, separated by tabs"
        raise InputError(f"{path}, line 1: no column {', '.join(missing)}; {wanted}")
    where = [header.index(name) for name in columns]
    rows = []
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells, place = [cell.strip() for cell in line.split("\t")], f"{path}, line {number}"
        cells += [""] * (len(header) - len(cells))  # some editors cut the trailing tabs of a clip without events
        if len(cells) > len(header):
            raise InputError(f"{place}: {len(cells)} columns where the header has {len(header)}; correct the tabs")
        if not cells[where[0]]:
            raise InputError(f"{place}: empty {columns[0]}; fill it in, or delete the row")
        rows.append((place, [cells[i] for i in where]))
    return rows


def read_labels(place, cell, separator=","):
    """Labels in a cell, as the csv module reads them: 'Car,"Air horn, truck horn"' -> two"""
    try:
        labels = next(csv.reader([cell], delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{place}: {cell} is not a list of labels ({error}); correct the quotation marks") from None
    for label in labels:
        if label.startswith(" ") or '"' in label:
            remedy = 'take it out, or put a label that holds a comma into quotation marks: "Air horn, truck horn"'
            raise InputError(f"{place}: {label!r} has a space in front, or a quotation mark; {remedy}")
    return [label.strip() for label in labels]


def join_labels(labels, between=","):
    """The cell that read_labels reads; with ", " between them, for people"""
    return between.join(f'"{label}"' if "," in label else label for label in labels)


def parse_number(text):
    """A cell -> float; ValueError also for what only Python reads as a number: 1_0, digits of other scripts"""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def check_filename(place, name):
    """A name from a data set's table must name a file in the partition's own folder, never one elsewhere."""
    if name in (".", "..") or re.search(r"[/\\\0]", name):
        raise InputError(f"{place}: {name!r} is not a plain file name; give the name alone, without folders")
    return name


def read_layout(root, partitions, needed=()):
    """Where lists and audio of a data set are -> dict of partition -> [(table, folder)], of those that have a list.

    partitions: name -> the same pair in root/metadata and root/audio. Where root/partitions.tsv stands, it takes their
    place: columns partition, table, folder, relative to root; several rows of a partition are joined; an empty table
    means all sound files of the folder, for unlabelled clips only.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; a data set has sub-folders audio and metadata (README, 'Real data')")
    path, layout = root / "partitions.tsv", {}
    # A metadata folder alone is read too (the official repository hands it out like that): all audio is missing then.
    alone = (root / "train").is_dir() and not (root / "metadata").is_dir()
    metadata = root if alone else root / "metadata"
    if path.exists():
        for place, (name, *pair) in read_table(path, ("partition", "table", "folder")):
            if name not in partitions:
                raise InputError(f"{place}: no partition is called {name!r}; there are {', '.join(partitions)}")
            if not pair[0] and name != "unlabelled":
                raise InputError(f"{place}: {name} clips have labels; name their table")
            table, folder = inside(root, place, pair[0]) if pair[0] else None, inside(root, place, pair[1])
            if table and not os.path.isfile(table):  # unlike Path.is_file, also where the name is too long
                raise InputError(f"{place}: there is no file {table}; correct the row, or take it out")
            if not os.path.isdir(folder):
                raise InputError(f"{place}: there is no folder {folder}; correct the row, or take it out")
            if (table, folder) in layout.setdefault(name, []):
                raise InputError(f"{place}: repeats an earlier row; take one of them out")
            layout[name].append((table, folder))
    else:
        for name, (table, folder) in partitions.items():
            if (metadata / table).exists():
                layout[name] = [(metadata / table, root / "audio" / folder)]
    for name in needed:
        if name not in layout and path.exists():
            raise InputError(f"{path}: no row of {name}; {why_needed(name)}")
        if name not in layout:
            raise InputError(f"{metadata / partitions[name][0]}: no such file; {why_needed(name)}")
    return layout


def why_needed(partition):
    reasons = {"validation": "thresholds are chosen on its clips", "public": "its scores are wanted"}
    return reasons.get(partition, "add it, or give it no share of the batch: --batch-size (README, 'Real data')")


def inside(folder, place, name):
    """A path from a table, relative to a folder -> the whole path, which lies inside"""
    if not name or Path(name).is_absolute() or ".." in Path(name).parts or re.search(r"[\\\0]", name):
        raise InputError(f"{place}: {name!r} is not a path inside {folder}; give it relative to that, with / and no ..")
    return folder / name


def files_in(folder):
    """dict of name (NFC, see `read_table`) -> path, of all files in a folder; none where there is no folder"""
    entries = os.scandir(folder) if folder.is_dir() else ()
    return {unicodedata.normalize("NFC", entry.name): folder / entry.name for entry in entries if entry.is_file()}


def stem(path):
    """A file's name without its suffix, NFC"""
    return unicodedata.normalize("NFC", Path(path).stem)


# --- which clips are one ----------------------------------------------------------------------------------------------
# paths: of clips' sound, which need not be there; recording: function of a file name -> what it is cut from, or None


def not_tested(paths, tests, recording):
    """Which of the training clips are no test clips: (N,) bool.

    ours: clips of one recording are the same (one is known in DCASE 2020: unlabelled YWP8aI1IXNCQ_0.000_5.000 is public
    WP8aI1IXNCQ_0_5), and clips of one name. A number is no name: many data sets number the clips of each list anew.
    """
    known, kept = {}, []
    for path in tests:
        known.setdefault(recording(path.name) or stem(path), []).append(path)
    for path in paths:
        same = known.get(recording(path.name) or stem(path), [])
        if path.stem.isdecimal():
            same = [other for other in same if same_bytes(path, other)]
        kept.append(not same)
    if paths and not any(kept):
        raise InputError(f"{path} and {same[0]}: by its name one clip, and so are all of this list; rename them")
    return np.array(kept, bool)


def check_stems(paths, files, recording):
    """InputError where a file of a stream (dict of stem -> path) would be that of two clips"""
    first = {}
    for path in paths:
        other = first.setdefault(stem(path), path)
        if stem(path) in files and not (path == other or recording(path.name) or same_bytes(path, other)):
            raise InputError(f"{other} and {path}: two clips, but one {files[stem(path)]}; give each a name of its own")


def name_untaught(tags, classes, log):
    """Lines for classes that the clips cannot teach. tags: dict of list -> (N, C) bool, of its clips that are there"""
    taught = {name: of_list.any(axis=0) for name, of_list in tags.items()}
    anywhere = np.any([*taught.values()], axis=0) if taught else np.ones(len(classes), bool)
    nowhere = "in no labelled training clip that is there: {}; they cannot be learned"
    weakly = "in weak clips alone: {}; each strong clip teaches that they are absent"
    for chosen, line in ((~anywhere, nowhere), (anywhere & ~taught.get("strong", anywhere), weakly)):
        if chosen.any():
            labels = [label for label, here in zip(classes, chosen) if here]
            log(f"       {line.format(join_labels(labels, ', '))}")


def same_bytes(path, other):
    return os.path.isfile(path) and os.path.isfile(other) and filecmp.cmp(path, other, shallow=False)


# --- sound files -----------------------------------------------------------------------------------------------------


def is_sound(name):
    """By its suffix. Names that begin with a dot are of the system's own files"""
    return not name.startswith(".") and Path(name).suffix.lower() in SOUND_SUFFIXES


@contextmanager
def open_sound(path):
    """soundfile.SoundFile, to be read from its beginning on; InputError for what cannot be decoded"""
    try:
        sizes = mended_sizes(path) if is_wav(path) else {}
        mended = Mended(path, sizes) if sizes else nullcontext(path)
        with damage_as_value_error(path), mended as source, soundfile.SoundFile(source) as file:
            if not RATES[0] <= file.samplerate <= RATES[1]:
                raise InputError(f"{path}: {file.samplerate} samples per second, not {RATES[0]} to {RATES[1]}; mend it")
            file.seekable = lambda: False  # else soundfile seeks after each block, which hides what is lost in between
            yield file
    except ValueError as error:
        raise InputError(f"{path}: cannot be decoded ({error}); mend or convert it, or move it away") from None


def is_wav(path):
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(12)
        return head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE"
    return False


def is_chained(path):
    """Is a file several Ogg recordings in a row? soundfile reads only the first of them, and says nothing"""
    with open(path, "rb") as file:
        begun = False  # has a page come that is not the first of a stream?
        while (page := file.read(27))[:4] == b"OggS" and len(page) == 27:
            is_first = page[5] & 2
            if is_first and begun:
                return True
            begun = begun or not is_first
            file.seek(sum(file.read(page[26])), os.SEEK_CUR)  # the sizes of its parts
    return False


def read_sound(path, file, size, strict=True):
    """Yield what an open sound file holds, (up to `size`, channels) float32.

    Raises InputError where it holds less than its header promises. Not strict: where it only ends too early, that is
    a warning, if it is by more than a second.
    """
    n_read, n = 0, size
    while n:
        block = np.empty((size, file.channels), np.float32)
        try:
            n = len(file.read(out=block))
        except soundfile.SoundFileError as error:
            n = file.tell() - n_read  # decoded before the error, so they are in the block
            if strict or out_of_memory(error) or not 0 < file.tell() < file.frames:
                raise
        n_read += n
        if n:
            yield block[:n]
    promised, cut = promised_frames(file, n_read), False
    if file.format == "OGG":
        if is_chained(path):
            raise InputError(f"{path}: several Ogg recordings in a row, of which one is read; join them anew")
        cut = "lacks an end-of-stream" in file.extra_info or file.frames > 2**62
        if "reports a hole" in file.extra_info or "Junk after the last page" in file.extra_info and not cut:
            raise InputError(f"{path}: a part in its middle cannot be decoded; get it anew, or delete it")
    if strict and (cut or n_read < promised):
        raise InputError(f"{path}: holds less sound than its header promises; get it anew, or delete it")
    warn_if_short(path, n_read / file.samplerate, promised / file.samplerate)


def promised_frames(file, n_read):
    """How many samples the header of a sound file promises that was read to its end; n_read where it does not say"""
    # libsndfile takes what is there, and only its log tells: "data : 320000 (should be 160000)"
    sizes = r"^ *(?:data|SSND|Data Size|riff|Riff size) +: (\d+) \(should be (\d+)"
    for promised, there in re.findall(sizes, file.extra_info, re.M):
        if int(there) < int(promised) < 2e9:  # 2 GB or more: written to a pipe, where the length was not known
            return n_read * int(promised) / max(1, int(there))
    if file.frames > 2**62:  # FLAC and Ogg may not know
        return n_read
    return file.frames * (0.99 if "MPEG" in file.subtype else 1)  # the header of an MP3 guesses


# The size that the header of a WAV file gives its sound may be too small: that of more than 4 GB begins anew at 0, and
# a recorder that loses power does not come to write it. What follows then is sound, unless another chunk begins there.
CHUNKS = (b"LIST", b"id3 ", b"ID3 ", b"JUNK", b"junk", b"FLLR", b"PAD ", b"bext", b"iXML", b"axml", b"cue ", b"fact")


def mended_sizes(path):
    """WAV file -> {place: bytes} that its header should hold; empty where it is right.

    Warns where more than a second may be sound but cannot be told from other content, and so is left out.
    """
    end = os.path.getsize(path)
    with open(path, "rb") as file:

        def chunk(place):
            """What may be a chunk -> its name, its size, the place after it"""
            file.seek(place)
            name, size = file.read(4), int.from_bytes(file.read(4), "little")
            return name, size, place + 8 + size + size % 2

        is_64 = file.read(4) == b"RF64"  # which may pass 4 GB
        size_64 = per_second = 0
        place = 12
        name, size, after = chunk(place)
        while name != b"data":
            if after >= end:
                return {}
            content = file.read(16)
            if name == b"ds64":
                size_64 = int.from_bytes(content[8:], "little")
            if name == b"fmt ":
                per_second = int.from_bytes(content[8:12], "little")
            place = after
            name, size, after = chunk(place)
        begin = place + 8
        size = size_64 if is_64 else size
        rest = begin + size + size % 2
        name, _, after = chunk(rest)
        followed = False
        while name in CHUNKS or len(name) == 4 and after <= end + 1 and re.fullmatch(rb"[ -~]{4}", name):
            followed, rest = True, after
            name, _, after = chunk(rest)
        file.seek(rest)
        is_long = end - rest > max(1, per_second)
        if not followed and (size == 0 < end - rest or is_long and any(file.read(2**16))):
            if is_64:
                return {20: (end - 8).to_bytes(8, "little"), 28: (end - begin).to_bytes(8, "little")}
            # libsndfile takes this for a file that was not closed, and reads all that is there, be it over 4 GB
            return {4: (8).to_bytes(4, "little"), begin - 4: bytes(4)}
    if is_long:
        left = clock((end - rest) / max(1, per_second))
        warnings.warn(f"{path}: {left} may be sound but lie behind what its header calls so: left out", stacklevel=2)
    return {}


class Mended(io.FileIO):
    """A file that is read as if it held other bytes in a few places: {place: bytes}"""

    def __init__(self, path, places):
        super().__init__(path)
        self.places = places

    def readinto(self, buffer):
        begin, n = self.tell(), super().readinto(buffer)
        for place, content in self.places.items():
            for at, byte in enumerate(content, place - begin):
                if 0 <= at < n:
                    memoryview(buffer)[at : at + 1] = bytes([byte])
        return n


def warn_if_short(path, seconds, promised):
    """Of a recording that was cut: sound that ends more than a second before its header says"""
    if seconds < promised - 1:
        warnings.warn(f"{path}: its sound ends after {clock(seconds)}, its header says {clock(promised)}", stacklevel=2)


def resampled(blocks, resample, wanted):
    """(rate, block) pairs of one recording, blocks (n,) -> blocks of what resample(the whole, rate) would be.

    resample: scipy.signal.resample_poly to the rate `wanted`. Its filter reaches 10 * max(up, down) / up samples to
    either side. So a block is resampled once that much of what follows is known, together with what went before. All
    cuts are at multiples of `down`: there the two grids meet.
    """
    known, done = np.zeros(0, np.float32), 0  # samples not let go of yet, and how many of them are resampled already
    for rate, block in blocks:
        up, down = wanted // gcd(rate, wanted), rate // gcd(rate, wanted)
        margin = 11 * down
        known = np.concatenate([known, block])
        ready = (len(known) - margin) // down * down
        if ready - done > margin:  # speed: else, at odd rates, most of the work is done again and again
            yield resample(known[: ready + margin], rate)[done // down * up : ready // down * up]
            forget = max(0, ready - margin)
            known, done = known[forget:], ready - forget
    if len(known):
        yield resample(known, rate)[done // down * up :]


# --- flags -----------------------------------------------------------------------------------------------------------
# Types for argparse: text -> value


def positive(text):
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, at least 1")
    return int(text)


def natural(text):
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 0 or more")
    return int(text)


def seed(text):
    if not (text.isascii() and text.isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"{text!r}: a seed must be 0 or more, and below 2 ** 63")
    return int(text)


def fraction(text):
    with suppress(ValueError):
        if 0 <= parse_number(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r}: must be a number from 0 to 1")


def folder_name(text):
    if Path(text).name != text or text in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r}: must be the name of a folder, without slashes")
    return text


def number_or(word, low, high):
    """-> type of a flag that takes a number from low to high, or one word"""

    def parse(text):
        with suppress(ValueError):
            if text == word or low <= parse_number(text) <= high:
                return text if text == word else float(text)
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number from {low:g} to {high:g}, or {word!r}")

    return parse


def set_defaults(args, defaults):
    """Flags that were not given -> their defaults, which depend on another flag"""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


# --- progress, time, the device --------------------------------------------------------------------------------------


def show_progress(label, done, total, started, stream=None):
    """On a terminal, one line that renews itself and goes when all is done; in a file, a line every hundred items"""
    if not PRINTS:
        return
    stream = stream or sys.stdout
    left = (time.monotonic() - started) / done * (total - done)
    line = shown(f"       {label}: {done}/{total} | {clock(left)} left")
    if stream.isatty():  # "\033[K" erases what is left of a longer line; "\r" lets the next line take the place
        print(f"{line if done < total else ''}\033[K", end="\r", flush=True, file=stream)
    elif done % 100 == 0:
        print(line, flush=True, file=stream)


def clock(seconds):
    """61 -> '1:01', 3661 -> '1:01:01'"""
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    return f"{minutes}:{seconds:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def cores():
    """CPU cores that this process may use"""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def threads():
    """'1 thread', '2 threads': those that torch computes with"""
    return f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def choose_device(name, precision="fp32"):
    """cpu, cuda, mps or auto -> torch.device, whose arithmetic is set to the precision: fp32, tf32 or bf16"""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).cpu()
    except Exception as error:  # each kind of device that is absent has its own
        if out_of_memory(error):
            raise
        raise InputError(f"--device {name}: not available here ({first_line(error)}); use --device auto") from None
    device = torch.device(name)
    if precision == "tf32" and device.type != "cuda":
        raise InputError(f"--precision tf32 is arithmetic of NVIDIA GPUs, this run is on {device}; use fp32 or bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"  # PyTorch's default would round convolutions unasked
    if device.type == "cuda":  # of the processes that torchrun starts, each has a GPU of its own
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    return device
