"""`make bench-data-plane`: a hop's overhead and a gateway under overload, in build/bench/bench-data-plane.json."""

from benchmarks._report import write
from benchmarks.hop import main as hop
from benchmarks.overload import main as overload

if __name__ == "__main__":
    write("bench-data-plane", [*hop(), *overload()])
